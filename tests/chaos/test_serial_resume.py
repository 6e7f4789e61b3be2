"""A search run one trial at a time and interrupted does what the uninterrupted one does."""

import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_search import END_S, METRICS, FakeSearch, assert_whole, with_store

from search.folder import SearchFolder
from search.records import TrialRecord

TRIALS = 8
SERIAL = ("resources.concurrent=1", f"budget.trials={TRIALS}", "sampler.seed=11")


def history(records: list[TrialRecord]) -> list[Any]:
    """All that must not depend on interruptions."""
    return [
        (
            r.number,
            dict(r.params),
            r.config,
            r.state,
            r.reason,
            [[e.metrics[name] for name in METRICS] for e in r.epochs],
        )
        for r in records
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, cluster: str) -> list[Any]:
    search = FakeSearch(tmp_path_factory.mktemp("whole"), cluster, SERIAL)
    search.run()
    return history(search.records())


def interrupt(search: FakeSearch, after: int, how: signal.Signals) -> None:
    """End a driver by a signal once the trials have noted `after` lines more."""
    with search.driver() as driver:
        search.wait_for_notes(driver, after)
        driver.signal(how)
        assert driver.wait(END_S)
        assert driver.returncode in (0, 128 + how, -how), search.log


def test_an_interrupted_search_does_the_same(
    tmp_path: Path, cluster: str, empty_store: Path, uninterrupted: list[Any]
) -> None:
    search = with_store(FakeSearch(tmp_path, cluster, SERIAL), empty_store)
    interrupt(search, 9, signal.SIGKILL)
    search.run()
    assert history(search.records()) == uninterrupted
    assert_whole(search, TRIALS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_a_search_interrupted_anywhere_does_the_same(
    tmp_path: Path, cluster: str, empty_store: Path, uninterrupted: list[Any], seed: int
) -> None:
    rng = random.Random(seed)
    search = with_store(FakeSearch(tmp_path, cluster, SERIAL), empty_store)
    how = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    interrupt(search, 1 + seed % 25, how)
    search.run()
    assert history(search.records()) == uninterrupted
    assert_whole(search, TRIALS)


def test_a_search_that_is_over_needs_no_cluster(
    tmp_path: Path, cluster: str, empty_store: Path
) -> None:
    two = "space={model.width: {choice: [16, 24]}}"
    search = with_store(FakeSearch(tmp_path, cluster, (*SERIAL, two)), empty_store)
    search.run()
    assert search.log.count("exhausted") == 1
    before = search.records()
    report = SearchFolder(search.runs, search.name).report
    report.unlink()
    replace(search, address="127.0.0.1:1").run()  # nothing answers there
    assert search.records() == before
    assert report.is_file()
    assert search.log.count("exhausted") == 2
    assert_whole(search, 2)
