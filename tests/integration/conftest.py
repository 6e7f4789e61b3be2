"""Servers and stores that the integration tests share; making one takes seconds."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_server import DEADLINE_S, MlflowServer

from search.tracking import Tracker, TrackerConfig, default_uri


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database: making one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("empty")
    tracker = Tracker(TrackerConfig(default_uri(folder), "other", "other", "0", folder / "spool"))
    tracker.start()
    assert tracker.close(DEADLINE_S)
    return folder / "mlflow.db"


@pytest.fixture(scope="module")
def mlflow_server(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> Iterator[MlflowServer]:
    """A server of the test module's own: some count every row of its database."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    server = MlflowServer(folder)
    yield server
    server.close()
