"""What the default is compared with in simulations: the stacks that people put together today.

The stock ones are driven through Ray's own classes: `OptunaSearch` and the bracket of
`AsyncHyperBandScheduler`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from ray.tune.schedulers import TrialScheduler
from ray.tune.schedulers.async_hyperband import _Bracket
from ray.tune.search.optuna import OptunaSearch

from search.curves import EPOCH_S, CurveTable
from search.propose import (
    PROPOSERS,
    Params,
    Problem,
    Proposer,
    distribution,
    proposer_for,
)
from search.records import TrialRecord
from search.results import Mode
from search.rules import RULES, make_rule
from search.simulate import Policy
from search.stopping import GO_ON, Course, Decision, StoppingRule, grace_of, promotion
from trainables.errors import InputError

STOCK = "optuna"
STOCK_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    STOCK: lambda seed: TPESampler(seed=seed),  # OptunaSearch's own choice
    "optuna-nsga2": lambda seed: NSGAIISampler(seed=seed),
}
STOPPING = (*RULES, "ray-asha")


class StockPolicy:
    """Ray's OptunaSearch, with Ray's ASHA or no stopping.

    A stopped trial is told COMPLETE with its last value, as `OptunaSearch.on_trial_complete` does.

    Args:
        problem: the search; ASHA goes by its first objective.
        sampler: Optuna's.
        stops: whether ASHA stops trials.
        factor: its reduction factor; the grace period is the problem's first level.
    """

    def __init__(
        self, problem: Problem, sampler: BaseSampler, *, stops: bool, factor: int = 3
    ) -> None:
        """Set up the study and the bracket."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        objective = problem.objectives[0]
        self._metric = objective.metric
        self._all = [o.metric for o in problem.objectives]
        self._sign = 1.0 if objective.mode == "max" else -1.0
        space = {key: distribution(domain) for key, domain in problem.space.domains.items()}
        self._search = OptunaSearch(
            space,
            metric=self._metric if len(self._all) == 1 else self._all,
            mode=objective.mode if len(self._all) == 1 else [o.mode for o in problem.objectives],
            sampler=sampler,
        )
        grace, full = problem.levels[0], problem.levels[-1]
        self._bracket = _Bracket(grace, full, factor, 0) if stops else None

    def propose(self, records: Sequence[TrialRecord]) -> Params | None:
        """What OptunaSearch suggests."""
        return self._search.suggest(str(len(records)))

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:  # noqa: ARG002
        """What Ray's ASHA says."""
        epoch, value = len(current.epochs), current.last[self._metric]
        result = {self._metric: value, "training_iteration": epoch}
        self._search.on_trial_result(str(current.number), result)
        if self._bracket is None:
            return GO_ON
        trial: Any = _Named(current.number)
        action = self._bracket.on_result(trial, epoch, self._sign * value)
        return Decision(stop=True, reason="asha") if action == TrialScheduler.STOP else GO_ON

    def ended(self, record: TrialRecord) -> None:
        """Tell the study."""
        values = {name: record.last.get(name, math.nan) for name in self._all}
        result: dict[str, Any] | None = values
        if record.state == "failed":
            result = None
        self._search.on_trial_complete(str(record.number), result, error=result is None)


class _Named:
    """The part of a Ray trial that a bracket reads."""

    def __init__(self, number: int) -> None:
        self.trial_id = str(number)


class OwnPolicy:
    """A sampler and a stopping rule of ours, as a search runs them."""

    def __init__(self, proposer: Proposer, rule: StoppingRule) -> None:
        """Put both together."""
        self.propose = proposer.propose
        self.decide = rule.decide
        self.promotion = partial(promotion, rule)

    def ended(self, record: TrialRecord) -> None:
        """Nothing: the records say it."""


@dataclass(frozen=True)
class _Objective:
    metric: str
    mode: Mode


def make_policy(
    table: CurveTable,
    sampler: str,
    stopping: str,
    seed: int,
    grace: int | Literal["auto"] = "auto",
    factor: int = 3,
    check_share: float = 0.0,
    *,
    cost_aware: bool = False,
    by_time: bool = False,
) -> Policy:
    """Put together what decides a simulated search.

    Args:
        table: gives space, metric and full budget.
        sampler: one of ours, or Ray's OptunaSearch: `optuna` (TPE), `optuna-nsga2`.
        stopping: one of ours, or `ray-asha`: Ray's.
        seed: of the sampler.
        grace: epochs before the first comparison.
        factor: of successive halving.
        check_share: of the trials to be stopped that run on.
        cost_aware: whether gains are weighed against seconds, which the table tells.
        by_time: whether few seconds an epoch are an objective beside the metric.

    Raises:
        InputError: a name is unknown, or the two do not go together.
    """
    full = table.num_epochs
    first = grace_of(grace, full)
    names = [*sorted(PROPOSERS), *STOCK_SAMPLERS]
    if sampler not in names:
        raise InputError(f"the sampler must be one of {', '.join(names)}, but got {sampler!r}")
    if stopping not in STOPPING:
        raise InputError(f"stopping must be one of {', '.join(STOPPING)}, but got {stopping!r}")
    is_stock = sampler in STOCK_SAMPLERS
    if stopping != "none" and is_stock != (stopping == "ray-asha"):
        raise InputError(f"{STOCK} goes with ray-asha or none, ours with all but ray-asha")
    objectives = [_Objective(table.metric, table.mode)]
    if by_time:
        objectives.append(_Objective(EPOCH_S, "min"))
    course = Course(
        table.metric,
        table.mode,
        full,
        first,
        adaptive=grace == "auto",
        factor=factor,
        patience_epochs=math.ceil(full / 5),
        objectives=tuple(objectives),
        seed=seed,
    )
    rungs = () if stopping == "none" and not is_stock else course.rungs
    problem = Problem(table.space(), tuple(objectives), (), (*rungs, full), seed)
    if cost_aware:
        if sampler != "gp":
            raise InputError(f"only gp weighs gains against cost, but got {sampler!r}")
        problem = replace(problem, cost_s=lambda params: float(table.curve(params).times_s[-1]))
    if is_stock:
        made = STOCK_SAMPLERS[sampler](seed)
        return StockPolicy(problem, made, stops=stopping != "none", factor=factor)
    return OwnPolicy(proposer_for(sampler, problem), make_rule(stopping, course, check_share))
