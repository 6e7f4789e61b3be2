"""Samplers without a model, and the drawing of points that are new."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Generic, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from search.problem import Params, Problem
from search.records import TrialRecord
from search.standings import Changes
from spaces.space import SearchSpace

ENUMERATE_UP_TO = 20_000
WALK = 200
_ALONE = 64  # from twice as many trials on, proposals share models
_MODEL = 1  # sets a model's draws apart from those of the proposals

Model = TypeVar("Model")


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


class Shared(Generic[Model]):
    """What a sampler makes of the trials, made anew once for several proposals.

    After the first 127 trials every model serves 2 proposals, from the 256th on 4 and so on: so
    10,000 trials take some 530 models. A model knows the trials before its first proposal, so in a
    search that runs one trial at a time it is the same whenever it is made.

    Args:
        make: the model of some trials, with a generator of its own.
        seed: of that generator.
    """

    def __init__(
        self,
        make: Callable[[Sequence[TrialRecord], np.random.Generator], Model],
        seed: int,
    ) -> None:
        """Begin without a model."""
        self._make = make
        self._seed = seed
        self._made: tuple[int, Model] | None = None

    def of(self, records: Sequence[TrialRecord]) -> Model:
        """The model for the proposal that follows these trials."""
        share = 1 << max(0, (len(records) // _ALONE).bit_length() - 1)
        known = len(records) - len(records) % share
        if share == 1 or self._made is None or self._made[0] != known:
            rng = np.random.default_rng([self._seed, known, _MODEL])
            with _single_threaded().limit(limits=1, user_api="blas"):
                self._made = known, self._make(records[:known], rng)
        return self._made[1]


@cache
def _single_threaded() -> ThreadpoolController:
    # Threads that wait for each other on a busy machine take ten times as long as one alone, and
    # matrices of 200 rows are no work to share.
    return ThreadpoolController()


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
        left = (points[i] for i in order if self._space.key(points[i]) not in seen)
        return next(left, None)


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
