"""Points of a search space as rows of numbers, many at a time.

A row has one column a parameter, parents first: a numeric value scaled to 0…1 (in logarithms where
its domain is), the index of a choice, NaN where the parameter does not exist. Shapes: N points,
P parameters, F features.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.domains import AnyDomain, ChoiceDomain, FloatDomain
from spaces.space import SearchSpace

Floats = NDArray[np.float64]
Params = dict[str, Any]
SAME = 1e-9


class Column:
    """One parameter's place in a row."""

    def __init__(self, domain: AnyDomain) -> None:
        """Precompute the scale."""
        self._domain = domain
        self.is_choice = isinstance(domain, ChoiceDomain)
        self.size = domain.size
        self._log = not isinstance(domain, ChoiceDomain) and domain.log
        if not isinstance(domain, ChoiceDomain):
            low, high = (float(end) for end in domain.bounds)
            self._low, self._high = (math.log(low), math.log(high)) if self._log else (low, high)
            self._whole = not isinstance(domain, FloatDomain)
            self._step = 1 if isinstance(domain, FloatDomain) else domain.step

    def encode(self, value: Any) -> float:
        """One value as a number."""
        if isinstance(self._domain, ChoiceDomain):
            return float(
                next(
                    index
                    for index, item in enumerate(self._domain.choice)
                    if item == value and isinstance(item, bool) == isinstance(value, bool)
                )
            )
        if self._high == self._low:
            return 0.0
        number = math.log(value) if self._log else float(value)
        return (number - self._low) / (self._high - self._low)

    def decode(self, number: float) -> Any:
        """The value that a number of the column stands for."""
        if isinstance(self._domain, ChoiceDomain):
            return self._domain.choice[int(number)]
        value = self._low + number * (self._high - self._low)
        return self._domain.nearest(math.exp(value) if self._log else value)

    def uniform(self, rng: np.random.Generator, num: int) -> Floats:
        """Numbers drawn as the domain draws its values [N]."""
        if math.isinf(self.size):
            return rng.random(num)
        if self.is_choice:
            return rng.integers(int(self.size), size=num).astype(float)
        return self.snapped(rng.random(num) * (1.0 + 1.0 / self.size) - 0.5 / self.size)

    def snapped(self, numbers: Floats) -> Floats:
        """The nearest numbers that stand for a value [N]."""
        if self.is_choice:
            return numbers
        inside = np.clip(numbers, 0.0, 1.0)
        if math.isinf(self.size) or self._high == self._low:
            return inside
        width = self._high - self._low
        values = self._low + inside * width
        if self._log:
            return (np.log(np.maximum(np.round(np.exp(values)), 1.0)) - self._low) / width
        steps = np.round((values - self._low) / self._step) * self._step
        return steps / width

    def moved(self, numbers: Floats, rng: np.random.Generator, scale: Floats) -> Floats:
        """Numbers a normal step away; choices and small ranges change to another value [N]."""
        if self.is_choice:
            shift = rng.integers(1, max(2, int(self.size)), size=len(numbers))
            return (numbers + shift) % self.size
        steps = rng.normal(size=len(numbers)) * scale
        if not math.isinf(self.size) and self.size > 1:
            least = 1.0 / (self.size - 1)
            steps = np.where(np.abs(steps) < least, np.copysign(least, steps), steps)
        there = numbers + steps
        # Reflected at the ends, so that they are not favoured.
        there = np.abs(there)
        there = np.where(there > 1.0, 2.0 - there, there)
        return self.snapped(there)


class Encoder:
    """Turns parameters into rows and back, and rows into features for a model."""

    def __init__(self, space: SearchSpace) -> None:
        """Lay out the columns."""
        self.keys = space.keys
        self.columns = [Column(space.domains[key]) for key in self.keys]
        place = {key: index for index, key in enumerate(self.keys)}
        self._conditions = [
            [
                (place[parent], self._allowed(self.columns[place[parent]], values))
                for parent, values in space.conditions[key].items()
            ]
            for key in self.keys
        ]
        self._conditional = [bool(conditions) for conditions in self._conditions]
        self.owners = self._owners()

    @staticmethod
    def _allowed(column: Column, values: tuple[Any, ...]) -> Floats:
        codes = []
        for value in values:
            try:
                codes.append(column.encode(value))
            except (StopIteration, TypeError, ValueError):
                continue
        return np.array(codes)

    def encode(self, params: dict[str, Any]) -> Floats:
        """One point's row [P]."""
        return np.array(
            [
                column.encode(params[key]) if key in params else math.nan
                for key, column in zip(self.keys, self.columns, strict=True)
            ]
        )

    def decode(self, row: Floats) -> Params:
        """The parameters of a row."""
        return {
            key: column.decode(float(number))
            for key, column, number in zip(self.keys, self.columns, row, strict=True)
            if not math.isnan(number)
        }

    def uniform(self, rng: np.random.Generator, num: int) -> Floats:
        """Rows drawn evenly, whatever the rules say [N, P]."""
        rows = np.column_stack([column.uniform(rng, num) for column in self.columns])
        return self.activated(rows)

    def moved(
        self, centres: Floats, rng: np.random.Generator, scale: Floats, share: Floats
    ) -> Floats:
        """Rows beside others [N, P].

        Args:
            centres: one a row wanted [N, P].
            rng: draws the steps.
            scale: standard deviation of numeric steps [N].
            share: of a row's parameters that move; at least one does [N].
        """
        num, width = centres.shape
        moves = rng.random((num, width)) < share[:, None]
        moves[np.arange(num), rng.integers(width, size=num)] = True
        filled = np.where(np.isnan(centres), self._drawn(rng, num), centres)
        rows = filled.copy()
        for index, column in enumerate(self.columns):
            if column.size > 1:
                there = column.moved(filled[:, index], rng, scale)
                rows[:, index] = np.where(moves[:, index], there, filled[:, index])
        return self.activated(rows)

    def _drawn(self, rng: np.random.Generator, num: int) -> Floats:
        return np.column_stack([column.uniform(rng, num) for column in self.columns])

    def activated(self, rows: Floats) -> Floats:
        """Rows with NaN where a parameter does not exist [N, P]; changes them in place."""
        for index, conditions in enumerate(self._conditions):
            for parent, allowed in conditions:
                met = (np.abs(rows[:, parent, None] - allowed) < SAME).any(axis=1)
                rows[~met, index] = math.nan
        return rows

    def features(self, rows: Floats) -> Floats:
        """Coordinates whose squared distances add up over parameters [N, F].

        A numeric parameter differs by at most 1, a choice by 1 if it is another one, and what
        exists at one point only by 1 as well.
        """
        parts: list[Floats] = []
        for index, column in enumerate(self.columns):
            values = rows[:, index]
            absent = np.isnan(values)
            if column.is_choice:
                codes = np.arange(column.size)
                parts.append((values[:, None] == codes).astype(float) / math.sqrt(2.0))
                if self._conditional[index]:
                    parts.append(absent[:, None] / math.sqrt(2.0))
            else:
                parts.append(np.where(absent, 0.5, values)[:, None])
                if self._conditional[index]:
                    parts.append(absent[:, None] * math.sqrt(0.75))
        return np.hstack(parts)

    def _owners(self) -> NDArray[np.int64]:
        owners: list[int] = []
        for index, column in enumerate(self.columns):
            width = int(column.size) if column.is_choice else 1
            owners += [index] * (width + self._conditional[index])
        return np.array(owners)
