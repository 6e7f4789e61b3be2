"""Searches whose checkpoints lie in an object store: no trial sees the search's folder."""

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import mlflow
import pytest
import torch
from processes import PATIENCE_S, kill_all, ray_cluster, ray_node, wait_for, worker_of
from s3_server import BUCKET, S3Server
from test_search import assert_tracked_exactly, measured, mlflow_runs, num_epochs, records_of
from tiny_search import running, spiketune, spiketune_json, write_space

from search import open_search
from search.records import TrialRecord
from search.results import pareto
from search.retries import num_charged
from spaces.schema import Objective
from trainables.config import TrialConfig
from trainables.files import BEST
from trainables.launch import train_alone
from trainables.remote import StoredFolder

OBJECTIVES = (
    Objective(metric="val_top1", mode="max"),
    Objective(metric="energy_mj", mode="min"),
)
LONG = 8
SERIAL = ("resources.concurrent=1",)
EVERY_EPOCH = ("stopping.name=none", f"trial.train.epochs={LONG}")
URL = f"s3://{BUCKET}/prefix"


def options(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def trials_in(url: str) -> StoredFolder:
    """The store's folder of the one search that was run."""
    named = StoredFolder(url, "tiny")
    (search_id,) = named.names()
    return named.below(search_id)


def assert_as_trained_alone(records: Sequence[TrialRecord], folder: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a trial of one CPU has
    try:
        for record in records:
            trial = TrialConfig.model_validate(record.config)
            again = list(train_alone(trial, folder / record.name))
            assert [e.epoch for e in record.epochs] == [result["epoch"] for result in again]
            for epoch, result in zip(record.epochs, again, strict=True):
                for name in ("val_top1", "energy_mj", "train_loss"):
                    assert epoch.metrics[name] == result[name], (record.number, epoch.epoch, name)
    finally:
        torch.set_num_threads(threads)


def assert_nothing_here(folder: Path) -> None:
    """No checkpoint in the search's folder or in a working folder."""
    assert not list((folder / "runs" / "tiny" / "trials").iterdir())
    assert not list(folder.glob("spiketune-*-*/*/"))


@pytest.mark.slow  # with trials that do not train: tests/chaos/test_stored_kills.py
def test_a_killed_worker_s_trial_goes_on_from_the_store(tmp_path: Path, s3: S3Server) -> None:
    space = str(write_space(tmp_path))
    arguments = options(f"storage.checkpoints={URL}", *SERIAL, *EVERY_EPOCH, "budget.trials=1")
    with running(tmp_path, "search", space, *arguments) as process:
        wait_for(lambda: num_epochs(tmp_path) >= 2, process)
        os.kill(worker_of(process.pid), signal.SIGKILL)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    records = records_of(tmp_path)
    assert [a.reason for a in records[0].attempts] == ["worker_lost", ""]
    assert_as_trained_alone(records, tmp_path / "again")
    assert_nothing_here(tmp_path)
    uri = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    assert_tracked_exactly(uri, records)
    assert_fetched(tmp_path, uri, records)


@pytest.mark.slow
def test_a_killed_driver_s_trials_go_on_from_the_store(tmp_path: Path, s3: S3Server) -> None:
    url = f"{URL}-driver"
    space = str(write_space(tmp_path))
    arguments = options(f"storage.checkpoints={url}", *EVERY_EPOCH, "budget.trials=2")
    with running(tmp_path, "search", space, *arguments) as process:
        wait_for(lambda: num_epochs(tmp_path) >= 5, process)
        kill_all(process.pid)
    before = [r.epochs for r in records_of(tmp_path)]
    spiketune(tmp_path, "resume", "tiny")
    records = records_of(tmp_path)
    assert {r.state for r in records} == {"finished"}
    for epochs, record in zip(before, records, strict=False):
        assert record.epochs[: len(epochs)] == epochs
    assert_as_trained_alone(records, tmp_path / "again")
    assert_nothing_here(tmp_path)
    assert sorted(trials_in(url).names()) == [r.name for r in records]


def assert_fetched(folder: Path, uri: str, records: Sequence[TrialRecord]) -> None:
    """The driver's side gets the same bytes from the store, where nothing else is."""
    store = trials_in(URL)
    assert sorted(store.names()) == [r.name for r in records if r.state == "finished"]
    found = open_search(folder / "runs" / "tiny")
    top = found.best
    assert top is not None
    path = top.checkpoint
    assert path is not None
    found.load_network()
    run = next(r for r in mlflow_runs(uri)[1] if r.info.run_name == f"{top.number:05d}")
    kept = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id,
        artifact_path=f"checkpoint/{BEST}",
        dst_path=str(folder / "kept"),
        tracking_uri=uri,
    )
    assert Path(kept).read_bytes() == path.read_bytes()
    again = spiketune_json(folder, "evaluate", str(path), "--split", "val")
    highest = max(e.metrics["val_top1"] for e in records[top.number].epochs)
    assert again["val_top1"] == highest


def test_a_store_that_refuses_is_found_out_before_anything_is_written(tmp_path: Path) -> None:
    space = str(write_space(tmp_path))
    wrong = options(f"storage.checkpoints={tmp_path}/missing")
    done = spiketune(tmp_path, "search", space, *wrong, code=2)
    assert f"storage.checkpoints: {tmp_path}/missing must be usable" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "tiny").exists()
    checked = spiketune(tmp_path, "check", space, *wrong)
    assert "valid" in checked.stdout, "which asks no network"


@pytest.mark.slow
def test_one_at_a_time_a_search_does_the_same_with_and_without(
    finished_tiny: Path, tmp_path: Path, s3: S3Server
) -> None:
    arguments = options(f"storage.checkpoints={URL}-same", *SERIAL)
    spiketune(tmp_path, "search", str(write_space(tmp_path)), *arguments)
    one, two = records_of(finished_tiny), records_of(tmp_path)
    assert [r.config for r in one] == [r.config for r in two]
    assert [measured(r.epochs) for r in one] == [measured(r.epochs) for r in two]
    assert_nothing_here(tmp_path)
    store = trials_in(f"{URL}-same")
    front = {r.number for r in pareto(two, OBJECTIVES)}
    kept = {r.name for r in two if r.state == "finished" or r.number in front}
    assert set(store.names()) == kept
    shutil.rmtree(tmp_path / "runs" / "tiny" / "trials")
    spiketune(tmp_path, "best", "tiny")
    quick = options("train.epochs=1", "train.warmup_epochs=0", "train.cooldown_epochs=0")
    spiketune(tmp_path, "train", "--from", "tiny", *quick)
    assert "Registered" in spiketune(tmp_path, "promote", "tiny").stdout


@pytest.mark.slow
def test_an_outage_that_outlasts_the_patience_costs_an_attempt(tmp_path: Path) -> None:
    root, away = tmp_path / "store", tmp_path / "away"
    root.mkdir()
    stored = f"storage.checkpoints={root}"
    arguments = options(stored, *SERIAL, *EVERY_EPOCH, "budget.trials=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPIKETUNE_STORE_PATIENCE_S", "0")
        with running(tmp_path, "search", str(write_space(tmp_path)), *arguments) as process:
            wait_for(lambda: num_epochs(tmp_path) >= 2, process)
            root.rename(away)
            wait_for(lambda: _lost(tmp_path) >= 2, process)
            away.rename(root)
            output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert "store_unavailable" in output
    assert str(root) in output
    records = records_of(tmp_path)
    assert {r.state for r in records} == {"finished"}
    assert {a.reason for r in records for a in r.attempts} == {"store_unavailable", ""}
    assert sum(num_charged(r.attempts) for r in records) == 0
    assert_as_trained_alone(records, tmp_path / "again")


def _lost(folder: Path) -> int:
    return sum(bool(a.reason) for r in records_of(folder) for a in r.attempts)


@pytest.mark.slow
def test_a_trial_of_a_lost_node_goes_on_on_another(tmp_path: Path, s3: S3Server) -> None:
    # Machines that share nothing: each has a temporary folder of its own.
    one, two = ({"TMPDIR": str(tmp_path / name)} for name in ("one", "two"))
    for place in (one, two):
        Path(place["TMPDIR"]).mkdir()
    settings = (f"storage.checkpoints={URL}-node", *SERIAL, *EVERY_EPOCH, "budget.trials=1")
    arguments = options(*settings)
    with ray_cluster(tmp_path, 0) as address:
        node = [f"--address={address}", "--num-cpus=1"]
        with ray_node(tmp_path, node, one) as lost:
            space = ("search", str(write_space(tmp_path)), "--address", address)
            with running(tmp_path, *space, *arguments) as process:
                wait_for(lambda: num_epochs(tmp_path) >= 2, process)
                with ray_node(tmp_path, node, two):
                    kill_all(lost.pid)
                    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    (record,) = records_of(tmp_path)
    assert record.attempt > 1
    assert num_charged(record.attempts) == 0
    assert_as_trained_alone([record], tmp_path / "again")
    assert not list((tmp_path / "runs" / "tiny" / "trials").iterdir())


@pytest.mark.slow  # Ray Train starts some ten processes a trial
def test_processes_that_share_a_trial_have_its_checkpoints_in_the_store(
    tmp_path: Path, s3: S3Server
) -> None:
    shared = ("resources.cpus=2", "resources.processes=2", "trial.train.epochs=6")
    arguments = options(
        f"storage.checkpoints={URL}-shared", *shared, "budget.trials=1", "stopping.name=none"
    )
    with running(tmp_path, "search", str(write_space(tmp_path)), *arguments) as process:
        wait_for(lambda: num_epochs(tmp_path) >= 2, process)
        kill_all(process.pid)
    before = records_of(tmp_path)[0].epochs
    spiketune(tmp_path, "resume", "tiny", timeout_s=900)
    (record,) = records_of(tmp_path)
    assert record.state == "finished"
    assert record.epochs[: len(before)] == before
    assert [e.epoch for e in record.epochs] == list(range(1, 7))
    store = trials_in(f"{URL}-shared")
    assert store.names() == [record.name], "and nothing of Ray Train's"
    names = store.below(record.name).names()
    assert sorted(names) == [BEST, "epoch-0005.safetensors", "epoch-0006.safetensors"]
    assert_nothing_here(tmp_path)
