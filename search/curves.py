"""Tables of learning curves: what a simulated trial reports, and when.

A table is an `.npz` file without pickled objects that holds `hp_names` [P] and `hp` [N, P], one row
a configuration, and the curves in one of two layouts:

- `tasks` [K], `metrics` [M] and `y` [K, N, E, M]: `metrics` names `val_accuracy` (larger is better)
  and `time_s` (cumulative seconds at the end of each epoch);
- `valid` [N, E], a loss (smaller is better, not finite where training diverged), with
  `time_s` [N, E] or, without it, one second an epoch.
"""

import math
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.results import Mode
from spaces.domains import AnyDomain, FloatDomain, IntDomain
from spaces.space import SearchSpace
from trainables.errors import InputError

Floats = NDArray[np.float64]

NEIGHBOURS = 5
MIN_LOG_RATIO = 10.0
METRIC = {"max": "val_accuracy", "min": "val_loss"}
EPOCH_S = "epoch_s"  # mean over a full training, the second objective


@dataclass(frozen=True)
class Curve:
    """What one trial would report.

    Attributes:
        values: by epoch [E]; not finite where training has diverged.
        times_s: seconds since the trial's start at the end of each epoch [E], increasing.
    """

    values: Floats
    times_s: Floats


@dataclass(frozen=True)
class CurveTable:
    """Learning curves of many configurations of one task.

    Args:
        name: the task.
        names: of the parameters [P].
        hp: one configuration a row [N, P].
        values: by configuration and epoch [N, E].
        times_s: cumulative seconds [N, E].
        mode: which way values are better.
    """

    name: str
    names: tuple[str, ...]
    hp: Floats
    values: Floats
    times_s: Floats
    mode: Mode

    @property
    def metric(self) -> str:
        """What the values are called in a trial's report."""
        return METRIC[self.mode]

    @property
    def num_epochs(self) -> int:
        """Epochs of a full training."""
        return int(self.values.shape[1])

    @cached_property
    def domains(self) -> dict[str, AnyDomain]:
        """A range for each parameter, from the lowest value of the table to the highest."""
        return {name: _domain(self.hp[:, i]) for i, name in enumerate(self.names)}

    def space(self) -> SearchSpace:
        """The search space that spans the table."""
        base = {name: domain.ends()[0] for name, domain in self.domains.items()}
        return SearchSpace(self.domains, base, is_network=False)

    def curve(self, params: dict[str, Any]) -> Curve:
        """The distance-weighted mean curve of the rows nearest to a configuration.

        Distances are Euclidean with every parameter scaled to 0…1, in logarithms where its domain
        is. An epoch is not finite when rows of at least half of the weight are not.
        """
        at = np.array([params[name] for name in self.names], dtype=float)
        distances = np.sqrt(((self._scaled - self._scale(at)) ** 2).sum(axis=1))
        near = np.argpartition(distances, NEIGHBOURS)[:NEIGHBOURS]
        weights = 1.0 / (distances[near] + 1e-9)
        weights /= weights.sum()
        values = self.values[near]
        finite = np.isfinite(values)
        share = weights @ finite
        total = weights @ np.where(finite, values, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(share > 0.5, total / share, math.nan)
        # A diverged network does not come back.
        mean[np.maximum.accumulate(~np.isfinite(mean))] = math.nan
        return Curve(mean, weights @ self.times_s[near])

    def regret(self, value: float) -> float:
        """Normalised regret: 0 for the best value of the table, 1 for the median configuration."""
        best, median = self._scores
        return (best - float(self._signed(value))) / (best - median)

    def coverage(self, value: float, epoch_s: float) -> tuple[float, float]:
        """How good a value and its seconds an epoch are, 0…1 each.

        The first is 1 for the best value of the table and 0 for its median configuration, the
        second 1 for the quickest configuration and 0 for the slowest, in logarithms.
        """
        low, high = (math.log(seconds) for seconds in self._paces)
        saved = (high - math.log(epoch_s)) / (high - low) if high > low else 1.0
        return (1.0 - self.regret(value), saved)

    @cached_property
    def _paces(self) -> tuple[float, float]:
        seconds = self.times_s[:, -1] / self.num_epochs
        return float(seconds.min()), float(seconds.max())

    @cached_property
    def full_training_s(self) -> float:
        """Seconds of a full training, median over the table."""
        return float(np.median(self.times_s[:, -1]))

    @cached_property
    def _scores(self) -> tuple[float, float]:
        finite = np.isfinite(self.values)
        signed = np.where(finite, self._signed(np.where(finite, self.values, 0.0)), -np.inf)
        best = signed.max(axis=1)
        return float(best.max()), float(np.median(best))

    def _signed(self, values: Any) -> Any:
        return values if self.mode == "max" else -values

    @cached_property
    def _scaled(self) -> Floats:
        return self._scale(self.hp)

    def _scale(self, hp: Floats) -> Floats:
        scaled = np.empty_like(hp, dtype=float)
        for i, domain in enumerate(self.domains.values()):
            low, high = (float(end) for end in domain.ends())
            column = hp[..., i]
            if getattr(domain, "log", False):
                low, high, column = math.log(low), math.log(high), np.log(column)
            scaled[..., i] = (column - low) / (high - low) if high > low else 0.0
        return scaled


def load_tables(path: Path, only: tuple[str, ...] = ()) -> list[CurveTable]:
    """Read every task of a file.

    Args:
        path: the `.npz` file.
        only: names of tasks; all when empty.

    Raises:
        InputError: the file is no such table, or has no task of that name.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            tables = _tables({name: file[name] for name in file.files}, path)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path}: must be an .npz file of arrays, but {error}") from None
    unknown = set(only) - {table.name for table in tables}
    if unknown:
        names = ", ".join(table.name for table in tables)
        raise InputError(f"{path}: tasks must be of {names}, but got {min(unknown)}")
    return [table for table in tables if not only or table.name in only]


def _tables(arrays: dict[str, NDArray[Any]], path: Path) -> list[CurveTable]:
    needed = {"tasks", "metrics", "y"} if "y" in arrays else {"valid"}
    missing = sorted(({"hp", "hp_names"} | needed) - arrays.keys())
    if missing:
        raise InputError(f"{path}: must hold the array {missing[0]}, but has {sorted(arrays)}")
    names = tuple(str(name) for name in arrays["hp_names"])
    hp = arrays["hp"].astype(float)
    if "valid" in arrays:
        values = arrays["valid"].astype(float)
        seconds = np.broadcast_to(np.arange(1.0, values.shape[1] + 1), values.shape)
        times_s = arrays.get("time_s", seconds).astype(float)
        tables = [CurveTable(path.stem, names, hp, values, _increasing(times_s), "min")]
    else:
        metrics = [str(metric) for metric in arrays["metrics"]]
        absent = [name for name in ("val_accuracy", "time_s") if name not in metrics]
        if absent:
            raise InputError(f"{path}: metrics must hold {absent[0]}, but are {metrics}")
        y = arrays["y"].astype(float)
        values_at, times_at = metrics.index("val_accuracy"), metrics.index("time_s")
        tables = [
            CurveTable(
                str(t), names, hp, y[k, ..., values_at], _increasing(y[k, ..., times_at]), "max"
            )
            for k, t in enumerate(arrays["tasks"])
        ]
    for table in tables:
        _check(table, path)
    return tables


def _check(table: CurveTable, path: Path) -> None:
    rows, columns = table.hp.shape
    if rows <= NEIGHBOURS or columns != len(table.names):
        raise InputError(
            f"{path}: hp must have more than {NEIGHBOURS} rows and a column for each of "
            f"{len(table.names)} names, but has {rows} rows and {columns} columns"
        )
    if len(table.values) != rows or table.times_s.shape != table.values.shape:
        raise InputError(
            f"{path}: curves must have {rows} rows, as hp, but have {table.values.shape} values "
            f"and {table.times_s.shape} times"
        )
    if not np.isfinite(table.hp).all() or not np.isfinite(table.times_s).all():
        raise InputError(f"{path}: hp and times must be finite")


def _increasing(times_s: Floats) -> Floats:
    """Cumulative times that do not go back: predicted ones may, by a little."""
    return np.maximum.accumulate(np.maximum(times_s, 1e-9), axis=1)


def _domain(column: Floats) -> AnyDomain:
    low, high = float(column.min()), float(column.max())
    log = _spans_orders(column)
    if np.array_equal(column, column.round()):
        return IntDomain.model_validate({"int": [int(low), int(high)], "log": log})
    return FloatDomain.model_validate({"float": [low, high], "log": log})


def _spans_orders(column: Floats) -> bool:
    """Whether values spread over orders of magnitude: their median is central in logarithms."""
    low, high, median = float(column.min()), float(column.max()), float(np.median(column))
    if low <= 0 or high / low < MIN_LOG_RATIO:
        return False
    linear = (median - low) / (high - low)
    logarithmic = math.log(median / low) / math.log(high / low)
    return abs(logarithmic - 0.5) < abs(linear - 0.5)
