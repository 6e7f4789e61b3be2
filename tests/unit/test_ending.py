"""`spiketune stop`: the driver and nobody else gets one signal, and is waited for."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ledgers import add_trial, made_search
from sqlalchemy import update
from test_lease import hand_to

from search import ending
from search.cli import main
from search.database import LEASES, writing
from search.folder import SearchFolder
from search.lease import Holder, process_identity
from search.study import Ledger

# A process that counts its signals and goes at the first, unless told to stay.
PROCESS = """
import signal, sys
{ignored}
def told(number, frame):
    print(signal.Signals(number).name, flush=True)
    {leaves}
for number in {caught}:
    signal.signal(number, told)
print("ready", flush=True)
while True:
    signal.pause()
"""
GONE_S = 60


@contextmanager
def process(*, leaves: bool = True, ignores: bool = False) -> Iterator[subprocess.Popen[str]]:
    code = PROCESS.format(
        ignored="signal.signal(signal.SIGINT, signal.SIG_IGN)" if ignores else "",
        leaves="sys.exit(0)" if leaves else "pass",
        caught="(signal.SIGTERM,)" if ignores else "(signal.SIGINT, signal.SIGTERM)",
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate(timeout=GONE_S)


def output(child: subprocess.Popen[str]) -> str:
    child.wait(timeout=GONE_S)
    assert child.stdout is not None
    return child.stdout.read()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    spec, _, ledger = made_search(tmp_path / "runs")
    add_trial(spec, ledger, 16, 4, "finished")
    ledger._lease.release(give_back=False)
    yield ledger
    ledger.close()


def stop(tmp_path: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["stop", "made", "--runs", str(tmp_path / "runs"), *options])


def held_by(ledger: Ledger, child: subprocess.Popen[str]) -> Holder:
    here = Holder.here()
    holder = Holder(here.host, child.pid, process_identity(child.pid), 0.0, 0.0, "t")
    hand_to(ledger, holder)
    return holder


def test_the_driver_gets_one_interrupt_and_is_waited_for(tmp_path: Path, ledger: Ledger) -> None:
    with process() as child:
        held_by(ledger, child)
        done = stop(tmp_path)
        assert output(child) == "SIGINT\n"
    assert done.exit_code == 0, done.output
    assert done.output.startswith("made has stopped, 11 of 12 trials left.\nContinue with:  spik")
    assert not (tmp_path / "runs" / "made" / ending.ASKED).exists()


def test_a_driver_that_ignores_interrupts_is_terminated(tmp_path: Path, ledger: Ledger) -> None:
    with process(ignores=True) as child:
        held_by(ledger, child)
        assert stop(tmp_path).exit_code == 0
        assert output(child) == "SIGTERM\n"


def test_one_that_takes_its_time_is_not_signalled_again(tmp_path: Path, ledger: Ledger) -> None:
    with process(leaves=False) as child:
        held_by(ledger, child)
        for _ in range(2):
            done = stop(tmp_path, "--timeout", "0")
            assert done.exit_code == 1
            assert "still records what runs after 0 s" in done.output
        assert child.stdout is not None
        assert child.stdout.readline() == "SIGINT\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == "SIGTERM\n"


def test_the_lease_given_back_is_the_end(tmp_path: Path, ledger: Ledger) -> None:
    with process(leaves=False) as child:
        held = held_by(ledger, child)
        asked = iter([held, None])
        folder = made_folder(tmp_path)
        assert ending.end_driver(folder, lambda: next(asked), 60.0)
        assert child.poll() is None


def made_folder(tmp_path: Path) -> SearchFolder:
    return SearchFolder(tmp_path / "runs", "made")


def test_a_process_that_only_has_the_id_is_left_alone(tmp_path: Path, ledger: Ledger) -> None:
    with process() as child:
        boot, namespace, start = json.loads(process_identity(child.pid))
        earlier = json.dumps([boot, namespace, str(int(start) - 1)])
        here = Holder.here()
        hand_to(ledger, Holder(here.host, child.pid, earlier, 0.0, 0.0, "t"))
        done = stop(tmp_path)
        assert (done.exit_code, child.poll()) == (0, None)
    assert done.output.startswith("No driver runs made.\n")


def test_a_process_whose_id_changes_hands_meanwhile_is_left_alone(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter([True, False])
    monkeypatch.setattr(Holder, "alive", property(lambda _: next(seen)))
    with process() as child:
        held = held_by(ledger, child)
        assert not ending.end_driver(made_folder(tmp_path), lambda: held, 1.0)
        assert child.poll() is None


def test_a_driver_on_another_host_is_named(tmp_path: Path, ledger: Ledger) -> None:
    far = Holder("far", os.getpid(), process_identity(), 0.0, 0.0, "t")
    hand_to(ledger, far)
    beats = iter([far, replace(far, beat_s=2.0)])
    with pytest.raises(
        ending.StopError, match=r"run by process \d+ on far; run `spiketune stop"
    ) as no:
        ending.end_driver(made_folder(tmp_path), lambda: next(beats), 1.0)
    assert no.value.exit_code == 1
    assert "spiketune jobs stop made" in str(no.value)


def test_a_driver_on_another_host_that_stands_still_is_none(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "DEAD_AFTER_S", 0.3)
    hand_to(ledger, Holder("far", os.getpid(), process_identity(), 0.0, 0.0, "t"))
    assert stop(tmp_path).output.startswith("No driver runs made.\n")


def test_where_nothing_runs_it_says_so(tmp_path: Path, ledger: Ledger) -> None:
    with writing(ledger._engine) as session:
        session.execute(update(LEASES).values(token=""))
    done = stop(tmp_path)
    assert done.exit_code == 0
    assert done.output.startswith("No driver runs made.\n")


def test_an_unknown_search_is_bad_input(tmp_path: Path) -> None:
    done = stop(tmp_path)
    assert done.exit_code == 2
    assert "no search named 'made'" in done.output
