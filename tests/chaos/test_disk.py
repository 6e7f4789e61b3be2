"""A full, read-only or locked disk: one clear line, nothing lost, and on it goes once mended."""

import errno
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from disks import SmallDisk, mounted
from ledgers import SPACE, add_trial, fill, made_search, made_spec
from mlflow_server import wait_until
from tiny_search import environment, write_space

from search import database
from search.cli import main
from search.database import LedgerError
from search.delivery import Delivery
from search.folder import SearchFolder
from search.recorded import create_ledger, open_ledger
from search.records import TrialRecord, TrialState
from search.spool import Chunk, Spool
from search.study import Ledger
from spaces import SearchSpec
from trainables import checkpoint as checkpoints
from trainables.checkpoint import Checkpoint
from trainables.errors import SpiketuneError

FAKE = Path(__file__).parents[1] / "integration" / "fake_trial.py"
DEADLINE_S = 30.0
SEARCH_S = 240.0
ENDS: tuple[TrialState, ...] = ("running", "finished", "failed")
LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("begin immediate")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("rollback")
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with mounted(tmp_path / "disk", 4) as found:
        if found is None:
            pytest.skip("only root may mount a small disk")
        yield found


def assert_clear(error: Exception) -> None:
    """One line that says where, and the exit code of a failure."""
    assert "\n" not in str(error)
    if isinstance(error, SpiketuneError):
        assert error.exit_code == 1, error
    else:
        assert isinstance(error, OSError)
        assert error.errno in (errno.ENOSPC, errno.EROFS)


def plain(records: list[TrialRecord]) -> list[tuple[object, ...]]:
    return [(r.number, r.state, [(e.epoch, dict(e.metrics)) for e in r.epochs]) for r in records]


def resumed(runs: Path) -> tuple[SearchSpec, Ledger]:
    return open_ledger(SearchFolder(runs, "made"), write=True)


def create_on_a_full_disk(disk: SmallDisk, leave: int) -> bool:
    """Whether it was too full for a new search."""
    runs = disk.path / "runs"
    runs.mkdir()
    spec, folder = made_spec(runs), SearchFolder(runs, "made")
    disk.fill(leave)
    failed = True
    try:
        create_ledger(spec, folder, SPACE).close()
        failed = False
    except (SpiketuneError, OSError) as error:
        assert_clear(error)
    disk.empty()
    if folder.exists:
        spec, ledger = resumed(runs)
    else:
        assert not list(folder.path.glob("study.db*"))
        ledger = create_ledger(spec, folder, SPACE)
    fill(spec, ledger)
    ledger.close()
    again = resumed(runs)[1]
    assert plain(again.records) == plain(ledger.records)
    again.close()
    return failed


def write_until_full(disk: SmallDisk, rng: random.Random) -> None:
    """Blocks are left at random; what was acknowledged is there afterwards, and nothing more."""
    runs = disk.path / "runs"
    spec, folder, ledger = made_search(runs)
    fill(spec, ledger)
    disk.fill(rng.randrange(120))
    before = ledger.records
    with pytest.raises(LedgerError, match="what it held before is intact") as refused:
        add_trials(spec, ledger, rng)
    assert_clear(refused.value)
    assert str(folder.database) in str(refused.value)
    acknowledged = ledger.records
    assert plain(acknowledged[: len(before)]) == plain(before)
    read_while_full(folder, acknowledged)
    disk.empty()
    ledger.close()  # gives the lease back, as the end of its process does
    spec, again = resumed(runs)
    assert again.records == acknowledged
    add_trial(spec, again, 24, 4, "finished")
    again.close()


def add_trials(spec: SearchSpec, ledger: Ledger, rng: random.Random) -> None:
    for _ in range(200):
        add_trial(spec, ledger, 16, rng.randint(0, 4), rng.choice(ENDS))


def read_while_full(folder: SearchFolder, expected: list[TrialRecord]) -> None:
    try:
        _, ledger = open_ledger(folder)
    except SpiketuneError as error:
        assert_clear(error)
        return
    assert ledger.records == expected
    ledger.close()


@pytest.mark.parametrize("leave", [0, 30, 100])
def test_a_search_begins_as_a_whole_or_not_at_all(disk: SmallDisk, leave: int) -> None:
    failed = create_on_a_full_disk(disk, leave)
    assert failed == (leave < 100)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_much_space_or_little_a_search_begins_whole(disk: SmallDisk, seed: int) -> None:
    create_on_a_full_disk(disk, random.Random(f"create {seed}").randrange(110))


@pytest.mark.parametrize("seed", range(3))
def test_what_was_acknowledged_is_there_when_the_disk_was_full(disk: SmallDisk, seed: int) -> None:
    write_until_full(disk, random.Random(f"write {seed}"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 40))
def test_what_was_acknowledged_is_there_whenever_it_fills(disk: SmallDisk, seed: int) -> None:
    write_until_full(disk, random.Random(f"write {seed}"))


def checkpoint(spec: SearchSpec, epoch: int) -> Checkpoint:
    weights = {"w": torch.full((300, 200), float(epoch))}
    return Checkpoint(spec.base_config, epoch, weights, None, {"val_top1": 50.0 + epoch}, {})


@pytest.mark.parametrize("leave", [0, 3, 40])
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(
    disk: SmallDisk, tmp_path: Path, leave: int
) -> None:
    spec, folder = made_spec(tmp_path), disk.path / "trials" / "00000"
    folder.mkdir(parents=True)
    for epoch in (1, 2):
        checkpoints.save(checkpoints.epoch_path(folder, epoch), checkpoint(spec, epoch))
    checkpoints.mark_best(checkpoints.epoch_path(folder, 2))
    disk.fill(leave)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(checkpoints.epoch_path(folder, 3), checkpoint(spec, 3))
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(checkpoints.epoch_path(folder, 2), checkpoint(spec, 3))
    good = checkpoints.last_good(folder)
    assert good is not None
    assert (good.epoch, checkpoints.best_top1(folder)) == (2, 52.0)
    assert not list(folder.glob(".*"))
    disk.empty()
    checkpoints.save(checkpoints.epoch_path(folder, 3), checkpoint(spec, 3))
    good = checkpoints.last_good(folder)
    assert good is not None
    assert good.epoch == 3


@pytest.mark.parametrize("leave", [0, 1, 2])
def test_the_spool_keeps_what_it_has_acknowledged(
    disk: SmallDisk, caplog: pytest.LogCaptureFixture, leave: int
) -> None:
    spool = Spool(disk.path / "spool", "store")
    got: list[int] = []

    def deliver(chunk: Chunk) -> bool:
        fresh = [e.body["n"] for e in chunk.events if e.body["n"] not in got]
        assert chunk.uncertain or len(fresh) == len(chunk.events)
        got.extend(fresh)
        return True

    kept = [n for n in range(5) if spool.append("epoch", 1.0, {"n": n})]
    disk.fill(leave)
    kept += [n for n in range(5, 60) if spool.append("epoch", 1.0, {"n": n, "text": "x" * 900})]
    assert len(kept) < 60, "it was full"
    assert "No space left" in caplog.text
    delivery = Delivery(spool, deliver, str)
    delivery.start()
    wait_until(lambda: got == kept)
    disk.empty()
    kept += [n for n in range(60, 63) if spool.append("epoch", 1.0, {"n": n})]
    assert delivery.flush(DEADLINE_S)
    assert delivery.stop(DEADLINE_S)
    assert got == kept
    assert kept[-3:] == [60, 61, 62]
    spool.close()
    again = Spool(disk.path / "spool", "store")
    assert again.pending == 0
    assert sorted(p.name for p in again.path.parent.iterdir()) == [
        "acked.json", "events.jsonl", "lock",
    ]  # fmt: skip
    again.close()


def test_a_read_only_folder_is_said_and_left_alone(disk: SmallDisk) -> None:
    runs = disk.path / "runs"
    spec, folder, ledger = made_search(runs)
    fill(spec, ledger)
    ledger.close()
    disk.turn("ro")
    for command in (["status", "made"], ["best", "made"], ["resume", "made"], ["report", "made"]):
        done = CliRunner().invoke(main, [command[0], "--runs", str(runs), *command[1:]])
        assert done.exit_code == 1, done.output
        assert done.stderr.count("\n") == 1, done.stderr
        assert str(folder.path) in done.stderr
    other = SearchFolder(runs, "other")
    with pytest.raises(OSError, match="Read-only") as failed:
        create_ledger(spec, other, SPACE)
    assert_clear(failed.value)
    disk.turn("rw")
    spec, again = resumed(runs)
    assert again.records == ledger.records
    add_trial(spec, again, 24, 4, "finished")
    again.close()


@contextmanager
def locked(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the database's write lock until a line comes or the block ends."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", LOCK, str(path)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.communicate("")


def test_a_lock_of_a_second_is_waited_for(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path / "runs")
    with locked(folder.database) as process:
        assert process.stdin is not None
        release = threading.Timer(1.0, os.write, (process.stdin.fileno(), b"\n"))
        release.start()
        fill(spec, ledger)
        release.join()
    ledger.close()
    assert len(ledger.records) == 4


def test_a_lock_that_stays_is_said_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT_S", 0.2)
    spec, folder, ledger = made_search(tmp_path / "runs")
    fill(spec, ledger)
    acknowledged = ledger.records
    with locked(folder.database):
        with pytest.raises(LedgerError, match=r"study\.db: .*database is locked") as refused:
            add_trial(spec, ledger, 16, 1)
        assert_clear(refused.value)
        assert open_and_close(folder) == acknowledged, "reading goes on"
    assert add_trial(spec, ledger, 24, 4, "finished") == len(acknowledged)
    with locked(folder.database):
        with pytest.raises(LedgerError, match="database is locked"):
            add_trial(spec, ledger, 16, 1)
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "_end_session", lambda _: pytest.fail("it waits again"))
            ledger.close()
    with locked(folder.database):
        with pytest.raises(LedgerError, match="database is locked") as refused:
            resumed(tmp_path / "runs")
        assert_clear(refused.value)
    spec, again = resumed(tmp_path / "runs")
    assert again.records == ledger.records
    again.close()


def open_and_close(folder: SearchFolder) -> list[TrialRecord]:
    _, ledger = open_ledger(folder)
    ledger.close()
    return ledger.records


def fake_search(folder: Path, runs: Path, what: str, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(FAKE), what, str(runs), "tiny", *more],
        cwd=folder,
        env={**environment(folder), "PYTHONPATH": str(FAKE.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def num_epochs(path: Path) -> int:
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    except sqlite3.OperationalError:
        return 0
    try:
        query = "select count(*) from trial_user_attributes where key like 'epoch:%'"
        return int(connection.execute(query).fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


def wait_for_epochs(path: Path, count: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + SEARCH_S
    while num_epochs(path) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the search did not come so far"
        time.sleep(0.05)  # between two looks at another process's file


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_whole_search_ends_clearly_and_resumes(
    disk: SmallDisk, tmp_path: Path, seed: int
) -> None:
    runs = disk.path / "runs"
    runs.mkdir()
    space = str(write_space(tmp_path))
    tracking = f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"
    process = fake_search(tmp_path, runs, "search", space, tracking, "stopping.name=none")
    try:
        reached = random.Random(f"whole {seed}").randint(1, 14)
        wait_for_epochs(runs / "tiny" / "study.db", reached, process)
        disk.fill()
        _, said = process.communicate(timeout=SEARCH_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.communicate()
    assert process.returncode == 1, said
    (line,) = [text for text in said.splitlines() if text.startswith("Error: ")]
    assert "study.db" in line
    assert "Traceback" not in said
    disk.empty()
    before = open_and_close(SearchFolder(runs, "tiny"))
    again = fake_search(tmp_path, runs, "resume", space)
    _, said = again.communicate(timeout=SEARCH_S)
    assert again.returncode == 0, said
    after = open_and_close(SearchFolder(runs, "tiny"))
    assert [r.state for r in after] == ["finished"] * 6
    assert all([e.epoch for e in r.epochs] == [1, 2, 3, 4] for r in after)
    for record in before:
        assert after[record.number].epochs[: len(record.epochs)] == record.epochs
