"""One driver at a time; a dead one is replaced, a replaced one writes nothing more."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, update

from search import lease as leases
from search.database import LEASES, writing
from search.lease import Holder, Lease, LeaseHeldError, LeaseLostError, process_identity
from search.study import Ledger
from spaces.schema import Objective

OBJECTIVES = (Objective(metric="val_top1", mode="max"),)
ROUNDS = 50


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    ledger = Ledger.create(url, "s", OBJECTIVES, {})
    yield ledger
    ledger.close()


def hand_to(ledger: Ledger, holder: Holder) -> None:
    """Make the row say that someone else has the lease."""
    with writing(ledger._engine) as session:
        values = {"token": "t", "host": holder.host, "pid": holder.pid, "process": holder.process}
        session.execute(update(LEASES).values(values))


def dead_process() -> int:
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    assert process.pid is not None
    return process.pid


def dead_holder() -> Holder:
    here = Holder.here()
    boot, namespace, _ = json.loads(process_identity())
    return Holder(here.host, dead_process(), json.dumps([boot, namespace, "17"]), 0.0, 0.0, "t")


def test_a_second_driver_is_refused_naming_the_first(url: str, ledger: Ledger) -> None:
    with pytest.raises(LeaseHeldError, match=f"run by process {os.getpid()} on ") as refused:
        Ledger.open(url, "s", write=True)
    assert refused.value.exit_code == 2
    assert ledger.holder is not None
    ledger.close()
    again = Ledger.open(url, "s", write=True)
    again.close()
    assert again.holder is None


def test_a_dead_holder_is_replaced_at_once(url: str, ledger: Ledger) -> None:
    hand_to(ledger, dead_holder())
    Ledger.open(url, "s", write=True).close()


def test_a_process_id_that_came_back_is_not_the_holder(url: str, ledger: Ledger) -> None:
    boot, namespace, start = json.loads(process_identity())
    reused = Holder.here()
    earlier = json.dumps([boot, namespace, str(int(start) - 1)])
    hand_to(ledger, Holder(reused.host, os.getpid(), earlier, 0.0, 0.0, "t"))
    Ledger.open(url, "s", write=True).close()


def test_a_foreign_holder_is_dead_when_its_counter_stands_still(
    url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger._lease._ended.set()  # it beats no more
    monkeypatch.setattr(leases, "DEAD_AFTER_S", 0.3)
    hand_to(ledger, Holder("elsewhere", 1, "[]", 0.0, 0.0, "t"))
    Ledger.open(url, "s", write=True).close()


def test_a_foreign_holder_that_beats_keeps_the_lease(
    url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_to(ledger, Holder("elsewhere", 4711, "[]", 0.0, 0.0, "t"))
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            with writing(ledger._engine) as session:
                session.execute(update(LEASES).values(beat=LEASES.c.beat + 1))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LeaseHeldError, match="process 4711 on elsewhere"):
            Ledger.open(url, "s", write=True)
    finally:
        ended.set()
        thread.join()


def test_a_replaced_driver_writes_nothing_and_says_so(url: str, ledger: Ledger) -> None:
    hand_to(ledger, dead_holder())
    new = Ledger.open(url, "s", write=True)
    with pytest.raises(LeaseLostError, match="has stopped"):
        ledger.add({}, {}, {}, "0")
    assert ledger.lost
    with pytest.raises(LeaseLostError):
        ledger.check_held()
    ledger.close()
    assert new.holder is not None, "a replaced driver gives nothing back"
    new.add({}, {}, {}, "0")
    new.close()
    assert len(Ledger.open(url, "s").records) == 1


def test_the_thread_notices_that_the_lease_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.05)
    ledger = Ledger.create(f"sqlite:///{tmp_path / 'study.db'}", "s", OBJECTIVES, {})
    hand_to(ledger, dead_holder())
    assert ledger._lease.lost.wait(20)
    ledger.close()


def race(lease: Lease, barrier: threading.Barrier, outcomes: list[object]) -> None:
    barrier.wait()
    try:
        lease.acquire()
        outcomes.append(lease)
    except LeaseHeldError as error:
        outcomes.append(error)


def test_fifty_races_have_one_winner_each(url: str, ledger: Ledger) -> None:
    engines = [create_engine(url, connect_args={"timeout": 60}) for _ in range(2)]
    for _ in range(ROUNDS):
        hand_to(ledger, dead_holder())
        barrier, outcomes = threading.Barrier(2), list[object]()
        racers = [
            threading.Thread(target=race, args=(Lease(engine, 1, "s"), barrier, outcomes))
            for engine in engines
        ]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        winners = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
        assert len(outcomes) == 2
        assert len(winners) == 1, outcomes
        winners[0].release()
    for engine in engines:
        engine.dispose()


def hold(url: str, ready: "multiprocessing.synchronize.Event") -> None:
    Ledger.open(url, "s", write=True)
    ready.set()
    signal.pause()


def test_a_killed_driver_is_replaced_and_its_time_is_counted(url: str, ledger: Ledger) -> None:
    ledger.close()
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(url, ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(LeaseHeldError, match=f"process {process.pid} "):
        Ledger.open(url, "s", write=True)
    process.kill()
    process.join()
    again = Ledger.open(url, "s", write=True)
    killed = again.sessions[-2]
    assert killed.pid == process.pid
    assert killed.ended_s is not None
    assert killed.ended_s >= killed.started_s
    again.close()
