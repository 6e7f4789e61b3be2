"""Why a space has no valid point."""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from spaces.drawing import NoValidPointError
from spaces.rules import Point, Rule, holds
from spaces.space import SearchSpace

_DRAWS = 500
_MAX_SUSPECTS = 8
_ROUNDS = 4


@dataclass(frozen=True)
class Blocker:
    """A rule that leaves no valid point.

    Attributes:
        index: which of the user's constraints it is, None for a rule of the network.
        is_fixed: whether no searched parameter could change its outcome.
    """

    index: int | None
    message: str
    is_fixed: bool = False


def blockers(space: SearchSpace) -> list[Blocker]:
    """Name the rules that leave a space without a valid point; empty when it has one."""
    fixed = [rule for rule in space.fixed_rules if not holds(rule, space.point({}))]
    # The rules of a whole section repeat those of its groups.
    broken = [
        rule
        for rule in fixed
        if rule.index is not None or not any(rule.keys < o.keys for o in fixed if o.index is None)
    ]
    if broken:
        point = space.point({})
        return [Blocker(rule.index, rule.broken_by(point), is_fixed=True) for rule in broken]
    try:
        space.find(np.random.default_rng(0))
    except NoValidPointError as error:
        return _explain(space, str(error))
    return []


def _explain(space: SearchSpace, reason: str) -> list[Blocker]:
    rules = space.searched_rules
    failures, example = _failures(space, rules)
    suspects = sorted(failures, key=lambda i: -failures[i])[:_MAX_SUSPECTS]
    alone = [i for i in suspects if _impossible(space, [rules[i]])]
    if alone:
        # A section's rules repeat those of its groups: say the user's own, or only the first.
        own = [i for i in alone if rules[i].index is not None] or alone[:1]
        return [
            Blocker(rules[i].index, f"{_named(rules[i], example[i])} rejects every point: {reason}")
            for i in own
        ]
    for pair in combinations(suspects, 2):
        if _impossible(space, [rules[i] for i in pair]):
            named = sorted(pair, key=lambda i: rules[i].index is None)
            text = " and ".join(_named(rules[i], example[i]) for i in named)
            text += f" together reject every point: {reason}"
            return [Blocker(rules[named[0]].index, text)]
    if not suspects:
        return [Blocker(None, reason)]
    worst = suspects[0]
    share = 100 * failures[worst] / _DRAWS
    text = f"{reason}; {_named(rules[worst], example[worst])} fails most ({share:.0f} %)"
    return [Blocker(rules[worst].index, text)]


def _failures(space: SearchSpace, rules: list[Rule]) -> tuple[Counter[int], dict[int, Point]]:
    """Count how often each rule fails on random points, with one such point."""
    rng = np.random.default_rng(1)
    failures: Counter[int] = Counter()
    example: dict[int, Point] = {}
    for _ in range(_DRAWS):
        point = space.point(space.raw(rng))
        for index, rule in enumerate(rules):
            if not holds(rule, point):
                failures[index] += 1
                example.setdefault(index, point)
    return failures, example


def _impossible(space: SearchSpace, rules: list[Rule]) -> bool:
    try:
        space.drawer_for(rules).find(np.random.default_rng(2), rounds=_ROUNDS)
    except NoValidPointError:
        return True
    return False


def _named(rule: Rule, example: Point) -> str:
    if rule.index is not None:
        return f"`{rule.text}`"
    return f"the network's rule {rule.broken_by(example)}"
