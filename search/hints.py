"""What to search next: bounds that the good trials press against, and what can be left alone.

Nothing is said that a random draw of as many trials would show as well: the share among the good
trials is held against that among all usable ones, and the allowed error is divided by the number
of things that could be said.
"""

import bisect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import comb
from typing import Any, Literal

from pydantic import ValidationError

from search.effects import Basis, Importance, grouped, is_listed, same, searched, unlike
from search.results import Mode
from search.wording import printable
from spaces.domains import AnyDomain, ChoiceDomain, FloatDomain, IntDomain, Scalar
from spaces.fields import convert
from spaces.rules import holds
from spaces.schema import SearchSpec

GOOD_SHARE, LEAST_GOOD = 0.2, 3
ERROR = 0.05  # of saying anything by chance in a search
OUTER = 0.1  # of a range counts as its edge
PRESSES, SHARED = 1 / 3, 0.9  # of the good trials, to speak of an edge and of a common value
LEAST_TO_DISMISS = 50  # trials before a parameter is said to hardly matter
LITTLE, CLEAR = 0.4, 0.025  # p-values of what is no more than chance, and of what matters

Kind = Literal["widen_low", "widen_high", "edge_low", "edge_high", "fix", "little_effect"]
Side = Literal["low", "high"]


@dataclass(frozen=True)
class Hint:
    """What to search next.

    Attributes:
        parameter: dotted key.
        kind: `edge_low` and `edge_high` are bounds that cannot be widened.
        text: a sentence for the user, with the counts.
        good: good trials that speak for it.
        of_good: good trials in which the parameter exists.
        usable: usable trials that have what those have.
        of_usable: usable trials in which the parameter exists.
        p_value: chance that as many are among the good ones by accident; for `little_effect`, that
            shuffled values show as great an effect.
    """

    parameter: str
    kind: Kind
    text: str
    good: int
    of_good: int
    usable: int
    of_usable: int
    p_value: float


@dataclass(frozen=True)
class _Sample:
    """A parameter's values in all usable trials where it exists, and which trials are good."""

    spec: SearchSpec
    key: str
    params: tuple[Mapping[str, Any], ...]
    leading: tuple[bool, ...]  # by the first objective
    chosen: tuple[bool, ...]  # by all objectives
    error: float

    @property
    def domain(self) -> AnyDomain:
        return self.spec.search_space.domains[self.key]

    @property
    def values(self) -> list[Any]:
        return [params[self.key] for params in self.params]

    def counts(self, good: Sequence[bool], has: Callable[[Any], bool]) -> tuple[int, int, int, int]:
        found = [has(value) for value in self.values]
        both = sum(g and f for g, f in zip(good, found, strict=True))
        return both, sum(good), sum(found), len(found)


def hints(
    spec: SearchSpec, basis: Basis, tables: Sequence[Sequence[Importance]]
) -> tuple[Hint, ...]:
    """Say what to search next, at most one thing a parameter.

    Bounds are judged by the best trials of the first objective: a second one such as energy has
    its optimum at a bound by its nature. What could be fixed is judged by the trials that no other
    beats in all objectives.

    Args:
        spec: the search.
        basis: the trials.
        tables: each objective's importances.
    """
    keys = searched(spec)
    domains = spec.search_space.domains
    # What could be said: both ends of a range, every value of a list.
    tests = sum(int(domains[key].size) if is_listed(domains[key]) else 2 for key in keys)
    leading, chosen = _leading(spec, basis), _chosen(spec, basis)
    found = []
    for key in keys:
        at = basis.active(key)
        sample = _Sample(
            spec,
            key,
            tuple(basis.records[i].params for i in at),
            tuple(i in leading for i in at),
            tuple(i in chosen for i in at),
            ERROR / tests,
        )
        hint = _bound(sample) or _common(sample) or _little(sample, basis, tables)
        found += [hint] if hint else []
    return tuple(found)


def chance(good: int, of_good: int, usable: int, of_usable: int) -> float:
    """Probability that as many of a random draw have what `usable` of all have.

    Args:
        good: of the drawn trials that have it.
        of_good: drawn trials.
        usable: of all trials that have it.
        of_usable: all trials.
    """
    ways = sum(
        comb(usable, i) * comb(of_usable - usable, of_good - i)
        for i in range(good, min(of_good, usable) + 1)
    )
    return ways / comb(of_usable, of_good)


def _leading(spec: SearchSpec, basis: Basis) -> set[int]:
    """Positions of the best fifth by the first objective, with those that tie with its last."""
    losses = _losses(basis.column(0), spec.objectives[0].mode)
    last = sorted(losses)[_num_good(len(losses)) - 1]
    return {i for i, loss in enumerate(losses) if loss <= last}


def _chosen(spec: SearchSpec, basis: Basis) -> set[int]:
    """Positions of the trials that no other beats, then those that only these beat, and so on."""
    columns = [_losses(basis.column(i), o.mode) for i, o in enumerate(spec.objectives)]
    losses = list(zip(*columns, strict=True))
    fronts: list[list[int]] = []
    # In this order only an earlier trial can beat a later one; who is beaten on a front is beaten
    # on all those before it.
    # With two objectives, the last one of a front has the least second loss: none but it can.
    asked = slice(None, None, -1) if len(columns) > 2 else slice(-1, None)
    for i in sorted(range(len(losses)), key=losses.__getitem__):
        at = bisect.bisect_left(
            fronts, 1, key=lambda f: not any(_beats(losses[j], losses[i]) for j in f[asked])
        )
        if at == len(fronts):
            fronts.append([])
        fronts[at].append(i)
    found: set[int] = set()
    for front in fronts:
        if len(found) >= _num_good(len(losses)):
            break
        found |= set(front)
    return found


def _num_good(count: int) -> int:
    return max(LEAST_GOOD, math.ceil(GOOD_SHARE * count))


def _losses(column: Sequence[float], mode: Mode) -> list[float]:
    return [-value if mode == "max" else value for value in column]


def _beats(first: Sequence[float], second: Sequence[float]) -> bool:
    return first != second and all(a <= b for a, b in zip(first, second, strict=True))


def _bound(sample: _Sample) -> Hint | None:
    metric = sample.spec.objectives[0].metric
    for side in ("low", "high"):
        edge = _edge(sample, side)
        if edge is None:
            continue
        has, where = edge
        counts = sample.counts(sample.leading, has)
        p_value = _convincing(counts, PRESSES, sample.error)
        if p_value is None:
            continue
        good, of_good, usable, of_usable = counts
        said = (
            f"{sample.key}: {good} of the {of_good} best trials by {metric} have {where}, "
            f"against {usable} of all {of_usable}"
        )
        beyond = "smaller" if side == "low" else "larger"
        if any(
            _is_valid(sample, params, value)
            for params, good_one in zip(sample.params, sample.leading, strict=True)
            if good_one and has(params[sample.key])
            for value in _beyond(sample.domain, side)
        ):
            kind: Kind = "widen_low" if side == "low" else "widen_high"
            text = f"{said}; {beyond} values may be better still."
        else:
            kind = "edge_low" if side == "low" else "edge_high"
            text = f"{said}; {beyond} ones are at odds with the configuration or a constraint."
        return Hint(sample.key, kind, text, *counts, p_value)
    return None


def _convincing(counts: tuple[int, int, int, int], share: float, error: float) -> float | None:
    """The p-value of a share among the good trials if it is high enough and no accident."""
    good, of_good, _, of_usable = counts
    if of_good < LEAST_GOOD or of_good > of_usable / 2 or good < share * of_good:
        return None
    p_value = chance(*counts)
    return p_value if p_value <= error else None


def _edge(sample: _Sample, side: Side) -> tuple[Callable[[Any], bool], str] | None:
    """What is at one end of an ordered domain, as a test and in words."""
    domain = sample.domain
    ladder = _ladder(domain)
    if ladder is not None:
        if len(ladder) < 2:
            return None
        last = ladder[0 if side == "low" else -1]
        word = "smallest" if side == "low" else "largest"
        return partial(same, last), f"{printable(last)}, the {word} value searched"
    if isinstance(domain, ChoiceDomain):
        return None
    low, high = (math.log(b) if domain.log else float(b) for b in domain.bounds)
    width = OUTER * (high - low)
    start, end = (low, low + width) if side == "low" else (high - width, high)
    ends = [math.exp(x) if domain.log else x for x in (start, end)]
    word = "lowest" if side == "low" else "highest"
    named = " to ".join(f"{x:.3g}" for x in ends)

    def has(value: Any) -> bool:
        x = math.log(value) if domain.log else float(value)
        return bool(x <= end) if side == "low" else bool(x >= start)

    return has, f"a value in the {word} tenth of the range searched ({named})"


def _ladder(domain: AnyDomain) -> list[Any] | None:
    """The values of a short ordered domain, least first; None for any other."""
    if not is_listed(domain):
        return None
    values = list(domain.values())
    if any(isinstance(value, bool | str) for value in values):
        return None
    return sorted(values)


def _beyond(domain: AnyDomain, side: Side) -> Iterator[Scalar]:
    """Values a step outside an ordered domain, small steps first."""
    if isinstance(domain, ChoiceDomain):
        ladder = _ladder(domain) or []
        last, before = (ladder[0], ladder[1]) if side == "low" else (ladder[-1], ladder[-2])
        step = abs(last - before)
    else:
        last = domain.bounds[0 if side == "low" else 1]
        span = domain.bounds[1] - domain.bounds[0]
        step = domain.step if isinstance(domain, IntDomain) else OUTER * span
    whole = isinstance(last, int) and isinstance(step, int)
    values = (
        [last - step, last // 2 if whole else last / 2]
        if side == "low"
        else [last + step, last * 2]
    )
    if isinstance(domain, FloatDomain) and domain.log and side == "low":
        values = values[1:]
    yield from (v for v in values if (v < last if side == "low" else v > last))


def _is_valid(sample: _Sample, params: Mapping[str, Any], value: Scalar) -> bool:
    """Whether a trial with another value of the parameter could be proposed in a wider space."""
    space = sample.spec.search_space
    try:
        changed = {**params, sample.key: convert(sample.key, value)}
        active = space.active_keys(changed)
        changed = {key: changed[key] for key in changed if key in active}
        sample.spec.trial_config(changed)
    except (ValidationError, ValueError):
        return False
    point = space.point(changed)
    return all(holds(rule, point) for rule in space.rules)


def _common(sample: _Sample) -> Hint | None:
    if not is_listed(sample.domain):
        return None
    for value in sample.domain.values():
        counts = sample.counts(sample.chosen, partial(same, value))
        p_value = _convincing(counts, SHARED, sample.error)
        if p_value is None:
            continue
        good, of_good, usable, of_usable = counts
        which = (
            f"best trials by {sample.spec.objectives[0].metric}"
            if len(sample.spec.objectives) == 1
            else "trials with the best trade-offs"
        )
        text = (
            f"{sample.key}: {good} of the {of_good} {which} have {printable(value)}, against "
            f"{usable} of all {of_usable}; it could be fixed to that."
        )
        return Hint(sample.key, "fix", text, *counts, p_value)
    return None


def _little(sample: _Sample, basis: Basis, tables: Sequence[Sequence[Importance]]) -> Hint | None:
    """A parameter without effect, where others of the same trials have one."""
    p_values = []
    members = [group for _, group in grouped(sample.domain, sample.key, basis)]
    for index, table in enumerate(tables):
        own = next(row for row in table if row.parameter == sample.key)
        others = [row.p_value for row in table if row.p_value is not None]
        if own.p_value is None or min(others) > CLEAR:
            return None
        p_values += [own.p_value, unlike(members, basis.column(index))]
    count = len(sample.params)
    if count < LEAST_TO_DISMISS or min(p_values) < LITTLE:
        return None
    metrics = " or ".join(o.metric for o in sample.spec.objectives)
    text = (
        f"{sample.key}: shows no effect on {metrics} in {count} trials beyond what chance gives; "
        "it could be fixed."
    )
    good = sum(sample.chosen)
    return Hint(sample.key, "little_effect", text, good, good, count, count, min(p_values))
