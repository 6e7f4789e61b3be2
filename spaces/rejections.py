"""Which rules leave out how much of a space, with an example of each."""

import re
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from spaces.metrics import DERIVED
from spaces.rules import SECTION, Point, Rule, holds
from spaces.space import SearchSpace

_MOST_LISTED = 4000
_DRAWS = 1000


def rejections(space: SearchSpace, seed: int) -> dict[str, Any]:
    """Count the combinations that each rule leaves out, one by one or in a sample.

    Returns:
        `checked` combinations, whether these `is_exact` (all there are), and for each of the
        `rules` that leave some out `rule`, `rejected`, `share`, and the first `example` (the
        searched parameters that the rule reads) with `why`.
    """
    rules = space.searched_rules
    is_exact = space.cardinality() <= _MOST_LISTED
    found: dict[str, dict[str, Any]] = {}
    checked = 0
    for params in _combinations(space, seed, is_exact=is_exact):
        checked += 1
        point = space.point(params)
        for rule in _broken(rules, point):
            entry = found.setdefault(
                rule.text,
                {
                    "rule": rule.text,
                    "rejected": 0,
                    "share": 0.0,
                    "example": {k: v for k, v in params.items() if k in rule.keys},
                    "why": _why(rule, point),
                },
            )
            entry["rejected"] += 1
    for entry in found.values():
        entry["share"] = entry["rejected"] / checked
    ordered = sorted(found.values(), key=lambda entry: -entry["rejected"])
    return {"checked": checked, "is_exact": is_exact, "rules": ordered}


def _combinations(space: SearchSpace, seed: int, *, is_exact: bool) -> Iterator[dict[str, Any]]:
    if is_exact:
        yield from space.drawer_for(()).enumerate()
    else:
        rng = np.random.default_rng(seed)
        yield from (space.raw(rng) for _ in repeat(None, _DRAWS))


def _broken(rules: Sequence[Rule], point: Point) -> Iterator[Rule]:
    """Rules that a point breaks, without those of a whole section where a narrower one says it."""
    broken = [rule for rule in rules if not holds(rule, point)]
    for rule in broken:
        others = (other for other in broken if other.index is None)
        if not rule.text.startswith(SECTION) or not any(o.keys < rule.keys for o in others):
            yield rule


def _why(rule: Rule, point: Point) -> str:
    """What must hold and what this point has; of costs, how much they are."""
    costs = [name for name in DERIVED if re.search(rf"\b{name}\b", rule.text)]
    if rule.index is None or not costs:
        return rule.broken_by(point)
    got = ", ".join(f"{name}={point[name]:.4g}" for name in costs)
    return f"`{rule.text}` must hold, but got {got}"
