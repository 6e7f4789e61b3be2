"""What every test shares: quiet third parties, servers and stores that take seconds to make."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mlflow_server import MlflowServer
    from s3_server import S3Server

# Read at import by the libraries, so set before any test module is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")


def _shared(factory: pytest.TempPathFactory) -> Path:
    """The folder that all processes of the tests share."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def _ray_folder() -> Iterator[None]:
    from tiny_search import RAY_FOLDER

    yield
    shutil.rmtree(RAY_FOLDER, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels are compiled once for all processes of the tests; the user's cache is not theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPIKETUNE_CACHE", str(_shared(tmp_path_factory) / "spiketune-cache"))
        yield


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database: making one takes seconds, copying it does not."""
    from mlflow_server import DEADLINE_S

    from search.tracking import Tracker, TrackerConfig, default_uri

    folder = tmp_path_factory.mktemp("empty")
    tracker = Tracker(TrackerConfig(default_uri(folder), "other", "other", "0", folder / "spool"))
    tracker.start()
    assert tracker.close(DEADLINE_S)
    return folder / "mlflow.db"


@pytest.fixture(scope="module")
def mlflow_server(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> "Iterator[MlflowServer]":
    """A server of the test module's own: some count every row of its database."""
    from mlflow_server import MlflowServer

    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    server = MlflowServer(folder)
    yield server
    server.close()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[S3Server]":
    """A server of the test module's own, and its address in the environment."""
    from s3_server import S3Server

    server = S3Server(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.variables.items():
            patch.setenv(name, value)
        yield server
    server.close()


@pytest.fixture(scope="session")
def finished_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the search `tiny`, run once for all processes: copied, never changed."""
    from filelock import FileLock
    from tiny_search import program, write_space

    shared = _shared(tmp_path_factory)
    folder, made = shared / "finished", shared / "finished" / "stdout.txt"
    with FileLock(shared / "finished.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            serial = ("--set", "resources.concurrent=1")
            done = program(folder, "search", str(write_space(folder)), *serial)
            made.write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def finished_search(finished_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module's own folder in which `tiny` has run to its end, one trial at a time."""
    folder = tmp_path_factory.mktemp("finished") / "copy"
    shutil.copytree(finished_tiny, folder)
    return folder


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running Ray cluster with two CPUs, for searches of fake trials.

    Starting one takes as long as such a search.
    """
    from fake_search import worker_environment
    from processes import ray_cluster

    # A search starts the workers it needs; starting others takes time from it.
    variables = {**worker_environment(), "RAY_enable_worker_prestart": "0"}
    with ray_cluster(tmp_path_factory.mktemp("cluster"), 2, variables) as address:
        yield address
