"""Two drivers resume one search at once: one of them has it, and a replaced one writes nothing."""

import random
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from drivers import Driver, barrier, drivers, may_rename_host
from ledgers import made_search

from search import lease as leases
from search.folder import SearchFolder
from search.recorded import open_ledger
from search.records import TrialRecord

Record = Callable[[str, object], None]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    _, _, ledger = made_search(tmp_path / "runs")
    ledger.close()
    return tmp_path / "runs"


def records_of(runs: Path) -> list[TrialRecord]:
    _, ledger = open_ledger(SearchFolder(runs, "made"))
    ledger.close()
    return ledger.records


def killed_holder(runs: Path) -> int:
    """A driver that was killed while it had the search."""
    with drivers(Driver(runs)) as (holder,):
        assert holder.answer().error == ""
        assert holder.ask("add").error == ""
        holder.signal(signal.SIGKILL)
    return holder.pid


def race(runs: Path, *hosts: str) -> tuple[Driver, float]:
    """Two at once; the winner, which has let go, and how long it took to win."""
    start = barrier(len(hosts))
    with drivers(*(Driver(runs, start, host) for host in hosts)) as racers:
        answers = [racer.answer() for racer in racers]
        winners = [racer for racer, a in zip(racers, answers, strict=True) if not a.error]
        assert len(winners) == 1, answers
        won = answers[racers.index(winners[0])]
        for answer in answers:
            if answer.error:
                assert f"process {won.pid} on" in answer.error
                assert socket.gethostname() in answer.error or any(hosts)
        count = len(records_of(runs))
        assert winners[0].ask("add").numbers == tuple(range(count + 1))
        winners[0].tell("leave")
        winners[0].process.join(60)
        assert winners[0].process.exitcode == 0
    return winners[0], won.waited_s


def races(runs: Path, count: int, record: Record) -> None:
    rng = random.Random(count)
    longest_s = 0.0
    for index in range(count):
        killed = rng.random() < 0.4
        if killed:
            killed_holder(runs)
        _, waited_s = race(runs, "", "")
        if killed:
            longest_s = max(longest_s, waited_s)
            ended = records_of(runs)
            assert [r.number for r in ended] == list(range(len(ended))), index
    record("dead_holder_replaced_in_s", round(longest_s, 3))


def test_one_of_two_resumes_wins(runs: Path, record_property: Record) -> None:
    races(runs, 3, record_property)


@pytest.mark.slow
def test_fifty_double_resumes_have_one_winner_each(runs: Path, record_property: Record) -> None:
    races(runs, 50, record_property)


def test_a_running_driver_is_named(runs: Path) -> None:
    with drivers(Driver(runs)) as (holder,):
        assert holder.answer().error == ""
        with drivers(Driver(runs)) as (late,):
            refused = late.answer().error
        assert f"process {holder.pid} on {socket.gethostname()}" in refused
        assert holder.ask("add").numbers == (0,), "the holder goes on"


def frozen_and_replaced(runs: Path, dead_after_s: float) -> float:
    """A frozen driver's search is taken over from another machine; how long that took."""
    if not may_rename_host():
        pytest.skip("only root may give a process another host name")
    with drivers(Driver(runs)) as (frozen,):
        assert frozen.answer().error == ""
        assert frozen.ask("add").numbers == (0,)
        frozen.signal(signal.SIGSTOP)
        with drivers(Driver(runs, host="elsewhere", dead_after_s=dead_after_s)) as (new,):
            won = new.answer()
            assert won.error == ""
            assert new.ask("add").numbers == (0, 1)
            before = records_of(runs)
            frozen.tell("add")
            frozen.signal(signal.SIGCONT)
            refused = frozen.answer().error
            assert f"process {new.pid} on elsewhere holds it now" in refused
            assert f"this driver (process {frozen.pid} on" in refused
            assert records_of(runs) == before, "nothing of it was written"
            frozen.tell("leave")
            frozen.process.join(60)
            assert new.ask("add").numbers == (0, 1, 2), "it took nothing away either"
    return won.waited_s


def test_a_frozen_driver_that_was_replaced_writes_nothing(runs: Path) -> None:
    frozen_and_replaced(runs, dead_after_s=0.5)


@pytest.mark.slow
def test_a_foreign_drivers_lease_is_free_after_it_stood_still(
    runs: Path, record_property: Record
) -> None:
    waited_s = frozen_and_replaced(runs, leases.DEAD_AFTER_S)
    assert waited_s >= leases.DEAD_AFTER_S, "a beat may be late by that much"
    assert leases.DEAD_AFTER_S >= 3 * leases.BEAT_S
    record_property("foreign_holder_replaced_in_s", round(waited_s, 3))


@pytest.mark.slow
def test_two_machines_want_a_dead_drivers_search(runs: Path) -> None:
    if not may_rename_host():
        pytest.skip("only root may give a process another host name")
    killed_holder(runs)
    race(runs, "elsewhere", "yonder")
    killed_holder(runs)
    race(runs, "", "elsewhere")
