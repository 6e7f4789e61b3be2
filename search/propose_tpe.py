"""The rung-aware TPE sampler, on Optuna's own estimator."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial

from search.founding import DIRECTIONS
from search.problem import Params, Problem
from search.propose_random import RandomProposer, around, fresh
from search.records import TrialRecord
from search.standings import at_epoch
from spaces.domains import AnyDomain, ChoiceDomain, IntDomain
from spaces.space import SearchSpace

RANDOM_SHARE = 0.2
MIN_RESULTS, MAX_RESULTS = 5, 12
ASKS = 12


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
        seen = self._known.keys(records)
        results = self._results(records)
        failed = [r for r in records if r.state == "failed" and r.params]
        if results is None or rng.random() < RANDOM_SHARE:
            return fresh(self._space, seen, rng)
        near: Params = {}
        for suggestion in self._suggest(results, failed, int(rng.integers(2**31))):
            if self._space.key(suggestion) not in seen and not self._space.problems(suggestion):
                return suggestion
            near = suggestion
        return around(self._space, self._space.repair(near, rng), seen, rng)

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
