"""Drivers that end while trials wait at rungs: what waited waits, what went on goes on."""

import signal
import time
from pathlib import Path

import pytest
from fake_search import (
    END_S,
    Driver,
    FakeSearch,
    assert_nothing_lost,
    assert_whole,
    with_store,
)
from fake_trial import misbehave
from mlflow import MlflowClient
from test_driver_kills import kill_and_resume

PAUSES = ("stopping.name=asha_promotion",)
HANGS = 1  # a trial


def wait_for_work(search: FakeSearch, driver: Driver) -> None:
    """Return once a trial of this driver has noted something, or has begun to hang."""
    before, until = hangs_left(search), search.num_notes() + 1
    deadline = time.monotonic() + END_S
    while search.num_notes() < until and hangs_left(search) == before:
        assert time.monotonic() < deadline, search.log
        assert not driver.wait(0.01), search.log


def hangs_left(search: FakeSearch) -> str:
    try:
        return (search.runs / search.name / "misbehave" / str(HANGS)).read_text()
    except FileNotFoundError:
        return ""


def wait_for_pauses(search: FakeSearch, driver: Driver, num: int) -> None:
    """Return once so many trials wait."""
    deadline = time.monotonic() + END_S
    while sum(r.state == "paused" for r in search.records()) < num:
        assert time.monotonic() < deadline, search.log
        assert not driver.wait(0.05), search.log


def test_a_driver_that_ends_while_trials_wait_loses_nothing(
    tmp_path: Path, cluster: str, empty_store: Path
) -> None:
    patient = (*PAUSES, f"stopping.trial_timeout_s={END_S}")
    search = with_store(FakeSearch(tmp_path, cluster, patient), empty_store)
    # A trial that hangs: no driver comes to the end before its signal.
    misbehave(search.runs, search.name, HANGS, "hang", "hang")
    for how, num in ((signal.SIGKILL, 1), (signal.SIGINT, 2)):
        before = search.records() if search.exists else []
        with search.driver() as driver:
            # It listens to signals. All but the one that hangs may have got as far as they can.
            wait_for_work(search, driver)
            wait_for_pauses(search, driver, num)
            assert driver.signal(how)
            assert driver.wait(END_S)
            assert driver.returncode == (-how if how == signal.SIGKILL else 128 + how), search.log
        after = search.records()
        assert any(record.state == "paused" for record in after)
        assert_nothing_lost(before, after)
    client = MlflowClient(search.uri)
    experiment = client.get_experiment_by_name("chaos")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {r.info.status for r in runs} <= {"KILLED", "FINISHED", "FAILED"}
    misbehave(search.runs, search.name, HANGS)  # it may have waited while a driver was killed
    search.run()
    assert_whole(search)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_many_killed_drivers_lose_nothing(
    tmp_path: Path, cluster: str, empty_store: Path, seed: int
) -> None:
    search = with_store(FakeSearch(tmp_path, cluster, PAUSES), empty_store)
    assert kill_and_resume(search, 5, 100 + seed) > 0
