"""How many combinations a space has before rules, `when` taken into account."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from spaces.domains import AnyDomain, ChoiceDomain

MAX_STEPS = 100_000


def cardinality(domains: Mapping[str, AnyDomain]) -> int | float:
    """Count combinations of active parameters.

    Exact for finite spaces; where parents have so many distinct roles that counting would not
    end soon, the product of all sizes, an upper bound.

    Args:
        domains: by key, parents before children.

    Returns:
        The count, or infinity if a parameter is continuous.
    """
    if any(math.isinf(domain.size) for domain in domains.values()):
        return math.inf
    count = 1
    for group in _connected(domains):
        counter = _Counter({key: domains[key] for key in domains if key in group})
        exact = counter.count(0, {})
        count *= math.prod(int(domains[key].size) for key in group) if exact is None else exact
    return count


def _connected(domains: Mapping[str, AnyDomain]) -> list[set[str]]:
    """Split keys into groups that no `when` links."""
    groups: list[set[str]] = []
    for key, domain in domains.items():
        linked = {key, *(parent for parent in domain.when if parent in domains)}
        apart = []
        for group in groups:
            if group & linked:
                linked |= group
            else:
                apart.append(group)
        groups = [*apart, linked]
    return groups


class _Counter:
    """Counts by the roles of parent values: values that switch the same children are one role."""

    def __init__(self, domains: Mapping[str, AnyDomain]) -> None:
        self._keys = list(domains)
        self._domains = domains
        self._roles = {key: self._roles_of(key) for key in domains}
        self._steps = 0

    def _roles_of(self, key: str) -> list[tuple[Any, int]]:
        """List one value and the number of values of each role."""
        conditions = [set(d.when[key]) for d in self._domains.values() if key in d.when]
        domain = self._domains[key]
        mentioned = {value for values in conditions for value in values if domain.contains(value)}
        if isinstance(domain, ChoiceDomain):
            mentioned = set(domain.choice)
        sizes: Counter[tuple[bool, ...]] = Counter()
        example: dict[tuple[bool, ...], Any] = {}
        for value in mentioned:
            role = tuple(value in values for values in conditions)
            sizes[role] += 1
            example[role] = value
        others = int(domain.size) - len(mentioned)
        if others:
            role = (False,) * len(conditions)
            sizes[role] += others
            example.setdefault(role, _OTHER)
        return [(example[role], size) for role, size in sizes.items()]

    def count(self, depth: int, chosen: dict[str, Any]) -> int | None:
        """Count completions; None when it takes too long."""
        if depth == len(self._keys):
            return 1
        self._steps += 1
        if self._steps > MAX_STEPS:
            return None
        key = self._keys[depth]
        conditions = self._domains[key].when.items()
        if not all(parent in chosen and chosen[parent] in values for parent, values in conditions):
            return self.count(depth + 1, chosen)
        total = 0
        for value, size in self._roles[key]:
            below = self.count(depth + 1, {**chosen, key: value})
            if below is None:
                return None
            total += size * below
        return total


_OTHER = object()
