"""Ledger, leaderboard, Optuna and MLflow say what a naive account of the same reports says."""

import math
import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from optuna.storages import RDBStorage
from oracle import Oracle
from sequences import Sequence

from search.database import close_storage
from search.results import best, pareto, rank
from search.study import Ledger
from search.tracking import Tracker, TrackerConfig

DEADLINE_S = 60.0
STATES = {"running": "RUNNING", "finished": "COMPLETE", "stopped": "COMPLETE", "failed": "FAIL"}
STATUSES = {"running": "RUNNING", "finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
PROCESSES, SLICE = 2, 50


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder in memory where there is one: a sequence is a hundred flushed transactions."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def check_ledger(oracle: Oracle, ledger: Ledger) -> list[str]:
    found = [(r.number, r.state, r.reason, r.feasible) for r in ledger.records]
    expected = [(t.number, t.state, t.reason, t.feasible) for t in oracle.trials]
    wrong = [f"ledger: {f}, not {e}" for f, e in zip(found, expected, strict=True) if f != e]
    for record, trial in zip(ledger.records, oracle.trials, strict=True):
        epochs = [dict(e.metrics) for e in record.epochs]
        if not _same(epochs, trial.epochs):
            wrong.append(f"ledger: epochs of {trial.number}: {epochs}, not {trial.epochs}")
    return wrong


def check_results(oracle: Oracle, sequence: Sequence, ledger: Ledger) -> list[str]:
    objectives, records = sequence.spec.objectives, ledger.records
    top = best(records, objectives)
    ranking = oracle.ranking()
    pairs = [
        ("ranking", [r.number for r in rank(records, objectives)], ranking),
        ("best", top.number if top else None, ranking[0] if ranking else None),
        ("Pareto set", {r.number for r in pareto(records, objectives)}, oracle.pareto()),
    ]
    return [f"{what}: {f}, not {e}" for what, f, e in pairs if f != e]


def check_optuna(oracle: Oracle, database: Path) -> list[str]:
    """What any Optuna tool reads from the file."""
    storage = RDBStorage(
        f"sqlite:///{database}", skip_table_creation=True, skip_compatibility_check=True
    )
    try:
        study = optuna.load_study(study_name="made", storage=storage)
        found = [(t.number, t.state.name, t.values) for t in study.trials]
        front = {t.number for t in study.best_trials}
    finally:
        close_storage(storage)
    expected = [(t.number, STATES[t.state], oracle.values(t)) for t in oracle.trials]
    wrong = [f"Optuna: {f}, not {e}" for f, e in zip(found, expected, strict=True) if f != e]
    return wrong + ([] if front == oracle.pareto() else [f"Optuna's Pareto set: {front}"])


def check_told(oracle: Oracle, runs: dict[int, dict[str, Any]]) -> list[str]:
    """What the tracker was told."""
    wrong = []
    for trial in oracle.trials:
        run = runs[trial.number]
        expected = {
            "status": STATUSES[trial.state],
            "metrics": oracle.latest(trial),
            "steps": list(range(1, len(trial.epochs) + 1)),
        }
        told = {name: run[name] for name in expected}
        wrong += [] if told == expected else [f"told of {trial.number}: {told}, not {expected}"]
        tags = (run["tags"].get("spiketune.nonfinite"), run["tags"]["spiketune.state"])
        if tags != (oracle.nonfinite(trial), trial.state):
            wrong.append(f"told of {trial.number}: {tags}")
    return wrong


def check_sequence(home: Path, seed: int) -> list[str]:
    """Everything about one sequence that is not as the oracle says."""
    sequence = Sequence(home, seed)
    try:
        ledger = sequence.run()
        oracle = sequence.oracle
        wrong = sequence.wrong + check_ledger(oracle, ledger)
        if not wrong:
            wrong += check_results(oracle, sequence, ledger)
            wrong += check_optuna(oracle, sequence.folder.database)
            wrong += check_told(oracle, sequence.recorder.runs)
    finally:
        sequence.close()
    return [f"sequence {seed}: {what}" for what in wrong]


def check_slice(home: Path, seeds: range) -> list[str]:
    own = home / f"from-{seeds.start}"
    own.mkdir()
    wrong = [what for seed in seeds for what in check_sequence(own, seed)]
    shutil.rmtree(own)
    return wrong


def test_everyone_agrees_on_results_that_go_wrong(home: Path) -> None:
    assert check_slice(home, range(12)) == []


@pytest.mark.slow
def test_ten_thousand_sequences_of_results_agree(home: Path) -> None:
    slices = [range(start, start + SLICE) for start in range(1000, 11_000, SLICE)]
    # A process keeps something of each database that it has opened.
    with multiprocessing.get_context("spawn").Pool(PROCESSES, maxtasksperchild=10) as pool:
        found = pool.imap_unordered(partial(check_slice, home), slices)
        assert [what for wrong in found for what in wrong] == []


def track_sequence(home: Path, seed: int, uri: str) -> list[str]:
    """A sequence through the real tracker into a real store, and what differs there."""
    name = f"sequence-{seed}"
    tracker = Tracker(TrackerConfig(uri, name, name, name, home / "spool" / name))
    tracker.start()
    sequence = Sequence(home, seed, tracker)
    try:
        ledger = sequence.run()
        assert tracker.close(DEADLINE_S)
        wrong = sequence.wrong + check_ledger(sequence.oracle, ledger)
        wrong += check_mlflow(sequence, MlflowClient(uri), name)
    finally:
        sequence.close()
    return [f"sequence {seed}: {what}" for what in wrong]


def check_mlflow(sequence: Sequence, client: MlflowClient, name: str) -> list[str]:
    oracle = sequence.oracle
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    places = [experiment.experiment_id]
    runs = {r.info.run_name: r for r in client.search_runs(places) if r.info.run_name != name}
    wrong = [] if len(runs) == len(oracle.trials) else [f"MLflow has the runs {sorted(runs)}"]
    for trial in oracle.trials:
        run = runs[f"{trial.number:05d}"]
        expected = (STATUSES[trial.state], oracle.latest(trial), oracle.nonfinite(trial))
        tags = run.data.tags
        found = (run.info.status, run.data.metrics, tags.get("spiketune.nonfinite"))
        wrong += [] if found == expected else [f"MLflow: {trial.number}: {found}, not {expected}"]
        reason = tags.get("spiketune.reason") or ""
        if (tags["spiketune.state"], reason) != (trial.state, trial.reason):
            wrong.append(f"MLflow: tags of {trial.number}: {tags}")
    if sequence.rules.constraint is None:
        ways = {"max": "DESC", "min": "ASC"}
        order = [f"metrics.{m} {ways[mode]}" for m, mode in sequence.rules.objectives]
        ended = client.search_runs(
            places,
            "attributes.status = 'FINISHED' and tags.`spiketune.trial` != 'search'",
            order_by=[*order, "attributes.run_name ASC"],
        )
        order_found = [int(r.info.run_name) for r in ended]
        if order_found != oracle.ranking():
            wrong.append(f"MLflow's order: {order_found}")
    return wrong


@pytest.fixture
def store(home: Path) -> str:
    """A migrated store in memory."""
    uri = f"sqlite:///{home / 'mlflow.db'}"
    tracker = Tracker(TrackerConfig(uri, "other", "other", "0", home / "spool" / "other"))
    tracker.start()
    assert tracker.close(DEADLINE_S)
    return uri


def test_mlflow_agrees_too(home: Path, store: str) -> None:
    assert [what for seed in range(3) for what in track_sequence(home, seed, store)] == []


@pytest.mark.slow
def test_mlflow_agrees_on_many_sequences(home: Path, store: str) -> None:
    seeds = range(20_000, 20_300)
    assert [what for seed in seeds for what in track_sequence(home, seed, store)] == []


def _same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> bool:
    """Equal, NaN equal to itself."""

    def plain(epochs: list[dict[str, float]]) -> list[dict[str, Any]]:
        return [{k: "nan" if math.isnan(v) else v for k, v in e.items()} for e in epochs]

    return plain(found) == plain(expected)
