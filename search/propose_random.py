"""Samplers without a model, and the drawing of points that are new."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search.problem import Params, Problem
from search.records import TrialRecord
from search.standings import Changes
from spaces.space import SearchSpace

ENUMERATE_UP_TO = 20_000
WALK = 200


class KnownPoints:
    """Keys of the points that have been proposed; a memory of earlier answers only."""

    def __init__(self, space: SearchSpace) -> None:
        """Begin with no record."""
        self._space = space
        self._changes = Changes()
        self._params: dict[int, Mapping[str, Any]] = {}
        self._keys: set[str] = set()

    def keys(self, records: Sequence[TrialRecord]) -> set[str]:
        """Keys of all trials' points."""
        gone, changed = self._changes.since(records)
        other = (r for r in changed if self._params.get(r.number, r.params) != r.params)
        if gone or next(other, None) is not None:
            self._params, self._keys, changed = {}, set(), list(records)
        for record in changed:
            if record.params and record.number not in self._params:
                self._params[record.number] = record.params
                self._keys.add(self._space.key(record.params))
        return self._keys


class RandomProposer:
    """Uniform over the valid points that are left."""

    def __init__(self, problem: Problem) -> None:
        """Keep the space and the seed."""
        self._space = problem.space
        self._seed = problem.seed
        self._known = KnownPoints(problem.space)

    def propose(self, records: Sequence[TrialRecord]) -> Params | None:
        """A valid point that has not been tried, or None when there is none left."""
        return fresh(self._space, self._known.keys(records), self._rng(records))

    def _rng(self, records: Sequence[TrialRecord]) -> np.random.Generator:
        return np.random.default_rng([self._seed, len(records)])


class GridProposer(RandomProposer):
    """Every valid point once, in a seeded order when they can be listed, else at random."""

    def propose(self, records: Sequence[TrialRecord]) -> Params | None:
        """The next point of the order."""
        if self._space.cardinality() > ENUMERATE_UP_TO:
            return super().propose(records)
        points = list(self._space.enumerate_valid(ENUMERATE_UP_TO))
        order = np.random.default_rng(self._seed).permutation(len(points))
        seen = self._known.keys(records)
        fresh = (points[i] for i in order if self._space.key(points[i]) not in seen)
        return next(fresh, None)


def fresh(space: SearchSpace, seen: set[str], rng: np.random.Generator) -> Params | None:
    """A valid point that has not been tried; None when there is none left."""
    point: Params = {}
    for _ in range(64 + 2 * len(seen)):
        point = space.sample(rng)
        if space.key(point) not in seen:
            return point
    if space.cardinality() <= ENUMERATE_UP_TO:
        left = [p for p in space.enumerate_valid(ENUMERATE_UP_TO) if space.key(p) not in seen]
        return left[int(rng.integers(len(left)))] if left else None
    return around(space, point, seen, rng)


def around(
    space: SearchSpace, centre: Params, seen: set[str], rng: np.random.Generator
) -> Params | None:
    """The first new point met when walking out from a valid one; None after a bounded walk."""
    point = centre
    for _ in range(WALK):
        if space.key(point) not in seen:
            return point
        last = point
        for neighbour in space.neighbours(point, rng):
            last = neighbour
            if space.key(neighbour) not in seen:
                return neighbour
        point = last if last != point else space.sample(rng)
    if space.cardinality() <= ENUMERATE_UP_TO:
        return next(
            (p for p in space.enumerate_valid(ENUMERATE_UP_TO) if space.key(p) not in seen), None
        )
    return None
