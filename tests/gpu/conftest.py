"""Tests that need a CUDA device: they skip without one, and need no Ray."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _ray_folder() -> None:
    """Instead of the one that every other test has."""


@pytest.fixture(scope="session", autouse=True)
def _has_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("cupy", reason="no CuPy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.gpu)
