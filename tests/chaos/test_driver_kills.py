"""Drivers killed at random moments, each followed by a resume: nothing is lost or done twice."""

import random
import time
from pathlib import Path

import pytest
from fake_search import FakeSearch, assert_nothing_lost, assert_whole, with_store

START_S = 6.0  # at most: connecting, opening; a kill may come anywhere in it
SEARCHES = 24
KILLED: dict[int, int] = {}


def kill_at_random(search: FakeSearch, rng: random.Random) -> bool:
    """Start or continue a search and kill its driver; False when it came to its end before."""
    with search.driver() as driver:
        if rng.random() < 0.3:
            until, noted = time.monotonic() + rng.uniform(0.0, START_S), search.num_notes()
            while time.monotonic() < until and search.num_notes() == noted:  # it still starts
                if driver.wait(0.01):
                    break
        else:
            search.wait_for_notes(driver, rng.randint(1, 9))
            driver.wait(rng.uniform(0.0, 0.15))
        if driver.wait(0):
            assert driver.returncode == 0, search.log
            return False
        driver.kill()
    return True


def kill_and_resume(search: FakeSearch, kills: int, seed: int, *, check: bool = True) -> int:
    """Kill drivers of one search and let the last one end; the number that were killed."""
    rng = random.Random(seed)
    killed = 0
    for _ in range(kills):
        before = search.records() if search.exists else []
        ended = not kill_at_random(search, rng)
        killed += not ended
        if search.exists:
            assert_nothing_lost(before, search.records())
        if ended:
            break
    search.run()
    if check:
        assert_whole(search)
    return killed


def test_a_killed_driver_loses_nothing(tmp_path: Path, cluster: str, empty_store: Path) -> None:
    search = with_store(FakeSearch(tmp_path, cluster), empty_store)
    assert kill_and_resume(search, 2, seed=1) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEARCHES))
def test_many_killed_drivers_lose_nothing(
    tmp_path: Path, cluster: str, empty_store: Path, seed: int
) -> None:
    # Every sixth search has a Ray of its own, which is lost with its driver.
    address = None if seed % 6 == 5 else cluster
    search = with_store(FakeSearch(tmp_path, address), empty_store)
    KILLED[seed] = kill_and_resume(search, 6, seed)


@pytest.mark.slow
def test_there_were_enough_kills() -> None:
    if len(KILLED) < SEARCHES:
        pytest.skip("only some of the searches were run")
    assert sum(KILLED.values()) >= 120
