"""Searches whose trials' checkpoints lie in a store: what waits there goes on from there."""

import random
from pathlib import Path

import pytest
from fake_search import OBJECTIVES, FakeSearch, assert_whole, with_store
from s3_server import BUCKET, S3Server
from test_driver_kills import kill_and_resume
from test_worker_kills import LIVELY, run_harassed

from search.results import pareto

PAUSES = "stopping.name=asha_promotion"


def stored(folder: Path, address: str, *overrides: str) -> FakeSearch:
    root = folder / "store"
    root.mkdir()
    return FakeSearch(folder, address, (*overrides, f"storage.checkpoints={root}"))


def assert_stored(search: FakeSearch) -> None:
    """The store has what is kept, the search's folder nothing."""
    records = search.records()
    front = {r.number for r in pareto(records, OBJECTIVES)}
    kept = {r.name for r in records if r.state == "finished" or r.number in front}
    (mine,) = (search.folder / "store" / search.name).iterdir()
    assert {path.name for path in mine.iterdir()} == kept
    assert not list((search.runs / search.name / "trials").iterdir())


def test_paused_trials_go_on_from_the_store_under_another_driver(
    tmp_path: Path, cluster: str, empty_store: Path
) -> None:
    search = with_store(stored(tmp_path, cluster, PAUSES), empty_store)
    assert kill_and_resume(search, 1, seed=3, check=False) > 0
    assert_whole(search)
    assert any(a.reason == "paused" for r in search.records() for a in r.attempts)
    assert_stored(search)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_many_killed_drivers_lose_nothing(
    tmp_path: Path, cluster: str, empty_store: Path, seed: int
) -> None:
    overrides = (PAUSES,) if seed % 2 else ()
    search = with_store(stored(tmp_path, cluster, *overrides), empty_store)
    kill_and_resume(search, random.Random(seed).randint(3, 6), seed)
    assert_stored(search)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_many_killed_workers_cost_attempts_not_trials(
    tmp_path: Path, empty_store: Path, s3: S3Server, seed: int
) -> None:
    place = f"storage.checkpoints=s3://{BUCKET}/{seed}"
    variables = {**LIVELY, **s3.variables}
    search = FakeSearch(tmp_path, overrides=(place,), variables=variables)
    run_harassed(with_store(search, empty_store), seed, kills=6)
    assert not list((search.runs / search.name / "trials").iterdir())
