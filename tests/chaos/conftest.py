"""The cluster that the searches of fake trials share: starting one takes as long as a search."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_search import worker_environment
from processes import ray_cluster
from tiny_search import environment


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running Ray cluster with three CPUs."""
    with ray_cluster(tmp_path_factory.mktemp("cluster"), 3, worker_environment()) as address:
        yield address


@pytest.fixture(scope="session", autouse=True)
def _ray_folder() -> Iterator[None]:
    yield
    shutil.rmtree(environment(Path("/tmp"))["RAY_TMPDIR"], ignore_errors=True)
