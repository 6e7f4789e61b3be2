"""Every test begins with the CPU's own kernels."""

from collections.abc import Iterator

import pytest
from backends import use_kernels


@pytest.fixture(autouse=True)
def _own_kernels() -> Iterator[None]:
    yield
    use_kernels("torch")
