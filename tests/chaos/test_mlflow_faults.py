"""MLflow away, slow, wrong or silent: trials go on, and every point arrives exactly once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from fake_search import FakeSearch, assert_whole
from faulty_proxy import FaultyProxy
from mlflow_server import MlflowServer, free_port
from test_driver_kills import kill_and_resume
from tiny_search import spiketune

from search.syncing import sync
from search.tracking import Tracker, TrackerConfig, TrackingError

FAULTS = ("refuse", "forget", "drop", "late", "hang", "torn")
# What hangs is to be given up within the test.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
NOT_REQUIRED = "tracking.required=false"


@contextmanager
def faulty(
    server: MlflowServer, faults: Sequence[str], share: float, seed: int
) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(server.port, tuple(faults), share, seed)
    try:
        yield proxy
    finally:
        proxy.close()


def tracked_at(folder: Path, cluster: str, uri: str, experiment: str) -> FakeSearch:
    where = (f"tracking.uri={uri}", f"tracking.experiment={experiment}", NOT_REQUIRED)
    return FakeSearch(folder, cluster, where, IMPATIENT)


def send_the_rest(search: FakeSearch) -> None:
    """What a person does when the store is back."""
    done = spiketune(search.folder, "sync", search.name)
    assert "everything is sent" in done.stdout or "nothing is left" in done.stdout


def finish(search: FakeSearch, server: MlflowServer, proxy: FaultyProxy) -> None:
    assert sum(proxy.done.values()) > proxy.done["none"], "no fault was done"
    proxy.heal()
    send_the_rest(search)
    experiment = search.overrides[1].partition("=")[2]
    assert_whole(search, uri=server.uri, experiment=experiment)


@pytest.mark.slow  # one that hangs and dies: tests/integration/test_tracking.py
def test_a_faulty_store_gets_everything_once(
    tmp_path: Path, cluster: str, mlflow_server: MlflowServer
) -> None:
    with faulty(mlflow_server, FAULTS, share=0.5, seed=5) as proxy:
        search = tracked_at(tmp_path, cluster, proxy.uri, "faulty")
        search.run()
        finish(search, mlflow_server, proxy)


@pytest.mark.parametrize("required", [True, False])
def test_a_store_that_fails_at_the_first_run_is_an_error_only_where_it_is_required(
    tmp_path: Path, mlflow_server: MlflowServer, required: bool
) -> None:
    proxy = FaultyProxy(mlflow_server.port, ("refuse",), 1.0, seed=0, only="/runs/")
    config = TrackerConfig(proxy.uri, "first", "first", "id-1", tmp_path / "spool", required)
    tracker = Tracker(config)
    try:
        with pytest.raises(TrackingError, match="must be usable") if required else nullcontext():
            tracker.start()
        assert proxy.done["refuse"] > 0
        if not required:
            proxy.heal()
            assert tracker.flush(60.0)
    finally:
        tracker.close(10.0)
        proxy.close()


def test_sync_says_in_seconds_that_the_store_is_away(tmp_path: Path) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    config = TrackerConfig(away, "away", "away", "id-1", tmp_path / "spool", required=False)
    with pytest.raises(TrackingError, match="must answer"):
        sync(config, timeout_s=300.0)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("share", [0.15, 0.6])
def test_each_fault_by_itself(
    tmp_path: Path, cluster: str, mlflow_server: MlflowServer, fault: str, share: float
) -> None:
    with faulty(mlflow_server, [fault], share, seed=1) as proxy:
        search = tracked_at(tmp_path, cluster, proxy.uri, f"{fault}-{share}")
        search.run()
        finish(search, mlflow_server, proxy)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_drivers_before_a_faulty_store(
    tmp_path: Path, cluster: str, mlflow_server: MlflowServer, seed: int
) -> None:
    with faulty(mlflow_server, FAULTS, 0.3, seed) as proxy:
        search = tracked_at(tmp_path, cluster, proxy.uri, f"killed-{seed}")
        kill_and_resume(search, 4, seed, check=False)
        finish(search, mlflow_server, proxy)


@pytest.mark.slow
def test_a_store_that_is_down_all_the_time_gets_everything_later(
    tmp_path: Path, cluster: str, mlflow_server: MlflowServer
) -> None:
    search = tracked_at(tmp_path, cluster, mlflow_server.uri, "down")
    mlflow_server.kill()
    try:
        search.run()
        missed = spiketune(tmp_path, "sync", search.name, code=1)
        assert "must answer" in missed.stderr
    finally:
        mlflow_server.start()
    send_the_rest(search)
    assert_whole(search, uri=mlflow_server.uri, experiment="down")
    send_the_rest(search)
    assert_whole(search, uri=mlflow_server.uri, experiment="down")
