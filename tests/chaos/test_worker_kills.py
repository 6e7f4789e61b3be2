"""Trial workers and whole nodes killed at random moments: trials go on from their checkpoints."""

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from fake_search import END_S, FakeSearch, assert_whole, with_store, worker_environment
from processes import kill_all, ray_cluster, ray_node, trial_workers

from search.retries import num_charged

LIVELY = {"SPIKETUNE_FAKE_EPOCH_S": "0.4"}


def harass(search: FakeSearch, rng: random.Random, kills: int) -> tuple[int, int | None]:
    """Kill trial workers while the search runs; kills done and the exit status."""
    done = 0
    with search.driver() as driver:
        deadline = time.monotonic() + END_S
        while not driver.wait(rng.uniform(0.05, 1.5)):
            assert time.monotonic() < deadline, search.log
            alive = trial_workers(driver.pid)
            if done < kills and alive and search.num_notes():
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(alive), signal.SIGKILL)
                done += 1
    return done, driver.returncode


def run_harassed(search: FakeSearch, seed: int, kills: int) -> int:
    done, code = harass(search, random.Random(seed), kills)
    assert code == 0, search.log
    assert_whole(search)
    records = search.records()
    reasons = [a.reason for r in records for a in r.attempts if a.reason]
    assert set(reasons) <= {"worker_lost", "worker_unreachable"}, reasons
    # A worker that was killed between two trials was nobody's.
    assert len(reasons) <= done
    assert sum(num_charged(r.attempts) for r in records) == reasons.count("worker_lost")
    for record in records:
        lost = num_charged(record.attempts)
        assert (record.state == "failed") == (lost > 2)
    return len(reasons)


def test_killed_workers_cost_attempts_not_trials(tmp_path: Path, empty_store: Path) -> None:
    search = with_store(FakeSearch(tmp_path, variables=LIVELY), empty_store)
    assert run_harassed(search, 3, kills=2) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_many_killed_workers_cost_attempts_not_trials(
    tmp_path: Path, empty_store: Path, seed: int
) -> None:
    search = with_store(FakeSearch(tmp_path, variables=LIVELY), empty_store)
    run_harassed(search, seed, kills=10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_lost_node_is_not_charged(tmp_path: Path, empty_store: Path, seed: int) -> None:
    rng = random.Random(seed)
    variables = worker_environment() | LIVELY
    with ray_cluster(tmp_path, 0, variables) as address:
        node = [f"--address={address}", "--num-cpus=2"]
        with (
            ray_node(tmp_path, node, variables) as lost,
            ray_node(tmp_path, node, variables),
        ):
            search = with_store(FakeSearch(tmp_path, address), empty_store)
            with search.driver() as driver:
                search.wait_for_notes(driver, rng.randint(3, 20))
                kill_all(lost.pid)
                driver.wait(END_S)
            assert driver.returncode == 0, search.log
    assert_whole(search)
    records = search.records()
    assert all(r.state in ("finished", "stopped") for r in records)
    assert sum(num_charged(r.attempts) for r in records) == 0
    reasons = {a.reason for r in records for a in r.attempts if a.reason}
    assert reasons <= {"node_lost", "worker_unreachable"}
    assert reasons
