"""Which parameters of a search mattered, and how.

Everything rests on values of one epoch, the highest rung that enough trials have reached: values
of different epochs are never mixed. Failed trials, and those that break an outcome constraint, are
left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from search.ped_anova import ped_anova
from search.propose_tpe import distribution
from search.records import TrialRecord
from search.standings import at_epoch
from search.stopping import grace_of, rung_epochs
from spaces.domains import AnyDomain, ChoiceDomain, FloatDomain, IntDomain, Scalar
from spaces.schema import SearchSpec

ENOUGH, LEAST = 12, 8  # trials that one epoch is to have, and those without which nothing is said
BEST_SHARE, LEAST_BEST = 0.25, 5  # the trials that importances set apart from all
MOST_RATED = 500  # trials that importances rest on; more tell the same and take minutes
SHUFFLES = 39  # an importance above all of theirs has p = 1/40
RANK_SHUFFLES = 199
CLEAR = 0.05  # p-value of what is no accident
MAX_LISTED = 8  # integers that are shown one by one
MAX_BINS, TRIALS_A_BIN = 6, 4
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Basis:
    """What everything rests on.

    Attributes:
        epoch: at which all values were reported.
        records: the usable trials that have reached it.
        values: of the objectives at that epoch, one tuple a trial.
        of: how many trials the search has in all.
    """

    epoch: int
    records: tuple[TrialRecord, ...]
    values: tuple[tuple[float, ...], ...]
    of: int

    def column(self, objective: int) -> list[float]:
        """Values of one objective."""
        return [values[objective] for values in self.values]

    def active(self, key: str) -> list[int]:
        """Positions of the trials in which a parameter exists."""
        return [i for i, record in enumerate(self.records) if key in record.params]


@dataclass(frozen=True)
class Importance:
    """How much a parameter sets the best quarter of the trials apart from all.

    Attributes:
        parameter: dotted key.
        share: of the importance of all parameters; None when it exists in too few trials, or when
            the values do not differ.
        p_value: how often shuffled values give at least as much.
        trials: those in which the parameter exists.
    """

    parameter: str
    share: float | None
    p_value: float | None
    trials: int


@dataclass(frozen=True)
class Group:
    """Trials whose parameter has one value, or lies in one range.

    Attributes:
        value: None for a range.
        low: the least value among them; None without a range.
        high: the greatest one.
        mean: of the objective; None without a trial.
        error: the mean's standard error; None with fewer than two trials.
        trials: how many they are.
    """

    value: Scalar | None
    low: float | None
    high: float | None
    mean: float | None
    error: float | None
    trials: int


@dataclass(frozen=True)
class Effect:
    """The objective's mean by a parameter's value, whatever the other parameters were.

    Attributes:
        parameter: dotted key.
        log: whether the domain is logarithmic.
        groups: each value in the domain's order, or up to six ranges with as many trials each.
    """

    parameter: str
    log: bool
    groups: tuple[Group, ...]


def searched(spec: SearchSpec) -> list[str]:
    """Parameters that have more than one value."""
    return [key for key in spec.search_space.keys if spec.search_space.domains[key].size > 1]


def levels(spec: SearchSpec) -> tuple[int, ...]:
    """Epochs at which trials can be compared, ascending: the rungs and the full budget."""
    full = spec.base_config.train.total_epochs
    if spec.stopping.name == "none":
        return (full,)
    grace = grace_of(spec.stopping.grace_epochs, full)
    return (*rung_epochs(grace, spec.stopping.reduction_factor, full), full)


def basis_of(spec: SearchSpec, records: Sequence[TrialRecord]) -> Basis | None:
    """The usable trials of the highest level that enough have reached; None with too few.

    Half of the trials must be there: those that a stopping rule has let pass are alike in what
    decides, and by them alone it would seem not to matter.

    Args:
        spec: the search.
        records: its trials.
    """
    possible = [r for r in records if r.state != "failed" and r.feasible]
    reached = {epoch: _usable(spec, possible, epoch) for epoch in levels(spec)}
    half = max(map(len, reached.values())) / 2
    for need in (ENOUGH, LEAST):
        for epoch, usable in reversed(reached.items()):
            if len(usable) >= max(need, half):
                trials, found = zip(*usable, strict=True)
                return Basis(epoch, trials, found, len(records))
    return None


def _usable(
    spec: SearchSpec, records: Sequence[TrialRecord], epoch: int
) -> list[tuple[TrialRecord, tuple[float, ...]]]:
    """Trials with their objective values at an epoch."""
    reached = [(r, at_epoch(r, epoch)) for r in records]
    return [
        (r, values)
        for r, metrics in reached
        if metrics is not None and (values := _values(spec, metrics)) is not None
    ]


def importances(spec: SearchSpec, basis: Basis, objective: int) -> tuple[Importance, ...]:
    """Each parameter's PED-ANOVA importance for an objective, greatest first.

    Of a conditional parameter only its effect where it exists counts, by the share of the trials
    that it takes; whether it exists counts for its parent.

    Args:
        spec: the search.
        basis: the trials.
        objective: which one.

    Source: Watanabe et al., IJCAI 2023 (arXiv 2304.10255) and, for conditional parameters, arXiv
    2601.20800, as Optuna has it. It sets the best quarter (at least 5) apart instead of the best
    tenth, which is too few in a search of some dozens of trials, and a sample of more than 500
    trials.
    """
    counts = {key: len(basis.active(key)) for key in searched(spec)}
    basis = _sampled(basis)
    measured = [key for key in counts if len(basis.active(key)) >= LEAST]
    found = _measure(spec, basis, objective, measured) if measured else {}
    total = sum(share for share, _ in found.values())
    rows = [
        Importance(key, found[key][0] / total, found[key][1], count)
        if total and key in found
        else Importance(key, None, None, count)
        for key, count in counts.items()
    ]
    return tuple(sorted(rows, key=lambda row: -1.0 if row.share is None else row.share)[::-1])


def _sampled(basis: Basis) -> Basis:
    if len(basis.records) <= MOST_RATED:
        return basis
    rng = np.random.default_rng(0)  # the same trials always say the same
    chosen = sorted(rng.choice(len(basis.records), MOST_RATED, replace=False).tolist())
    records = tuple(basis.records[i] for i in chosen)
    return replace(basis, records=records, values=tuple(basis.values[i] for i in chosen))


def effect(domain: AnyDomain, key: str, basis: Basis, objective: int) -> Effect:
    """How an objective's mean goes with a parameter.

    Args:
        domain: the parameter's.
        key: the parameter.
        basis: the trials.
        objective: which one.
    """
    column = basis.column(objective)
    found = [
        (which, [column[i] for i in members]) for which, members in grouped(domain, key, basis)
    ]
    log = not isinstance(domain, ChoiceDomain) and domain.log
    return Effect(key, log, tuple(_group(values, **which) for which, values in found))


def grouped(domain: AnyDomain, key: str, basis: Basis) -> list[tuple[dict[str, Scalar], list[int]]]:
    """Positions of the trials by a parameter's value, or by ranges with as many trials each."""
    at = basis.active(key)
    xs = [basis.records[i].params[key] for i in at]
    if is_listed(domain):
        return [
            ({"value": v}, [i for i, x in zip(at, xs, strict=True) if same(x, v)])
            for v in domain.values()
        ]
    if not at:
        return []
    num_bins = max(1, min(MAX_BINS, len(at) // TRIALS_A_BIN))
    # Equal values stay in one range, so there may be fewer.
    inner = np.unique(xs)[1:]
    if len(inner) >= num_bins:
        inner = np.unique(np.quantile(xs, np.linspace(0.0, 1.0, num_bins + 1)[1:-1]))
    bins = np.searchsorted(inner, xs, side="right").tolist()
    ranges = [[k for k, b in enumerate(bins) if b == index] for index in range(num_bins)]
    return [
        ({"low": min(xs[k] for k in r), "high": max(xs[k] for k in r)}, [at[k] for k in r])
        for r in ranges
        if r
    ]


def unlike(groups: Sequence[Sequence[int]], column: Sequence[float]) -> float:
    """How often shuffled values differ as much between groups, by their ranks; 1 for one group.

    Args:
        groups: positions of the trials of each.
        column: an objective's values.

    Source: Kruskal and Wallis, JASA 1952, with shuffles instead of the limiting distribution.
    """
    at = [i for group in groups for i in group]
    values = np.asarray([column[i] for i in at])
    ranks = np.searchsorted(np.sort(values), values) + np.searchsorted(
        np.sort(values), values, side="right"
    )
    sizes = [len(group) for group in groups if group]
    starts = np.cumsum([0, *sizes[:-1]])
    rng = np.random.default_rng(0)

    def spread(of: Any) -> float:
        return float((np.add.reduceat(of, starts) ** 2 / sizes).sum())

    own = spread(ranks) * (1 - _ROUNDING)
    more = sum(spread(rng.permutation(ranks)) >= own for _ in range(RANK_SHUFFLES))
    return (1 + more) / (1 + RANK_SHUFFLES)


def doubt(row: Importance) -> str:
    """What a person must know of an importance; empty where it can be trusted."""
    if row.share is None:
        return "too few trials" if row.trials < LEAST else "nothing to tell apart"
    return "may be chance" if row.p_value is None or row.p_value > CLEAR else ""


def is_listed(domain: AnyDomain) -> bool:
    """Whether a domain's values are few enough to go through."""
    if isinstance(domain, IntDomain):
        return domain.size <= MAX_LISTED
    return not isinstance(domain, FloatDomain)


def same(first: object, second: object) -> bool:
    """Whether two values of a parameter are one; 1 is not true."""
    return first == second and isinstance(first, bool) == isinstance(second, bool)


def _group(values: Sequence[float], **which: Any) -> Group:
    count = len(values)
    named = {"value": None, "low": None, "high": None} | which
    mean = float(np.mean(values)) if count else None
    error = float(np.std(values, ddof=1) / math.sqrt(count)) if count > 1 else None
    return Group(**named, mean=mean, error=error, trials=count)


def _values(spec: SearchSpec, metrics: Mapping[str, float]) -> tuple[float, ...] | None:
    """Objective values; None unless all are finite and the outcome constraints are kept."""
    found = tuple(metrics.get(o.metric, math.nan) for o in spec.objectives)
    if any(constraint.violation(metrics) > 0.0 for constraint in spec.outcome_constraints):
        return None
    return found if all(math.isfinite(value) for value in found) else None


def _measure(
    spec: SearchSpec, basis: Basis, objective: int, keys: list[str]
) -> dict[str, tuple[float, float]]:
    """Importance before scaling, and how often shuffled values give as much."""
    values = basis.column(objective)
    params = [{k: r.params[k] for k in keys if k in r.params} for r in basis.records]
    described = {key: distribution(spec.search_space.domains[key]) for key in keys}
    quantile = max(BEST_SHARE, LEAST_BEST / len(values))
    sign = -1.0 if spec.objectives[objective].mode == "max" else 1.0
    losses = sign * np.asarray(values)
    best = losses <= np.sort(losses)[math.ceil(quantile * len(losses)) - 1]
    rng = np.random.default_rng(0)  # the same trials always say the same
    shuffled = [rng.permutation(len(values)) < best.sum() for _ in range(SHUFFLES)]
    found, *chance = ped_anova(params, described, [best, *shuffled])
    return {
        key: (
            found[key],
            (1 + sum(c[key] >= found[key] * (1 - _ROUNDING) for c in chance)) / (1 + SHUFFLES),
        )
        for key in keys
    }
