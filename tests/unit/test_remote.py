"""Checkpoints in a store: whole, the newest that verifies, and nothing left on the machine."""

import logging
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from s3_server import BUCKET
from test_checkpoint import CONFIG

from trainables import checkpoint as checkpoints
from trainables.config import TrialConfig
from trainables.errors import InputError, StoreError
from trainables.files import BEST
from trainables.launch import train_alone
from trainables.parallel import ALONE
from trainables.remote import (
    PATIENCE_VARIABLE,
    StoredFolder,
    Workspace,
    sweep,
    train_stored,
    working_folder,
    working_home,
)
from trainables.trial import _final_failure, _newest

PLAIN = checkpoints.Checkpoint(
    config=TrialConfig(),
    epoch=0,
    model={"weight": torch.arange(6.0)},
    optimizer=None,
    metrics={"val_top1": 50.0},
    versions={},
)


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StoredFolder:
    """An empty folder of a search, in both kinds of store."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return StoredFolder(f"s3://{BUCKET}/{tmp_path.name}", "made/id", 0.0)
    (tmp_path / "store").mkdir()
    return StoredFolder((tmp_path / "store").as_uri(), "made/id", 0.0)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def save(folder: Path, epoch: int, *, is_best: bool = False) -> None:
    """What `TrialRun.save` does."""
    path = checkpoints.epoch_path(folder, epoch)
    checkpoints.save(path, replace(PLAIN, epoch=epoch))
    if is_best:
        checkpoints.mark_best(path)
    checkpoints.prune(folder)


def trained(store: StoredFolder, folder: Path, best: int, epochs: int) -> Workspace:
    workspace = Workspace(store, folder)
    for epoch in range(1, epochs + 1):
        save(folder, epoch, is_best=epoch == best)
        workspace.publish()
    return workspace


def test_files_go_there_and_come_back(store: StoredFolder, tmp_path: Path) -> None:
    trial, other = store.below("00001"), store.below("00002")
    assert trial.names() == []
    trial.remove("a")
    trial.clear()
    with pytest.raises(FileNotFoundError, match="00001/a: no such file"):
        trial.get("a", tmp_path / "a")
    for text in ("first", "second"):
        trial.put(written(tmp_path / "a", text))
    other.put(written(tmp_path / "b", "b"))
    assert (trial.names(), other.names()) == (["a"], ["b"])
    copy = tmp_path / "deep" / "copy"
    trial.get("a", copy)
    assert copy.read_text() == "second"
    inode = copy.stat().st_ino
    trial.get("a", copy)
    assert copy.stat().st_ino == inode, "it was there already"
    trial.clear()
    assert (trial.names(), other.names()) == ([], ["b"])
    assert StoredFolder(other.url, other.path).names() == ["b"]


def test_a_probe_leaves_nothing(store: StoredFolder) -> None:
    store.probe()
    assert store.names() == []


def test_two_epochs_and_the_best_are_kept(store: StoredFolder, here: Path) -> None:
    trained(store, here, best=2, epochs=4)
    assert sorted(store.names()) == [BEST, "epoch-0003.safetensors", "epoch-0004.safetensors"]


def test_the_newest_and_the_best_are_fetched(
    store: StoredFolder, here: Path, tmp_path: Path
) -> None:
    trained(store, here, best=2, epochs=4)
    there = tmp_path / "there"
    there.mkdir()
    workspace = Workspace(store, there)
    workspace.fetch(5)
    assert sorted(path.name for path in there.iterdir()) == [BEST, "epoch-0004.safetensors"]
    found = checkpoints.last_good(there)
    assert found is not None
    assert found.epoch == 4
    assert checkpoints.load(there / BEST).epoch == 2
    workspace.publish()
    assert len(store.names()) == 3, "what is not here is dropped when there is news only"
    save(there, 5)
    workspace.publish()
    assert sorted(store.names()) == [BEST, "epoch-0004.safetensors", "epoch-0005.safetensors"]


@pytest.mark.parametrize("how", ["cut", "flip"])
def test_a_damaged_epoch_is_passed_over_and_written_anew(
    store: StoredFolder, here: Path, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    trained(store, here, best=1, epochs=3)
    path = checkpoints.epoch_path(here, 3)
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data[: len(data) // 2] if how == "cut" else data)
    store.put(path)
    there = tmp_path / "there"
    there.mkdir()
    workspace = Workspace(store, there)
    workspace.fetch(4)
    assert [p.name for p in there.glob("epoch-*")] == ["epoch-0002.safetensors"]
    assert "epoch before" in caplog.text
    save(there, 3)
    workspace.publish()
    store.get(path.name, path)
    assert checkpoints.load(path).epoch == 3


@pytest.mark.parametrize(("newest", "left"), [(4, 3), (3, 1), (1, 0), (0, 0)])
def test_what_the_ledger_has_lost_is_not_continued(
    store: StoredFolder, here: Path, tmp_path: Path, newest: int, left: int
) -> None:
    trained(store, here, best=2, epochs=4)
    there = tmp_path / "there"
    there.mkdir()
    Workspace(store, there).fetch(newest, is_owner=False)
    assert len(store.names()) == 3, "another process's to delete"
    Workspace(store, there).fetch(newest)
    found = checkpoints.last_good(there)
    assert (found.epoch if found else 0) == (newest if left else 0)
    assert (there / BEST).exists() == (left == 3)
    assert len(store.names()) == left


def test_the_best_goes_before_the_epoch(tmp_path: Path, here: Path) -> None:
    store = StoredFolder(str(tmp_path / "store"), "made", 0.0)
    (tmp_path / "store" / "made" / "epoch-0001.safetensors" / "in the way").mkdir(parents=True)
    save(here, 1, is_best=True)
    with pytest.raises(StoreError, match="made must be usable"):
        Workspace(store, here).publish()
    assert BEST in store.names()


def test_an_upload_that_breaks_off_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = StoredFolder(str(tmp_path / "store"), "made", 0.0)
    large = tmp_path / "large"
    large.write_bytes(b"old" * 1000)
    store.put(large)
    large.write_bytes(b"new" * 100_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, limits[1]))
    try:
        with pytest.raises(StoreError, match="made must be usable"):
            store.put(large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    store.get("large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"old" * 1000


def test_a_short_outage_is_waited_for(tmp_path: Path) -> None:
    store = StoredFolder(str(tmp_path / "store"), "made", 60.0)

    class Mend(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002  # logging's
            (tmp_path / "store").mkdir()

    logger, mend = logging.getLogger("trainables.remote"), Mend()
    logger.addHandler(mend)
    try:
        store.put(written(tmp_path / "a", "a"))
    finally:
        logger.removeHandler(mend)
    assert store.names() == ["a"]


def test_a_long_outage_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    store = StoredFolder((tmp_path / "store").as_uri() + "?", "made/id")
    assert store.patience_s == 0.5
    with pytest.raises(StoreError, match=f"file://{tmp_path}/store/made/id must be usable") as told:
        store.put(written(tmp_path / "a", "a"))
    assert "on every machine" in str(told.value)
    assert "\n" not in str(told.value)
    assert "again in 0.25 s" in caplog.text
    assert not (tmp_path / "store").exists(), "it would be on this machine's disk"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://bucket/x?bogus=1&region=us-east-1", "bogus"),
        ("hdfs://127.0.0.1:1/x", "lib"),
    ],
)
def test_what_pyarrow_cannot_do_is_told(url: str, reason: str) -> None:
    with pytest.raises(StoreError, match=reason) as told:
        StoredFolder(url, patience_s=0.0).probe()
    assert "\n" not in str(told.value)


def test_working_folders_go_with_their_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    script = (
        "import sys; from trainables.remote import working_folder\n"
        "with working_folder() as f: (f / 'x').touch(); print(f, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with working_folder() as mine:
            assert mine.parent == theirs.parent == working_home()
            sweep()
            assert mine.is_dir()
            assert (theirs / "x").exists(), "its process lives"
        assert not mine.exists()
        other.kill()
        other.wait()
        assert theirs.is_dir()
    sweep()
    assert not theirs.exists()
    assert working_home().stat().st_mode & 0o077 == 0


def test_an_epoch_is_told_when_it_is_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "store").mkdir()
    store = StoredFolder(str(tmp_path / "store"), "made/id/00000", 0.0)
    alone = train_alone(CONFIG, tmp_path / "alone")
    began = train_stored(CONFIG, store, 0, ALONE)
    assert told(next(began)) == told(next(alone))
    assert sorted(store.names()) == [BEST, "epoch-0001.safetensors"]
    began.close()  # a trial that is stopped
    assert working_folders() == []
    for epoch in train_stored(CONFIG, store, 1, ALONE):
        assert f"epoch-{epoch['epoch']:04d}.safetensors" in store.names()
        if epoch["epoch"] > 1:  # the restored one is told again
            assert told(epoch) == told(next(alone))
        # A worker that is kept for the next trial keeps nothing of this one.
        assert len(working_folders()) == (0 if epoch["done"] else 1)
    assert next(alone, None) is None


def told(epoch: dict[str, Any]) -> list[float]:
    return [epoch[name] for name in ("epoch", "train_loss", "val_loss", "val_top1", "energy_mj")]


def working_folders() -> list[Path]:
    return [path for path in working_home().iterdir() if path.is_dir()]


def test_what_an_assignment_may_continue() -> None:
    first, again = {"attempt": 1, "known_epochs": 0}, {"attempt": 2, "known_epochs": 3}
    assert (_newest(first), _newest(again)) == (1, 4)
    stored = {"store": {"url": "/x", "path": "y"}}
    assert _newest(first | stored) == 0, "what lies there is of a trial that the ledger has lost"
    assert _newest(again | stored) == 4


def test_a_store_that_fails_is_no_reason_to_give_a_trial_up() -> None:
    assert _final_failure(StoreError("s3://bucket must be usable")) is None
    assert _final_failure(InputError("no data")) is not None
