"""SIGINT and SIGTERM at any moment: an orderly end, and a resume that loses nothing."""

import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_search import END_S, FakeSearch, assert_nothing_lost, assert_whole, with_store
from mlflow import MlflowClient

from search.cli import main

START_S = 8.0  # connecting, opening, first workers


def interrupt(
    search: FakeSearch, rng: random.Random, how: list[signal.Signals], *, early: bool
) -> int | None:
    """Send a driver signals while it starts (early) or while trials run; its exit status."""
    with search.driver() as driver:
        if early:
            driver.wait(rng.uniform(0.0, START_S))
        else:
            search.wait_for_notes(driver, rng.randint(1, 25))
        for number in how:
            if not driver.wait(rng.uniform(0.0, 0.2)):
                driver.signal(number)
        assert driver.wait(END_S), search.log
        return driver.returncode


def assert_closed(search: FakeSearch) -> None:
    """No run is left running after an orderly end."""
    client = MlflowClient(search.uri)
    found = client.get_experiment_by_name("chaos")
    if found is not None:
        runs = client.search_runs([found.experiment_id])
        assert {r.info.status for r in runs} <= {"KILLED", "FINISHED", "FAILED"}, search.log


def interrupt_and_resume(
    search: FakeSearch, seed: int, *, twice: bool, early: Sequence[bool]
) -> None:
    rng = random.Random(seed)
    how = [rng.choice((signal.SIGINT, signal.SIGTERM)) for _ in range(1 + twice)]
    for is_early in early:
        before = search.records() if search.exists else []
        code = interrupt(search, rng, how, early=is_early)
        # The first few milliseconds are Python's own.
        assert code in (0, *(128 + n for n in how), *(-n for n in how)), search.log
        assert "Traceback" not in search.log.replace("KeyboardInterrupt", "")
        if search.exists:
            assert_nothing_lost(before, search.records())
            if not twice:
                assert_closed(search)
    search.run()
    assert_whole(search)


def test_a_signal_closes_every_run(tmp_path: Path, cluster: str, empty_store: Path) -> None:
    search = with_store(FakeSearch(tmp_path, cluster), empty_store)
    interrupt_and_resume(search, seed=5, twice=False, early=[False])


def test_stop_ends_a_search_as_a_signal_does(
    tmp_path: Path, cluster: str, empty_store: Path
) -> None:
    search = with_store(FakeSearch(tmp_path, cluster), empty_store)
    with search.driver() as driver:
        search.wait_for_notes(driver, 3)
        runs = ["--runs", str(search.runs)]
        done = CliRunner().invoke(main, ["stop", search.name, "--timeout", str(END_S), *runs])
        assert done.exit_code == 0, done.output
        assert "chaos has stopped, " in done.output
        assert driver.wait(END_S), search.log
        assert driver.returncode == 128 + signal.SIGINT, search.log
    assert_closed(search)
    search.run()
    assert_whole(search)


@pytest.mark.slow
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("seed", range(8))
def test_signals_at_any_moment(
    tmp_path: Path, cluster: str, empty_store: Path, seed: int, twice: bool
) -> None:
    search = with_store(FakeSearch(tmp_path, cluster), empty_store)
    interrupt_and_resume(search, seed, twice=twice, early=[seed % 2 == 0, False])
