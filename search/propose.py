"""Proposals: pure functions of the search space and the ledger.

A proposal depends only on (seed, trial number, results so far): no state to save, so a resumed
search run one trial at a time proposes exactly what an uninterrupted one does.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial

from search.records import TrialRecord
from search.results import ObjectiveLike
from search.standings import at_epoch
from search.study import DIRECTIONS
from spaces.constraints import OutcomeConstraint
from spaces.domains import AnyDomain, ChoiceDomain, IntDomain
from spaces.schema import SearchSpec
from spaces.space import SearchSpace

Params = dict[str, Any]

ENUMERATE_UP_TO = 20_000
RANDOM_SHARE = 0.2
MIN_RESULTS, MAX_RESULTS = 5, 12
ASKS = 12
WALK = 200


@dataclass(frozen=True)
class Problem:
    """What a sampler needs to know of a search.

    Attributes:
        space: the points that may be proposed.
        objectives: metrics to make large or small.
        outcome_constraints: bounds on measured metrics.
        levels: epochs at which results are compared, ascending; the last is the full budget.
        seed: of all draws.
        trials: how many there will be at most; None when only time ends the search.
    """

    space: SearchSpace
    objectives: tuple[ObjectiveLike, ...]
    outcome_constraints: tuple[OutcomeConstraint, ...]
    levels: tuple[int, ...]
    seed: int
    trials: int | None = None


class Proposer(Protocol):
    """A sampler: what to try next, or None when every valid point has been tried."""

    def propose(self, records: Sequence[TrialRecord]) -> Params | None:
        """Parameters of the next trial, valid and not tried before."""


def make_proposer(spec: SearchSpec, rungs: Sequence[int]) -> Proposer:
    """Build the sampler a search names.

    Args:
        spec: the search.
        rungs: epochs at which results are compared, ascending.

    Raises:
        ValueError: the name is unknown; the message lists the valid ones.
    """
    problem = Problem(
        spec.search_space,
        spec.objectives,
        spec.outcome_constraints,
        (*rungs, spec.base_config.train.total_epochs),
        spec.sampler.seed,
        spec.budget.trials,
    )
    return proposer_for(spec.sampler.name, problem)


def proposer_for(name: str, problem: Problem) -> Proposer:
    """Build a sampler by name.

    Raises:
        ValueError: the name is unknown; the message lists the valid ones.
    """
    if name not in PROPOSERS:
        raise ValueError(f"sampler.name must be one of {sorted(PROPOSERS)}, but got {name!r}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every in-memory study
    return PROPOSERS[name](problem)


def distributions(space: SearchSpace, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Optuna's description of each parameter that is active in `params`."""
    return {key: distribution(space.domains[key]) for key in params}


def distribution(domain: AnyDomain) -> BaseDistribution:
    """Optuna's description of a domain."""
    if isinstance(domain, ChoiceDomain):
        return CategoricalDistribution(list(domain.choice))
    if isinstance(domain, IntDomain):
        return IntDistribution(*domain.bounds, log=domain.log, step=domain.step)
    return FloatDistribution(*domain.bounds, log=domain.log)


class RandomProposer:
    """Uniform over the valid points that are left."""

    def __init__(self, problem: Problem) -> None:
        """Keep the space and the seed."""
        self._space = problem.space
        self._seed = problem.seed

    def propose(self, records: Sequence[TrialRecord]) -> Params | None:
        """A valid point that has not been tried, or None when there is none left."""
        return _fresh(self._space, _seen(self._space, records), self._rng(records))

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
        seen = _seen(self._space, records)
        fresh = (points[i] for i in order if self._space.key(points[i]) not in seen)
        return next(fresh, None)


class TPEProposer(RandomProposer):
    """Tree-structured Parzen estimator with one model a rung.

    Models the results of the highest rung that enough trials have reached, so values from
    different epochs are never mixed and running trials count with what they have shown. One
    proposal in five is random. Failed trials are infeasible points, which the model avoids. A
    suggestion that is invalid or known is replaced by a valid new point beside it.

    Source: Watanabe, 2023 (arXiv 2304.11127) for TPE; rungs after Falkner et al., BOHB, ICML 2018.
    """

    def __init__(self, problem: Problem) -> None:
        """Keep the objectives and how many results a model needs."""
        super().__init__(problem)
        self._objectives = problem.objectives
        self._outcome_constraints = problem.outcome_constraints
        self._levels = problem.levels
        quarter = MAX_RESULTS if problem.trials is None else math.ceil(problem.trials / 4)
        self._need = min(MAX_RESULTS, max(MIN_RESULTS, quarter))

    def propose(self, records: Sequence[TrialRecord]) -> Params | None:
        """The most promising valid new point by the highest rung that has enough results."""
        rng = self._rng(records)
        seen = _seen(self._space, records)
        results = self._results(records)
        failed = [r for r in records if r.state == "failed" and r.params]
        if results is None or rng.random() < RANDOM_SHARE:
            return _fresh(self._space, seen, rng)
        near: Params = {}
        for suggestion in self._suggest(results, failed, int(rng.integers(2**31))):
            if self._space.key(suggestion) not in seen and not self._space.problems(suggestion):
                return suggestion
            near = suggestion
        return _around(self._space, self._space.repair(near, rng), seen, rng)

    def _results(self, records: Sequence[TrialRecord]) -> list[tuple[TrialRecord, Any]] | None:
        for epoch in reversed(self._levels):
            usable_states = (r for r in records if r.state != "failed")
            reached = [(record, at_epoch(record, epoch)) for record in usable_states]
            usable = [(r, m) for r, m in reached if m is not None and self._values(m) is not None]
            if len(usable) >= self._need:
                return usable
        return None

    def _values(self, metrics: Mapping[str, float]) -> list[float] | None:
        values = [metrics.get(o.metric, math.nan) for o in self._objectives]
        return values if all(math.isfinite(v) for v in values) else None

    def _suggest(
        self, results: list[tuple[TrialRecord, Any]], failed: list[TrialRecord], seed: int
    ) -> Iterator[Params]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = TPESampler(
                n_startup_trials=0, multivariate=True, group=True, constant_liar=False, seed=seed
            )
        study = optuna.create_study(
            sampler=sampler,
            directions=[DIRECTIONS[o.mode] for o in self._objectives],
        )
        for record, metrics in results:
            study.add_trial(self._model_point(record, metrics))
        for record in failed:
            study.add_trial(self._infeasible_point(record))
        for _ in range(ASKS):
            trial = study.ask()
            yield self._draw(trial)
            study.tell(trial, state=TrialState.FAIL)

    def _model_point(
        self, record: TrialRecord, metrics: Mapping[str, float]
    ) -> optuna.trial.FrozenTrial:
        violations = {c.text: c.violation(metrics) for c in self._outcome_constraints}
        return create_trial(
            params=dict(record.params),
            distributions=distributions(self._space, record.params),
            values=self._values(metrics),
            constraints=violations or None,
        )

    def _infeasible_point(self, record: TrialRecord) -> optuna.trial.FrozenTrial:
        # It has no value to compare, and the model is to keep away from it.
        return create_trial(
            state=TrialState.PRUNED,
            params=dict(record.params),
            distributions=distributions(self._space, record.params),
            constraints={"failed": 1.0},
        )

    def _draw(self, trial: optuna.Trial) -> Params:
        params: Params = {}
        for key in self._space.keys:  # parents first
            if key not in self._space.active_keys(params):
                continue
            domain = self._space.domains[key]
            if isinstance(domain, ChoiceDomain):
                params[key] = trial.suggest_categorical(key, list(domain.choice))
            elif isinstance(domain, IntDomain):
                params[key] = trial.suggest_int(
                    key, *domain.bounds, step=domain.step, log=domain.log
                )
            else:
                params[key] = trial.suggest_float(key, *domain.bounds, log=domain.log)
        return params


def _seen(space: SearchSpace, records: Sequence[TrialRecord]) -> set[str]:
    return {space.key(record.params) for record in records if record.params}


def _fresh(space: SearchSpace, seen: set[str], rng: np.random.Generator) -> Params | None:
    point: Params = {}
    for _ in range(64 + 2 * len(seen)):
        point = space.sample(rng)
        if space.key(point) not in seen:
            return point
    if space.cardinality() <= ENUMERATE_UP_TO:
        left = [p for p in space.enumerate_valid(ENUMERATE_UP_TO) if space.key(p) not in seen]
        return left[int(rng.integers(len(left)))] if left else None
    return _around(space, point, seen, rng)


def _around(
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


PROPOSERS: dict[str, type[RandomProposer]] = {
    "tpe": TPEProposer,
    "random": RandomProposer,
    "grid": GridProposer,
}
