"""Regret of many simulated searches: in numbers, as a table's rows and as a plot."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search.baselines import make_policy
from search.curves import EPOCH_S, CurveTable
from search.encoding import Floats
from search.results import hypervolume
from search.simulate import Conditions, Run, simulate

FRACTIONS = (0.25, 0.5, 1.0)
_GRID = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Method:
    """A sampler with a stopping rule.

    Attributes:
        sampler: its name.
        stopping: the rule's.
        grace: epochs before the first comparison; None for `auto`.
        check_share: of the trials to be stopped that run on.
        cost_aware: whether gains are weighed against the seconds that a trial takes.
        by_time: whether few seconds an epoch are an objective beside the metric.
    """

    sampler: str
    stopping: str
    grace: int | None = None
    check_share: float = 0.0
    cost_aware: bool = False
    by_time: bool = False

    @property
    def name(self) -> str:
        """For tables: `gp + asha`."""
        sampler = f"{self.sampler} by cost" if self.cost_aware else self.sampler
        return f"{sampler} + {self.stopping}"


@dataclass(frozen=True)
class Summary:
    """All runs of one method, task by task.

    Attributes:
        name: of the method.
        tasks: names, one a row of `regrets`.
        regrets: at each of FRACTIONS [tasks, seeds, 3].
        volumes: area that value and seconds an epoch dominate, 0…1 [tasks, seeds, 3]; None unless
            both were objectives.
        curves: regret over the budget, NaN before a first result [runs, 101].
        num_trials: mean over runs.
        propose_ms: median of all proposals.
    """

    name: str
    tasks: tuple[str, ...]
    regrets: Floats
    curves: Floats
    num_trials: float
    propose_ms: float
    volumes: Floats | None = None

    def row(self) -> dict[str, Any]:
        """One JSON-able row: means and standard errors over all runs, values by task."""
        row = {
            "method": self.name,
            "runs": self.regrets.shape[0] * self.regrets.shape[1],
            "trials": round(self.num_trials, 1),
            "propose_ms": round(self.propose_ms, 2),
            "regret": _means(self.regrets),
            "by_task": self._by_task(self.regrets),
        }
        if self.volumes is not None:
            row["hypervolume"] = _means(self.volumes)
            row["hypervolume_by_task"] = self._by_task(self.volumes)
        return row

    def _by_task(self, measured: Floats) -> dict[str, list[list[float]]]:
        return {
            task: [[round(float(value), 4) for value in seed] for seed in values]
            for task, values in zip(self.tasks, measured, strict=True)
        }


def _means(measured: Floats) -> dict[str, dict[str, float]]:
    runs = measured.reshape(-1, len(FRACTIONS))
    error = runs.std(axis=0, ddof=1) / np.sqrt(len(runs)) if len(runs) > 1 else runs[0] * 0.0
    return {
        f"{fraction:g}": {"mean": round(float(mean), 4), "se": round(float(se), 4)}
        for fraction, mean, se in zip(FRACTIONS, runs.mean(axis=0), error, strict=True)
    }


def measure(
    method: Method,
    tables: Sequence[CurveTable],
    seeds: Sequence[int],
    conditions: Conditions,
    told: Callable[[str, int, int], None] = lambda *_: None,
) -> Summary:
    """Simulate a method on every task with every seed.

    Args:
        method: what decides.
        tables: the tasks.
        seeds: of sampler and faults.
        conditions: workers, budget, faults.
        told: hears after each run of its task, how many are done, and of how many.
    """
    runs: list[Run] = []
    areas: list[list[float]] = []
    for table in tables:
        for seed in seeds:
            policy = make_policy(
                table,
                method.sampler,
                method.stopping,
                seed,
                method.grace or "auto",
                check_share=method.check_share,
                cost_aware=method.cost_aware,
                by_time=method.by_time,
            )
            run = simulate(table, policy, conditions, seed)
            runs.append(run)
            if method.by_time:
                budget_s = conditions.trainings * table.full_training_s
                areas.append([volume(run, table, f * budget_s) for f in FRACTIONS])
            told(table.name, len(runs), len(tables) * len(seeds))
    shape = (len(tables), len(seeds), len(FRACTIONS))
    regrets = np.array([[run.regret_at(f) for f in FRACTIONS] for run in runs])
    return Summary(
        method.name,
        tuple(table.name for table in tables),
        regrets.reshape(shape),
        np.array([[run.regret_at(f) for f in _GRID] for run in runs]),
        float(np.mean([len(run.records) for run in runs])),
        1e3 * float(np.median(np.concatenate([run.propose_s for run in runs]))),
        np.array(areas).reshape(shape) if method.by_time else None,
    )


def volume(run: Run, table: CurveTable, until_s: float) -> float:
    """Area that all values seen by then dominate, each with the seconds an epoch that it took.

    1 would be the best value of the table at the pace of its quickest configuration; nothing counts
    that is no better than the median configuration.
    """
    points = [
        table.coverage(epoch.metrics[table.metric], epoch.metrics[EPOCH_S])
        for record in run.records
        for epoch in record.epochs
        if epoch.time_s <= until_s and math.isfinite(epoch.metrics[table.metric])
    ]
    return hypervolume(points, (0.0, 0.0), ("max", "max"))


def plot(summaries: Sequence[Summary], path: Path) -> None:
    """Draw mean regret over the budget with bands of one standard error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    for summary in summaries:
        known = np.isfinite(summary.curves).all(axis=0)
        curves, at = summary.curves[:, known], 100.0 * _GRID[known]
        mean, error = curves.mean(axis=0), curves.std(axis=0) / np.sqrt(len(curves))
        (line,) = axes.plot(at, mean, label=summary.name)
        axes.fill_between(at, mean - error, mean + error, color=line.get_color(), alpha=0.2)
    axes.set_xlabel("budget used, %")
    axes.set_ylabel("normalised regret of the best value seen")
    axes.set_ylim(bottom=0.0)
    axes.legend()
    figure.savefig(path, dpi=150)
