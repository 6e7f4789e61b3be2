"""`spiketune sync` sends what a search could not, and leaves a running one alone."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow_server import free_port

from search.cli import main
from search.folder import SearchFolder
from search.recorded import create_ledger
from search.runner import tracker_config
from search.tracking import Tracker, default_uri
from spaces import load_search_space

DIGITS = Path(__file__).parents[2] / "spaces" / "digits.yaml"


def test_what_is_left_is_sent_once_the_driver_has_gone(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    spec, folder = load_search_space(DIGITS), SearchFolder(tmp_path, "late")
    ledger = create_ledger(spec, folder, DIGITS.read_text())
    away = tracker_config(spec, folder, ledger.search_id, f"http://127.0.0.1:{free_port()}")
    tracker = Tracker(replace(away, required=False))
    tracker.start()
    tracker.search_started({}, {}, {})
    started = ledger.add({}, {}, {}, "ab")
    tracker.trial_started(started)
    tracker.trial_epoch(0, 1, {"val_top1": 91.0}, 1001.0)
    tracker.search_ended("FINISHED", {}, {}, 1002.0)
    assert not tracker.close(0.1)

    command = ["sync", "late", "--runs", str(tmp_path)]
    held = CliRunner().invoke(main, command)
    assert held.exit_code == 2
    assert f"process {os.getpid()}" in held.output
    ledger.close()
    for _ in range(2):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
        assert "everything is sent" in done.output
    client = MlflowClient(default_uri(tmp_path))
    found = client.get_experiment_by_name(spec.tracking.experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    assert sorted(str(run.info.run_name) for run in runs) == ["00000", "late"]
    (trial,) = (run for run in runs if run.info.run_name == "00000")
    history = client.get_metric_history(trial.info.run_id, "val_top1")
    assert [(m.step, m.value, m.timestamp) for m in history] == [(1, 91.0, 1001_000)]


@pytest.mark.parametrize("left", [b"", b'{"crc":"0123'])
def test_a_search_that_has_nothing_left(tmp_path: Path, empty_store: Path, left: bytes) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    folder = SearchFolder(tmp_path, "done")
    create_ledger(load_search_space(DIGITS), folder, "").close()
    if left:
        folder.spool.mkdir()
        (folder.spool / "events.jsonl").write_bytes(left)
    done = CliRunner().invoke(main, ["sync", "done", "--runs", str(tmp_path)])
    assert done.exit_code == 0, done.output
