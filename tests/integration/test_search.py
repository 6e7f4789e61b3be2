"""The main job end to end: real Ray, real training, real MLflow stores, real ledger."""

import os
import shutil
import signal
import sqlite3
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow_server import MlflowServer
from processes import PATIENCE_S, ray_cluster, wait_for, worker_of
from tiny_search import running, spiketune, spiketune_json, write_space

from search.cli import main
from search.folder import SearchFolder
from search.records import EpochRecord, TrialRecord
from search.results import pareto
from search.study import Ledger
from spaces.schema import Objective

OBJECTIVES = (
    Objective(metric="val_top1", mode="max"),
    Objective(metric="energy_mj", mode="min"),
)


SERIAL = ("--set", "resources.concurrent=1")
EPOCHS = 4  # as in the tiny search
LONG = 12


@pytest.fixture(scope="module")
def finished(finished_search: Path) -> Path:
    """A folder in which a search has run to its end, one trial at a time."""
    told = (finished_search / "stdout.txt").read_text()
    assert "Leaderboard" in told
    assert "Pareto set" in told
    assert "spiketune train --from tiny:" in told
    return finished_search


def records_of(folder: Path, name: str = "tiny") -> list[TrialRecord]:
    ledger = Ledger.open(f"sqlite:///{folder / 'runs' / name / 'study.db'}", name, OBJECTIVES)
    records = ledger.records
    ledger.close()
    return records


def mlflow_runs(uri: str, experiment: str = "tiny") -> tuple[list[Run], list[Run]]:
    """Parents and children of an experiment."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = list(client.search_runs([found.experiment_id]))
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    return parents, [r for r in runs if "mlflow.parentRunId" in r.data.tags]


def assert_tracked_exactly(uri: str, records: list[TrialRecord], experiment: str = "tiny") -> None:
    """Every trial has one run with its parameters, every epoch's metrics once, and its state."""
    client = MlflowClient(uri)
    parents, children = mlflow_runs(uri, experiment)
    assert len(parents) == 1
    assert parents[0].info.status == "FINISHED"
    by_name = {run.info.run_name: run for run in children}
    assert sorted(by_name) == [r.name for r in records]
    assert len(children) == len(records)
    for record in records:
        run = by_name[record.name]
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert run.data.tags["spiketune.state"] == record.state
        assert run.info.status == {"failed": "FAILED"}.get(record.state, "FINISHED")
        assert run.data.params.keys() == record.params.keys()
        history = client.get_metric_history(run.info.run_id, "val_top1")
        assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
            (e.epoch, e.metrics["val_top1"]) for e in record.epochs
        ]
        for metric, epoch in zip(sorted(history, key=lambda m: m.step), record.epochs, strict=True):
            assert abs(metric.timestamp - 1000 * epoch.time_s) <= 1.0


def test_ledger_mlflow_optuna_and_best_agree(finished: Path) -> None:
    tree = spiketune_json(finished, "best", "tiny")
    records = records_of(finished)
    assert len(records) == 6
    assert {r.state for r in records} <= {"finished", "stopped"}
    assert_tracked_exactly(f"sqlite:///{finished / 'runs' / 'mlflow.db'}", records)

    client = MlflowClient(f"sqlite:///{finished / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    order = ["metrics.val_top1 DESC", "metrics.energy_mj ASC", "attributes.run_name ASC"]
    (top,) = client.search_runs([experiment.experiment_id], order_by=order, max_results=1)
    assert top.data.tags["spiketune.trial"] == tree["best"]["name"]
    assert top.data.metrics["val_top1"] == tree["best"]["metrics"]["val_top1"]

    study = optuna.load_study(
        study_name="tiny", storage=f"sqlite:///{finished / 'runs' / 'tiny' / 'study.db'}"
    )
    assert {t.number for t in study.best_trials} == {row["number"] for row in tree["pareto"]}
    best = max(study.best_trials, key=lambda t: (t.values[0], -t.values[1]))
    assert best.number == tree["best"]["number"]


def test_early_stopping_followed_its_rule(finished: Path) -> None:
    records = records_of(finished)
    assert any(r.state == "stopped" for r in records)
    for record in records:
        if record.state == "finished":
            assert len(record.epochs) == EPOCHS
        else:
            assert record.reason == f"asha@{len(record.epochs)}"


def test_every_result_carries_what_made_it(finished: Path) -> None:
    folder = finished / "runs" / "tiny"
    for name in ("search.yaml", "resolved.yaml", "manifest.json", "report.html", "report.json"):
        assert (folder / name).stat().st_size > 0
    for record in records_of(finished):
        assert record.config["train"]["seed"] == 42
        assert record.config["model"]["width"] == record.params["model.width"]
        kept = record.state == "finished" or record in pareto(records_of(finished), OBJECTIVES)
        assert (folder / "trials" / record.name / "best.safetensors").is_file() == kept
    assert not list(finished.rglob("*.pkl"))


def test_a_taken_name_is_refused(finished: Path) -> None:
    before = (finished / "runs" / "tiny" / "study.db").read_bytes()
    done = spiketune(finished, "search", "tiny.yaml", code=2)
    assert "exists already" in done.stderr
    assert "Traceback" not in done.stderr
    assert (finished / "runs" / "tiny" / "study.db").read_bytes() == before


def test_an_address_where_nothing_answers_is_told_at_once(tmp_path: Path) -> None:
    write_space(tmp_path)
    done = spiketune(tmp_path, "search", "tiny.yaml", "--address", "127.0.0.1:1", code=1)
    assert "must answer at 127.0.0.1:1, but: " in done.stderr
    for given in ("localhost", ":6379", "ray://127.0.0.1:10001", "head:0", "head:65536"):
        wrong = CliRunner().invoke(main, ["resume", "tiny", "--address", given])
        assert isinstance(wrong.exception, SystemExit)
        assert (wrong.exit_code, "must be `auto` or host:port" in wrong.stderr) == (2, True), given
    assert "Traceback" not in done.stderr
    assert not SearchFolder(tmp_path / "runs", "tiny").exists


def test_train_from_a_trial_gives_its_numbers_and_evaluates(finished: Path) -> None:
    tree = spiketune_json(finished, "best", "tiny")
    number = tree["best"]["number"]
    spiketune(finished, "train", "--from", f"tiny:{number}", "--out", "again")
    epochs = tree["best"]["epochs"]
    checkpoint = f"again/epoch-{EPOCHS:04d}.safetensors"
    found = spiketune_json(finished, "evaluate", checkpoint, "--split", "val")
    if epochs == EPOCHS:
        assert found["val_top1"] == tree["best"]["metrics"]["val_top1"]
        assert found["energy_mj"] == tree["best"]["metrics"]["energy_mj"]
    again = spiketune(finished, "train", "--from", f"tiny:{number}", "--out", "again")
    assert f"continuing after epoch {EPOCHS}" in again.stdout
    test = spiketune_json(finished, "evaluate", checkpoint)
    assert test["split"] == "test"
    assert test["samples"] == 359


def test_status_lists_searches(finished: Path) -> None:
    (row,) = spiketune_json(finished, "status")
    assert row["name"] == "tiny"
    assert row["trials"] == 6
    assert row["states"]["running"] == 0
    unknown = spiketune(finished, "status", "nothing", code=2)
    assert "no search named 'nothing'" in unknown.stderr


def test_the_same_seed_one_at_a_time_proposes_and_measures_the_same(
    finished: Path, tmp_path: Path, empty_store: Path
) -> None:
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    spiketune(tmp_path, "search", str(write_space(tmp_path)), *SERIAL)
    one, two = records_of(finished), records_of(tmp_path)
    assert [r.config for r in one] == [r.config for r in two]
    assert [measured(r.epochs) for r in one] == [measured(r.epochs) for r in two]


def measured(epochs: tuple[EpochRecord, ...]) -> list[tuple[float, ...]]:
    names = ("val_top1", "energy_mj", "train_loss")
    return [tuple(e.metrics[name] for name in names) for e in epochs]


@pytest.mark.slow  # with trials that do not train: tests/chaos/test_signals.py
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_signal_ends_in_order_and_resume_completes(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    space = str(write_space(tmp_path))
    long = ("--set", f"trial.train.epochs={LONG}", "--set", "stopping.name=none")
    with running(tmp_path, "search", space, *long, "--set", "budget.trials=3") as process:
        wait_for(lambda: num_epochs(tmp_path) >= 3, process)
        os.kill(process.pid, number)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, output
    assert "spiketune resume tiny" in output
    assert "Traceback" not in output
    uri = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    parents, children = mlflow_runs(uri)
    assert {r.info.status for r in (*parents, *children)} == {"KILLED"}
    before = {r.number: r.epochs for r in records_of(tmp_path)}

    spiketune(tmp_path, "resume", "tiny")
    records = records_of(tmp_path)
    assert [r.state for r in records] == ["finished"] * 3
    for record in records:
        assert [e.epoch for e in record.epochs] == list(range(1, LONG + 1))
    for index, epochs in before.items():
        assert records[index].epochs[: len(epochs)] == epochs
    assert_tracked_exactly(uri, records)


@pytest.mark.slow  # with trials that do not train: tests/chaos/test_worker_kills.py
def test_a_killed_worker_costs_an_attempt_not_the_trial(tmp_path: Path) -> None:
    space = str(write_space(tmp_path))
    long = ("--set", f"trial.train.epochs={LONG}", "--set", "stopping.name=none")
    with running(tmp_path, "search", space, *long, "--set", "budget.trials=2") as process:
        wait_for(lambda: num_epochs(tmp_path) >= 3, process)
        os.kill(worker_of(process.pid), signal.SIGKILL)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    records = records_of(tmp_path)
    assert [r.state for r in records] == ["finished"] * 2
    assert sorted(r.attempt for r in records) == [1, 2]
    assert all([e.epoch for e in r.epochs] == list(range(1, LONG + 1)) for r in records)
    assert_tracked_exactly(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}", records)


@pytest.mark.slow  # with trials that do not train: tests/chaos/test_mlflow_faults.py
def test_over_http_on_a_cluster_that_runs(tmp_path: Path, mlflow_server: MlflowServer) -> None:
    space = str(write_space(tmp_path))
    with ray_cluster(tmp_path) as address:
        spiketune(
            tmp_path,
            *("search", space, "--address", address),
            *("--set", f"tracking.uri={mlflow_server.uri}", "--set", "budget.trials=3"),
        )
    assert_tracked_exactly(mlflow_server.uri, records_of(tmp_path))


def num_epochs(folder: Path, name: str = "tiny") -> int:
    path = folder / "runs" / name / "study.db"
    if not path.is_file():
        return 0
    query = "select count(*) from trial_user_attributes where key like 'epoch:%'"
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    except sqlite3.OperationalError:
        return 0
    try:
        return int(connection.execute(query).fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # the tables are being made
    finally:
        connection.close()
