"""Searches of fake trials that faults are done to, and what must hold of them afterwards."""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fake_trial
import forked
import optuna
from forked_writer import fork_writer
from mlflow import MlflowClient
from mlflow.entities import Run
from processes import kill_all
from promotions import assert_promotions_followed
from tiny_search import GONE_S, environment

from search import tracking_process
from search.folder import SearchFolder
from search.recorded import open_ledger
from search.records import TrialRecord
from search.results import best, pareto
from spaces.schema import Objective

OBJECTIVES = (
    Objective(metric="val_top1", mode="max"),
    Objective(metric="energy_mj", mode="min"),
)
SPACE = """
name: chaos
recipe: digits
trial:
  model.image_size: 8
  model.heads: 2
  model.depth: 1
  train.epochs: 4
objectives:
  - {metric: val_top1, mode: max}
  - {metric: energy_mj, mode: min}
space:
  model.timesteps: {choice: [1, 2, 4, 8]}
  model.width: {choice: [16, 24, 32, 48, 64]}
  train.lr: {float: [1.0e-3, 1.0e-2], log: true}
sampler: {name: tpe, seed: 4}
stopping:
  {name: asha, grace_epochs: 1, reduction_factor: 2, check_share: 0.3, trial_timeout_s: 60}
budget: {trials: 8}
resources: {cpus: 1, concurrent: 2}
tracking: {experiment: chaos}
"""
EPOCHS, GRACE, FACTOR = 4, 1, 2
RECENT = 4 * FACTOR
END_S = 600  # far more than anything here takes, also on a busy machine
METRICS = ("val_top1", "energy_mj", "train_loss")


@dataclass(frozen=True)
class FakeSearch:
    """One search in a folder of its own.

    Attributes:
        folder: holds `runs/` and `record/`.
        address: a running Ray cluster, or None for a local one a driver.
        overrides: `key=value` for the YAML.
        variables: for the driver's environment.
        name: the search's.
    """

    folder: Path
    address: str | None = None
    overrides: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    name: str = "chaos"

    def __post_init__(self) -> None:
        self.runs.mkdir(parents=True, exist_ok=True)
        (self.folder / "chaos.yaml").write_text(SPACE)

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.runs / 'mlflow.db'}"

    @property
    def exists(self) -> bool:
        return SearchFolder(self.runs, self.name).exists

    @contextmanager
    def driver(self) -> Iterator["Driver"]:
        """A driver that starts the search, or continues it when it exists."""
        variables = {**environment(self.folder), **worker_environment(), **self.variables}
        if self.address is not None:
            variables |= {"SPIKETUNE_FAKE_ADDRESS": self.address, "RAY_AUTH_MODE": "disabled"}
        what = "resume" if self.exists else "search"
        space = str(self.folder / "chaos.yaml")
        arguments = (what, str(self.runs), self.name, space, *self.overrides)
        driver = Driver(self.folder, variables, arguments)
        try:
            yield driver
        finally:
            driver.end()

    def run(self, code: int = 0) -> None:
        """Start or continue the search and wait for its end."""
        with self.driver() as process:
            process.wait(END_S)
        assert process.returncode == code, self.log

    @property
    def log(self) -> str:
        return (self.folder / "driver.log").read_text()

    def records(self) -> list[TrialRecord]:
        ledger = open_ledger(SearchFolder(self.runs, self.name))[1]
        ledger.close()
        return ledger.records

    def notes(self) -> dict[int, list[dict[str, Any]]]:
        """The side record: every start and epoch of each trial, in the order they happened."""
        files = fake_trial.side_record(self.runs, self.name).glob("*.jsonl")
        return {int(path.stem): _lines(path) for path in sorted(files)}

    def num_notes(self) -> int:
        files = fake_trial.side_record(self.runs, self.name).glob("*.jsonl")
        return sum(path.read_bytes().count(b"\n") for path in files)

    def wait_for_notes(self, driver: "Driver", more: int) -> None:
        """Return once the trials have noted `more` lines more, or their driver has ended."""
        until = self.num_notes() + more
        deadline = time.monotonic() + END_S
        while self.num_notes() < until and not driver.wait(0.01):
            assert time.monotonic() < deadline, self.log


class Driver:
    """A process that drives a search, forked from one that has imported everything already."""

    def __init__(
        self, folder: Path, variables: Mapping[str, str], arguments: Sequence[str]
    ) -> None:
        log = folder / "driver.log"
        self._process = forked.start(
            _drive, *arguments, folder=folder, variables=variables, output=log
        )

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.exitcode

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended by then."""
        self._process.join(timeout_s)
        return self.returncode is not None

    def signal(self, number: int) -> bool:
        """Send it a signal; False when it has ended before."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL it, and see it gone."""
        self._process.kill()
        assert self.wait(GONE_S)

    def end(self) -> None:
        """Kill what is left of it and of what it has started."""
        if self.returncode is None:
            kill_all(self.pid)
        assert self.wait(GONE_S)


def _drive(*arguments: str) -> int:
    tracking_process.start_writer = fork_writer  # type: ignore[assignment]  # stands for a Popen
    return fake_trial.main(*arguments)


def worker_environment() -> dict[str, str]:
    """What workers need to find the fake trial."""
    given = os.environ.get("PYTHONPATH", "")
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [given, str(Path(fake_trial.__file__).parent)]))
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def with_store(search: FakeSearch, empty_store: Path) -> FakeSearch:
    """Give a search a tracking store that is migrated already."""
    shutil.copy(empty_store, search.runs / "mlflow.db")
    return search


def assert_nothing_lost(before: Sequence[TrialRecord], after: Sequence[TrialRecord]) -> None:
    """What was decided stays decided, what was reported stays reported."""
    by_number = {record.number: record for record in after}
    for record in before:
        now = by_number[record.number]
        assert now.params == record.params
        assert now.epochs[: len(record.epochs)] == record.epochs
        if record.has_ended:
            assert now == record


def assert_whole(
    search: FakeSearch, num_trials: int = 8, uri: str | None = None, experiment: str = "chaos"
) -> None:
    """Ledger, side record, rule, leaderboard, Optuna and MLflow tell the same story."""
    records = search.records()
    assert [r.number for r in records] == list(range(num_trials))
    assert all(r.has_ended for r in records)
    assert_as_noted(records, search.notes())
    pauses = "stopping.name=asha_promotion" in search.overrides
    (assert_promotions_followed if pauses else assert_rule_followed)(records)
    assert_leaders(search, records)
    assert_tracked(uri or search.uri, records, experiment)


def assert_as_noted(records: Sequence[TrialRecord], notes: Mapping[int, Any]) -> None:
    """Every value is one that a trial measured; no trial went back by more than one epoch."""
    assert set(notes) <= {r.number for r in records}, "a trial ran that the ledger does not know"
    for record in records:
        lines = notes[record.number]
        measured = {line["epoch"]: line for line in lines if line["what"] == "epoch"}
        assert [e.epoch for e in record.epochs] == list(range(1, len(record.epochs) + 1))
        for epoch in record.epochs:
            for name in METRICS:
                assert epoch.metrics[name] == measured[epoch.epoch][name], (record.number, epoch)
        reached = 0
        for line in lines:
            if line["what"] == "start":
                assert line["epoch"] >= reached - 1, f"trial {record.number} went back: {line}"
                assert line["epoch"] >= line["known"], f"trial {record.number} lost: {line}"
            reached = max(reached, line["epoch"])
        # What the driver had not heard of when the trial was decided is at most one epoch.
        assert reached <= len(record.epochs) + 1


def assert_rule_followed(records: Sequence[TrialRecord]) -> None:
    """Each decision is the one that the results known at its time ask for."""
    for record in records:
        if record.state == "failed":
            continue
        stops = [e.epoch for e in record.epochs if _stops(record.number, e.epoch, records)]
        if record.state == "stopped":
            assert record.reason == f"asha@{len(record.epochs)}"
            assert stops == [len(record.epochs)]
        else:
            assert len(record.epochs) == EPOCHS
            spared = record.spared
            assert stops[:1] == ([] if spared is None else [spared.epoch])


def _stops(number: int, epoch: int, records: Sequence[TrialRecord]) -> bool:
    if epoch not in (GRACE, GRACE * FACTOR):
        return False
    at = {
        r.number: r.epochs[epoch - 1]
        for r in records
        if len(r.epochs) >= epoch and (r.spared is None or r.spared.epoch >= epoch)
    }
    if number not in at:  # it runs on as a check of the rule
        return False
    known = {n: e for n, e in at.items() if e.time_s <= at[number].time_s}
    order = sorted(known, key=lambda n: (-known[n].metrics["val_top1"], n))
    latest = sorted(n for n in known if n <= number)[-RECENT:]
    recent = [n for n in order if n in latest]
    return any(of.index(number) >= max(1, len(of) // FACTOR) for of in (order, recent))


def assert_leaders(search: FakeSearch, records: Sequence[TrialRecord]) -> None:
    """Best trial and Pareto set by comparing every pair of what the trials themselves noted."""
    notes = search.notes()
    values = {}
    for record in records:
        if record.state != "failed":
            epochs = [line for line in notes[record.number] if line["what"] == "epoch"]
            last = next(e for e in epochs if e["epoch"] == len(record.epochs))
            values[record.number] = (last["val_top1"], -last["energy_mj"])
    front = {
        n
        for n, (top1, saved) in values.items()
        if not any(a >= top1 and b >= saved and (a, b) != (top1, saved) for a, b in values.values())
    }
    leader = max(values, key=lambda n: (values[n], -n)) if values else None
    top = best(records, OBJECTIVES)
    assert (top.number if top else None) == leader
    assert {r.number for r in pareto(records, OBJECTIVES)} == front
    study = optuna.load_study(
        study_name=search.name, storage=f"sqlite:///{search.runs / search.name / 'study.db'}"
    )
    assert {t.number for t in study.best_trials} == front


def assert_tracked(uri: str, records: Sequence[TrialRecord], experiment: str) -> None:
    """One run for the search and one a trial, all ended, every value once with its own time."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs: list[Run] = list(client.search_runs([found.experiment_id]))
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert [r.info.status for r in parents] == ["FINISHED"]
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert sorted(r.info.run_name or "" for r in children) == [r.name for r in records]
    by_name = {run.info.run_name: run for run in children}
    for record in records:
        run = by_name[record.name]
        assert run.info.status == ("FAILED" if record.state == "failed" else "FINISHED")
        assert run.data.tags["spiketune.state"] == record.state
        assert run.data.tags["spiketune.reason"] == record.reason
        assert run.data.tags["spiketune.feasible"] == str(record.feasible).lower()
        assert run.data.params.keys() == record.params.keys()
        for name in METRICS:
            history = client.get_metric_history(run.info.run_id, name)
            rows = sorted((m.step, m.value, m.timestamp) for m in history)
            known = [(e.epoch, e.metrics[name], e.time_s) for e in record.epochs]
            assert [row[:2] for row in rows] == [row[:2] for row in known], (record.number, name)
            for row, (*_, time_s) in zip(rows, known, strict=True):
                assert math.isclose(row[2], 1000 * time_s, abs_tol=1.0)
