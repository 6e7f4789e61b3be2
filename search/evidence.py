"""What the records say, as arrays that are brought up to date row by row."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.encoding import Encoder, Floats
from search.problem import Problem
from search.records import TrialRecord
from search.standings import Changes, at_epoch

RUNNING, ENDED, FAILED = 0, 1, 2
_FIRST_ROWS = 64


class Evidence:
    """Rows of all trials by number: where they are, what they have shown, how they stand.

    A memory of earlier answers only: after `update` it depends on nothing but those records.

    Args:
        problem: its levels are where results are read, its objectives [M] what is.
        encoder: of its space.
    """

    def __init__(self, problem: Problem, encoder: Encoder) -> None:
        """Begin with no record."""
        self._problem = problem
        self._encoder = encoder
        self._changes = Changes()
        self._clear()

    def update(self, records: Sequence[TrialRecord]) -> None:
        """Take the records in."""
        gone, changed = self._changes.since(records)
        if gone:
            self._clear()
        for record in changed:
            self._enter(record)

    @property
    def rows(self) -> Floats:
        """Encoded parameters [N, P]."""
        return self._rows[: self.num]

    @property
    def states(self) -> NDArray[np.int8]:
        """RUNNING, ENDED or FAILED [N]."""
        return self._states[: self.num]

    @property
    def shown(self) -> Floats:
        """Objectives at each level, smaller is better, NaN where it is not reached [N, L, M]."""
        return self._shown[: self.num]

    @property
    def broken(self) -> NDArray[np.bool_]:
        """Whether an outcome constraint is broken at a level [N, L]."""
        return self._broken[: self.num]

    def _clear(self) -> None:
        self.num = 0
        width, depth = len(self._encoder.keys), len(self._problem.levels)
        self._rows: Floats = np.empty((_FIRST_ROWS, width))
        self._states: NDArray[np.int8] = np.zeros(_FIRST_ROWS, np.int8)
        self._shown: Floats = np.empty((_FIRST_ROWS, depth, len(self._problem.objectives)))
        self._broken: NDArray[np.bool_] = np.zeros((_FIRST_ROWS, depth), np.bool_)
        self._place: dict[int, tuple[int, Mapping[str, Any]]] = {}

    def _grow(self) -> None:
        double = 2 * len(self._rows)
        self._rows = np.resize(self._rows, (double, *self._rows.shape[1:]))
        self._states = np.resize(self._states, double)
        self._shown = np.resize(self._shown, (double, *self._shown.shape[1:]))
        self._broken = np.resize(self._broken, (double, self._broken.shape[1]))

    def _enter(self, record: TrialRecord) -> None:
        if not record.params:
            return
        known = self._place.get(record.number)
        if known is None:
            if self.num == len(self._rows):
                self._grow()
            index = self.num
            self.num += 1
        else:
            index = known[0]
        if known is None or known[1] is not record.params:
            self._place[record.number] = (index, record.params)
            self._rows[index] = self._encoder.encode(dict(record.params))
        self._states[index] = {"running": RUNNING, "failed": FAILED}.get(record.state, ENDED)
        for depth, epoch in enumerate(self._problem.levels):
            metrics = at_epoch(record, epoch)
            constraints = self._problem.outcome_constraints if metrics else ()
            self._shown[index, depth] = self._signed(metrics or {})
            self._broken[index, depth] = any(c.violation(metrics or {}) > 0 for c in constraints)

    def _signed(self, metrics: Mapping[str, float]) -> list[float]:
        values = []
        for objective in self._problem.objectives:
            value = metrics.get(objective.metric, math.nan)
            values.append(-value if objective.mode == "max" else value)
        return values if all(math.isfinite(v) for v in values) else [math.nan] * len(values)
