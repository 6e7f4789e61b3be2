"""Finding valid points: rejection where that works, randomised backtracking where it does not."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spaces.constraints import Hint
from spaces.domains import AnyDomain, ChoiceDomain, FloatDomain, IntDomain
from spaces.fields import convert
from spaces.rules import DERIVED_KEYS, Point, Rule, holds

Params = dict[str, Any]

MAX_LISTED = 4096  # larger discrete domains are drawn from instead of listed
FEW = 16  # smaller discrete domains are only listed, in random order
DRAWS = 12  # pairs of values drawn of larger ones
_ROUNDS = 7  # restarts of a search, each with twice the effort of the one before
_FIRST_STEPS, _FIRST_DESCENTS, _FIRST_MISSES = 200, 2, 32
_KEEP = 0.5  # how much of what is preferred survives a restart
SKEW = 1e4  # how far the second of each pair leans to the low end


class OutOfStepsError(Exception):
    """A backtracking search has used up its steps without proving anything."""


class NoValidPointError(ValueError):
    """No valid point was found within the steps a search may take."""


class Effort:
    """How far a backtracking search may go before it gives up.

    Few descents at each parameter keep a search from exploring everything below an early value
    that cannot work; restarting with twice the effort keeps it from missing what can.

    Attributes:
        was_cut: whether a limit other than `steps` left something out.
    """

    def __init__(
        self, steps: float = math.inf, descents: float = math.inf, misses: float = math.inf
    ) -> None:
        """Limit values in all, and values that work and that fail at each parameter."""
        self.steps = steps
        self.descents = descents
        self.misses = misses
        self.was_cut = False

    def take(self) -> None:
        """Count one value.

        Raises:
            OutOfStepsError: none are left.
        """
        self.steps -= 1
        if self.steps < 0:
            raise OutOfStepsError


class Variable:
    """One searched parameter in the order of assignment.

    Attributes:
        conditions: parent key and the parent values under which it exists.
        rules: the rules that can be checked once it is assigned.
        hints: bounds on it that can be computed before it is assigned.
    """

    def __init__(self, key: str, domain: AnyDomain, rules: list[Rule], hints: list[Hint]) -> None:
        """Attach to a domain what can be checked and derived at its place in the order."""
        self.key = key
        self.domain = domain
        self.rules = rules
        self.hints = hints
        self.conditions = tuple((parent, frozenset(v)) for parent, v in domain.when.items())
        sample = convert(key, domain.ends()[0])
        self._as_float = isinstance(sample, float)

    def typed(self, value: Any) -> Any:
        """Give the value the type that the configuration field stores."""
        return float(value) if self._as_float else value

    def draw(self, unit: float) -> Any:
        """Map a uniform number of [0, 1) to a value."""
        return self.typed(self.domain.draw(unit))

    def candidates(self, point: Point, rng: np.random.Generator) -> Iterator[Any]:
        """Yield values to try: all of a domain that can be listed, some of any other."""
        domain: AnyDomain = self.domain
        for hint in self.hints:
            narrowed = _narrow(domain, hint, point)
            if narrowed is None:
                return
            domain = narrowed
        if domain.size > FEW:
            for unit, skewed in rng.random((DRAWS, 2)).tolist():
                yield self.typed(domain.draw(unit))
                # Budgets on parameters or compute often leave only the low end of a wide range.
                yield self.typed(domain.draw((SKEW**skewed - 1) / SKEW))
        if domain.size <= MAX_LISTED:
            values = list(domain.values())
            for index in rng.permutation(len(values)).tolist():
                yield self.typed(values[index])
            return
        for end in domain.ends():
            yield self.typed(end)

    @property
    def is_listed(self) -> bool:
        """Whether `candidates` leaves nothing out."""
        return self.domain.size <= MAX_LISTED


def _narrow(domain: AnyDomain, hint: Hint, point: Point) -> AnyDomain | None:
    """Keep the part of a numeric domain that a bound allows; None if nothing is left."""
    if isinstance(domain, ChoiceDomain):
        return domain
    try:
        bound = hint.bound(point)
    except ArithmeticError:
        return domain  # the rule itself will refuse the point
    if not isinstance(bound, int | float) or math.isnan(bound):
        return domain
    low, high = domain.bounds
    first = max(low, bound) if hint.sign in {"==", ">="} else low
    last = min(high, bound) if hint.sign in {"==", "<="} else high
    if first > last:
        return None
    if isinstance(domain, FloatDomain):
        return FloatDomain.model_construct(bounds=(first, last), log=domain.log)
    base, step = domain.bounds[0], domain.step
    start = base + math.ceil((first - base) / step) * step
    stop = base + math.floor((last - base) / step) * step
    if start > stop:
        return None
    return IntDomain.model_construct(bounds=(start, stop), step=domain.step, log=domain.log)


def assignment_order(domains: Mapping[str, AnyDomain], rules: Sequence[Rule]) -> list[str]:
    """Order keys: parents first, then whatever lets rules be checked early."""
    placed: list[str] = []
    waiting = list(domains)
    related = [rule.keys & domains.keys() for rule in rules]
    determined = {
        hint.key: _searched(hint, domains)
        for rule in rules
        for hint in rule.hints
        if hint.sign == "==" and hint.key in domains
    }
    while waiting:
        done = set(placed)
        ready = [key for key in waiting if not (domains[key].when.keys() & set(waiting))]

        def rank(key: str, done: set[str] = done) -> tuple[bool, int, int, float]:
            # A key that an equation determines waits until the rest of the equation is known.
            waits = not determined.get(key, set()) <= done
            completes = sum(1 for keys in related if key in keys and keys <= done | {key})
            touches = sum(1 for keys in related if key in keys)
            return waits, -completes, -touches, domains[key].size

        best = min(ready, key=rank)
        placed.append(best)
        waiting.remove(best)
    return placed


def _searched(hint: Hint, domains: Mapping[str, AnyDomain]) -> set[str]:
    keys = frozenset[str]().union(
        *(DERIVED_KEYS.get(name, frozenset({name})) for name in hint.needs)
    )
    return set(keys & domains.keys())


class Drawer:
    """Draws and searches points of one space. Holds no state between calls."""

    def __init__(
        self, domains: Mapping[str, AnyDomain], base: Mapping[str, Any], rules: Sequence[Rule]
    ) -> None:
        """Order the parameters and attach each rule to the last one it needs."""
        self._base = Point(base)
        fixed = [rule for rule in rules if not rule.keys & domains.keys()]
        # What no parameter can change is judged once.
        self._is_blocked = not all(holds(rule, self._base) for rule in fixed)
        order = assignment_order(domains, rules)
        self.variables: list[Variable] = []
        done: set[str] = set()
        for key in order:
            before = set(done)
            done.add(key)
            self.variables.append(
                Variable(
                    key,
                    domains[key],
                    [r for r in rules if key in r.keys and r.keys & domains.keys() <= done],
                    [
                        hint
                        for rule in rules
                        for hint in rule.hints
                        if hint.key == key and _searched(hint, domains) <= before
                    ],
                )
            )

    def point(self, params: Mapping[str, Any]) -> Point:
        """Complete parameters with the base configuration."""
        point = Point(self._base)
        point.update(params)
        return point

    def draw(self, rng: np.random.Generator) -> Params | None:
        """Draw every parameter from its domain; None if the point is not valid."""
        if self._is_blocked:
            return None
        point, params = Point(self._base), Params()
        units = rng.random(len(self.variables)).tolist()
        for variable, unit in zip(self.variables, units, strict=True):
            if is_active(variable, params):
                params[variable.key] = point[variable.key] = variable.draw(unit)
            if not all(holds(rule, point) for rule in variable.rules):
                return None
        return params

    def raw(self, rng: np.random.Generator) -> Params:
        """Draw every parameter from its domain, whatever the rules say."""
        params = Params()
        units = rng.random(len(self.variables)).tolist()
        for variable, unit in zip(self.variables, units, strict=True):
            if is_active(variable, params):
                params[variable.key] = variable.draw(unit)
        return params

    def search(
        self,
        rng: np.random.Generator,
        effort: Effort,
        pinned: Mapping[str, Any] | None = None,
        preferred: Mapping[str, Any] | None = None,
    ) -> Iterator[Params]:
        """Go through valid points in random order, assigning one parameter after another.

        Args:
            rng: orders the values.
            effort: used up as the search goes on.
            pinned: values that must not change.
            preferred: values to try first.

        Raises:
            OutOfStepsError: the effort's steps ran out between two points.
        """
        if not self._is_blocked:
            choice = _Choice(rng, effort, pinned, preferred)
            yield from self._descend(0, Point(self._base), Params(), choice)

    def _descend(
        self, depth: int, point: Point, params: Params, choice: "_Choice"
    ) -> Iterator[Params]:
        if depth == len(self.variables):
            yield dict(params)
            return
        variable = self.variables[depth]
        key = variable.key
        if not is_active(variable, params):
            if all(holds(rule, point) for rule in variable.rules):
                yield from self._descend(depth + 1, point, params, choice)
            return
        effort = choice.effort
        misses = descents = 0
        for value in choice.values(variable, point):
            if misses >= effort.misses or descents >= effort.descents:
                effort.was_cut = True
                break
            effort.take()
            params[key] = point[key] = value
            if all(holds(rule, point) for rule in variable.rules):
                descents += 1
                yield from self._descend(depth + 1, point, params, choice)
            else:
                misses += 1
        params.pop(key, None)
        point[key] = self._base[key]

    def find(
        self,
        rng: np.random.Generator,
        preferred: Mapping[str, Any] | None = None,
        rounds: int = _ROUNDS,
    ) -> Params:
        """Search for one valid point, restarting with more effort each time.

        Raises:
            NoValidPointError: none was found; the message tells whether that is proven.
        """
        kept, tries = dict(preferred or {}), 0
        for round_index in range(rounds):
            effort = _effort(round_index, is_last=round_index == rounds - 1)
            tries += int(effort.steps)
            try:
                found = next(self.search(rng, effort, preferred=kept), None)
            except OutOfStepsError:
                found, effort.was_cut = None, True
            if found is not None:
                return found
            if not effort.was_cut and self.is_complete():
                raise NoValidPointError("the space has no valid point")
            # What was to be kept may be what cannot work: keep less of it each time.
            kept = {key: value for key, value in kept.items() if rng.random() < _KEEP}
        raise NoValidPointError(f"found no valid point in {tries:,} tries")

    def enumerate(self) -> Iterator[Params]:
        """Go through all valid points of a finite space in a fixed order, one at a time."""
        if self._is_blocked:
            return iter(())
        return self._descend(0, Point(self._base), Params(), _InOrder())

    def is_complete(self) -> bool:
        """Tell whether a search that ends without a point proves that there is none."""
        return all(variable.is_listed for variable in self.variables)


def _effort(round_index: int, *, is_last: bool) -> Effort:
    scale = 2**round_index
    if is_last:
        # Without other limits, running to the end proves that there is no point.
        return Effort(_FIRST_STEPS * scale)
    return Effort(_FIRST_STEPS * scale, _FIRST_DESCENTS * scale, _FIRST_MISSES * scale)


class _Choice:
    """Which values a search tries for a parameter, and how many in all."""

    def __init__(
        self,
        rng: np.random.Generator,
        effort: Effort,
        pinned: Mapping[str, Any] | None,
        preferred: Mapping[str, Any] | None,
    ) -> None:
        self.effort = effort
        self._rng = rng
        self._pinned = pinned or {}
        self._preferred = preferred or {}

    def values(self, variable: Variable, point: Point) -> Iterator[Any]:
        """Yield the values to try."""
        if variable.key in self._pinned:
            yield self._pinned[variable.key]
            return
        if variable.key in self._preferred:
            yield self._preferred[variable.key]
        yield from variable.candidates(point, self._rng)


class _InOrder(_Choice):
    """All values of finite domains, in their order."""

    def __init__(self) -> None:
        super().__init__(np.random.default_rng(0), Effort(), None, None)

    def values(self, variable: Variable, point: Point) -> Iterator[Any]:
        """Yield every value."""
        del point
        return (variable.typed(value) for value in variable.domain.values())


def is_active(variable: Variable, params: Mapping[str, Any]) -> bool:
    """Tell whether the parameter exists, given the parameters before it."""
    return all(
        parent in params and params[parent] in values for parent, values in variable.conditions
    )
