"""The cluster that the searches of fake trials share: starting one takes as long as a search."""

from collections.abc import Iterator

import pytest
from fake_search import worker_environment
from processes import ray_cluster

# A search starts the workers it needs; starting others takes time from it.
ENVIRONMENT = {**worker_environment(), "RAY_enable_worker_prestart": "0"}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running Ray cluster with two CPUs."""
    with ray_cluster(tmp_path_factory.mktemp("cluster"), 2, ENVIRONMENT) as address:
        yield address
