"""The power fails: what was not flushed to the disk is gone, what was acknowledged is not."""

import os
from pathlib import Path

import pytest
import torch
from ledgers import made_search

from search.spool import Spool
from search.study import Ledger
from trainables import checkpoint as checkpoints
from trainables.checkpoint import Checkpoint
from trainables.config import TrialConfig
from trainables.files import write_atomically


class Disk:
    """Remembers what each file held when it was last flushed, whatever it is called by now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._flushed: dict[int, bytes] = {}
        flush = os.fsync

        def fsync(file: int) -> None:
            flush(file)
            path = Path(f"/proc/self/fd/{file}")
            if path.is_file():
                self._flushed[os.fstat(file).st_ino] = path.read_bytes()

        monkeypatch.setattr(os, "fsync", fsync)

    def fail(self, folder: Path) -> None:
        """Leave each file of a folder with what was flushed of it."""
        for path in folder.rglob("*"):
            if path.is_file():
                path.write_bytes(self._flushed.get(path.stat().st_ino, b""))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are looked at through /proc, which this system lacks")
    return Disk(monkeypatch)


def saved(epoch: int) -> Checkpoint:
    weights = {"w": torch.arange(float(epoch + 3))}
    metrics = {"val_top1": 50.0 + epoch}
    return Checkpoint(TrialConfig(), epoch, weights, None, metrics, {"torch": "x"})


def test_the_last_checkpoint_is_there(tmp_path: Path, disk: Disk) -> None:
    for epoch in (1, 2, 3):
        path = checkpoints.epoch_path(tmp_path, epoch)
        checkpoints.save(path, saved(epoch))
        checkpoints.mark_best(path)
        checkpoints.prune(tmp_path)
    disk.fail(tmp_path)
    found = checkpoints.last_good(tmp_path)
    assert found is not None
    assert found.epoch == 3
    assert checkpoints.best_top1(tmp_path) == 53.0


def test_every_event_is_there(tmp_path: Path, disk: Disk) -> None:
    spool = Spool(tmp_path, "store")
    for number in range(5):
        assert spool.append("epoch", 1.0, {"trial": number})
    spool.acknowledge(spool.read())
    assert spool.append("epoch", 2.0, {"trial": 5})
    spool.close()
    disk.fail(tmp_path)
    again = Spool(tmp_path, "store")
    assert [event.body["trial"] for event in again.read().events] == [5]
    assert again.pending == 1
    again.close()


def test_a_replaced_file_has_its_content(tmp_path: Path, disk: Disk) -> None:
    for text in (b"first", b"second"):
        write_atomically(tmp_path / "manifest.json", text)
    disk.fail(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == b"second"


def test_the_database_flushes_each_change(tmp_path: Path) -> None:
    _, folder, ledger = made_search(tmp_path)
    assert isinstance(ledger, Ledger)
    with ledger._engine.connect() as connection:
        level = connection.exec_driver_sql("pragma synchronous").scalar()
    ledger.close()
    assert level in (2, 3), "FULL or EXTRA: with the write-ahead log less loses the newest changes"
    assert folder.database.is_file()
