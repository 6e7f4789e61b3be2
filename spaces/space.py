"""The points of a search space: drawing, listing, checking and comparing them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np

from spaces.constraints import InputConstraint, compile_constraint
from spaces.counting import cardinality
from spaces.domains import AnyDomain
from spaces.drawing import Drawer, Effort, NoValidPointError, OutOfStepsError, Params, Variable
from spaces.fields import convert
from spaces.problems import shown
from spaces.rules import Point, Rule, config_rules, constraint_rules, holds

MAX_LISTED_POINTS = 20_000
_PROBES = 400  # draws that tell whether rejection works for this space
_ENOUGH_PROBES = 4
_REJECTIONS = 600
_ATTEMPTS = 5
_NEIGHBOUR_STEPS = 200
_COMPLETION_STEPS = 100_000
_NEIGHBOUR_VALUES = 64  # of one parameter
_ABSENT = object()


class SearchSpace:
    """Searched parameters, the configuration they change, and the rules that bind both.

    A parameter whose `when` is not met is inactive: it is absent from the parameters, and the
    base configuration's value holds. Rules and constraints judge the complete configuration.
    Immutable; drawing depends on nothing but the generator.

    Args:
        domains: by dotted key; choices hold values as the configuration field stores them.
        base: every dotted key of the trial configuration.
        constraints: texts of hard constraints.
        is_network: whether the rules of a trial configuration hold as well; not so in spaces of
            other things than our networks, such as a table of learning curves.

    Raises:
        ValueError: `when` conditions form a cycle, or a text is not a hard constraint.
    """

    def __init__(
        self,
        domains: Mapping[str, AnyDomain],
        base: Mapping[str, Any],
        constraints: Sequence[str] = (),
        *,
        is_network: bool = True,
    ) -> None:
        """Compile the constraints and order the parameters."""
        self.domains = dict(domains)
        self.base = dict(base)
        self.constraints = tuple(constraints)
        compiled = [(i, compile_constraint(text)) for i, text in enumerate(self.constraints)]
        inputs = [(i, item) for i, item in compiled if isinstance(item, InputConstraint)]
        if len(inputs) != len(compiled):
            raise ValueError("constraints on measured metrics do not limit what may be proposed")
        self.rules: tuple[Rule, ...] = (
            *constraint_rules(inputs),
            *(config_rules() if is_network else ()),
        )
        self._is_network = is_network
        self._free = {key: self._without_fixed_parents(d) for key, d in self.domains.items()}
        self.keys = tuple(_parents_first(self._free))
        self._drawer = self.drawer_for(self.rules)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Pickle what it was made from: compiled rules cannot be pickled."""
        make = partial(SearchSpace, is_network=self._is_network)
        return make, (self.domains, self.base, self.constraints)

    def _without_fixed_parents(self, domain: AnyDomain) -> AnyDomain:
        unmet = {
            parent: values
            for parent, values in domain.when.items()
            if parent in self.domains or self.base[parent] not in values
        }
        return domain.model_copy(update={"when": unmet})

    def drawer_for(self, rules: Sequence[Rule]) -> Drawer:
        """Return what draws points that need to meet only the given rules."""
        return Drawer({key: self._free[key] for key in self.keys}, self.base, rules)

    @property
    def searched_rules(self) -> list[Rule]:
        """Rules that depend on at least one searched parameter."""
        return [rule for rule in self.rules if rule.keys & self.domains.keys()]

    @property
    def fixed_rules(self) -> list[Rule]:
        """Rules that the search cannot change the outcome of."""
        return [rule for rule in self.rules if not rule.keys & self.domains.keys()]

    @property
    def conditions(self) -> dict[str, dict[str, tuple[Any, ...]]]:
        """By key, which values its searched parents must have for it to exist."""
        return {key: dict(domain.when) for key, domain in self._free.items()}

    def active_keys(self, params: Mapping[str, Any]) -> set[str]:
        """Return the keys that exist for these parameters."""
        active: dict[str, Any] = {}
        for key in self.keys:
            if all(active.get(p, _ABSENT) in v for p, v in self._free[key].when.items()):
                active[key] = params.get(key)
        return set(active)

    def point(self, params: Mapping[str, Any]) -> Point:
        """Complete parameters to every key of the trial configuration."""
        return self._drawer.point(params)

    def problems(self, params: Mapping[str, Any]) -> list[str]:
        """Say what makes parameters invalid; empty if they may be proposed."""
        found = [f"unknown parameter {shown(key)}" for key in params if key not in self.domains]
        active = self.active_keys(params)
        typed = {}
        for key in self.keys:
            if key in active and key not in params:
                found.append(f"{key} must be set, but it is missing")
            elif key not in active and key in params:
                found.append(f"{key} must be absent where its `when` is not met")
            elif key in active:
                problem, typed[key] = self._check_value(key, params[key])
                found += [problem] if problem else []
        if found:
            return found
        point = self.point(typed)
        # Several rules can say the same of one mistake (the class repeats its group's).
        return list(dict.fromkeys(rule.broken_by(point) for rule in self._broken(point)))

    def allows(self, params: Mapping[str, Any]) -> bool:
        """Whether there is nothing that `problems` would say, which takes longer."""
        if params.keys() != self.active_keys(params):
            return False
        checked = {key: self._check_value(key, value) for key, value in params.items()}
        if any(problem for problem, _ in checked.values()):
            return False
        point = self.point({key: value for key, (_, value) in checked.items()})
        return next(self._broken(point), None) is None

    def _broken(self, point: Point) -> Iterator[Rule]:
        return (rule for rule in self.rules if not holds(rule, point))

    def _check_value(self, key: str, value: Any) -> tuple[str, Any]:
        try:
            typed = convert(key, value)
        except ValueError as error:
            return f"{key} {error}", value
        if not self.domains[key].contains(typed):
            return f"{key} must be in {self.domains[key].describe()}, but got {shown(value)}", typed
        return "", typed

    def typed(self, params: Mapping[str, Any]) -> Params:
        """Give every value the type its configuration field stores (1 becomes 1.0 in a float)."""
        return {key: convert(key, value) for key, value in params.items()}

    def key(self, params: Mapping[str, Any]) -> str:
        """Write parameters so that equal configurations, and only those, have equal text."""
        active = self.active_keys(params)
        typed = self.typed({key: params[key] for key in sorted(active) if key in params})
        return json.dumps(typed, sort_keys=True, separators=(",", ":"))

    def sample(self, rng: np.random.Generator) -> Params:
        """Draw a valid point: each parameter from its domain, given that the point is valid.

        Where fewer than one in a hundred draws is valid, listing (small spaces) or randomised
        backtracking takes over; the latter reaches every point but not equally often.

        Raises:
            NoValidPointError: none was found.
        """
        for _ in range(_ATTEMPTS):
            try:
                return self.find(rng)
            except NoValidPointError as error:
                if self.cardinality() <= MAX_LISTED_POINTS:
                    raise
                last = error
        raise last

    def find(self, rng: np.random.Generator) -> Params:
        """Draw a valid point like `sample`, but give up at the first failure.

        Raises:
            NoValidPointError: none was found.
        """
        for _ in range(self._rejections):
            params = self._drawer.draw(rng)
            if params is not None:
                return self._ordered(params)
        if self.cardinality() > MAX_LISTED_POINTS:
            return self._ordered(self._drawer.find(rng))
        if not self._listed:
            raise NoValidPointError("the space has no valid point")
        return dict(self._listed[int(rng.integers(len(self._listed)))])

    def repair(self, params: Mapping[str, Any], rng: np.random.Generator) -> Params:
        """Return these parameters if valid, else a valid point that keeps many of them.

        Raises:
            NoValidPointError: none was found.
        """
        known = {key: value for key, value in params.items() if key in self.domains}
        kept = self.typed({k: v for k, v in known.items() if not self._check_value(k, v)[0]})
        active = self.active_keys(kept)
        kept = {key: value for key, value in kept.items() if key in active}
        if self.allows(kept):
            return self._ordered(kept)
        near = next(self._changed(kept, self._mending(kept, rng), rng), None)
        if near is not None:
            return near
        try:
            return self._ordered(self._drawer.find(rng, kept))
        except NoValidPointError:
            return self.sample(rng)

    def completed(
        self, pinned: Mapping[str, Any], preferred: Mapping[str, Any], rng: np.random.Generator
    ) -> Params | None:
        """A valid point with the pinned values and, where rules allow, the preferred ones.

        None where there is none, or it is not found with some effort.
        """
        effort = Effort(_COMPLETION_STEPS)
        found = self._drawer.search(rng, effort, self.typed(pinned), self.typed(preferred))
        try:
            return next((self._ordered(params) for params in found), None)
        except OutOfStepsError:
            return None

    def neighbours(self, params: Mapping[str, Any], rng: np.random.Generator) -> Iterator[Params]:
        """Yield valid points that differ in one parameter, in random order.

        Children that the change activates are drawn; those that it deactivates disappear.
        """
        active = self.active_keys(params)
        current = {key: params[key] for key in self.keys if key in active and key in params}
        point = self.point({})
        changes: list[tuple[str, Any]] = []
        for variable in self._drawer.variables:
            if variable.key in active:
                hintless = Variable(variable.key, variable.domain, [], [])
                values = islice(hintless.candidates(point, rng), _NEIGHBOUR_VALUES)
                changes += [(variable.key, v) for v in values if v != current.get(variable.key)]
        return self._changed(current, changes, rng)

    def _mending(self, params: Params, rng: np.random.Generator) -> list[tuple[str, Any]]:
        """Changes of one parameter that may meet every rule that these parameters break."""
        point = self.point(params)
        missing = self.active_keys(params) - params.keys()
        broken = [rule.keys for rule in self._broken(point)]
        keys = set(self.keys) if missing else set(self.keys).intersection(*broken)
        for key in reversed(self.keys):  # a parent's change may make the parameter disappear
            keys |= self._free[key].when.keys() & self.domains.keys() if key in keys else set()
        changes: list[tuple[str, Any]] = []
        for key in self.keys:
            if key in keys and key in params:
                hints = [hint for rule in self.rules for hint in rule.hints if hint.key == key]
                hinted = Variable(key, self._free[key], [], hints)
                values = islice(hinted.candidates(point, rng), _NEIGHBOUR_VALUES)
                changes += [(key, value) for value in values if value != params[key]]
        if not changes and missing:  # nothing needs to change, only to be completed
            changes = list(params.items())[:1]
        return changes

    def _changed(
        self, current: Params, changes: Sequence[tuple[str, Any]], rng: np.random.Generator
    ) -> Iterator[Params]:
        """Valid points of these parameters with one of the changes, in random order."""
        for index in rng.permutation(len(changes)).tolist():
            key, value = changes[index]
            pinned = {**current, key: value}
            try:
                found = next(self._drawer.search(rng, Effort(_NEIGHBOUR_STEPS), pinned), None)
            except OutOfStepsError:
                continue
            if found is not None:
                yield self._ordered(found)

    def cardinality(self) -> int | float:
        """Count combinations before rules and constraints; infinite with a continuous one."""
        return self._cardinality

    @cached_property
    def _cardinality(self) -> int | float:
        return cardinality({key: self._free[key] for key in self.keys})

    def enumerate_valid(self, limit: int | None = None) -> Iterator[Params]:
        """Go through the valid points of a finite space in a fixed order, one at a time.

        Raises:
            ValueError: a parameter is continuous.
        """
        endless = [key for key in self.keys if math.isinf(self.domains[key].size)]
        if endless:
            raise ValueError(f"must be a finite space to be listed, but {endless[0]} is continuous")
        return (self._ordered(params) for params in islice(self._drawer.enumerate(), limit))

    def valid_share(self, rng: np.random.Generator, num_draws: int = 2000) -> float:
        """Return the share of combinations that is valid: exact for small spaces, else drawn."""
        count = self.cardinality()
        if count <= MAX_LISTED_POINTS:
            return sum(1 for _ in self.enumerate_valid()) / count
        return sum(self._drawer.draw(rng) is not None for _ in range(num_draws)) / num_draws

    def raw(self, rng: np.random.Generator) -> Params:
        """Draw every active parameter from its domain, whatever the rules say."""
        return self._drawer.raw(rng)

    def _ordered(self, params: Mapping[str, Any]) -> Params:
        return {key: params[key] for key in self.keys if key in params}

    @cached_property
    def _rejections(self) -> int:
        # A fixed seed, so that what `sample` returns depends on nothing but its generator.
        rng = np.random.default_rng(0)
        accepted = sum(self._drawer.draw(rng) is not None for _ in range(_PROBES))
        return _REJECTIONS if accepted >= _ENOUGH_PROBES else 0

    @cached_property
    def _listed(self) -> list[Params]:
        return list(self.enumerate_valid())


def _parents_first(domains: Mapping[str, AnyDomain]) -> list[str]:
    """Sort keys so that parents come first, else as given.

    Raises:
        ValueError: `when` conditions form a cycle.
    """
    placed: list[str] = []
    waiting = list(domains)
    while waiting:
        ready = [key for key in waiting if not (domains[key].when.keys() & set(waiting))]
        if not ready:
            raise ValueError(f"`when` conditions must not form a cycle, but {waiting[0]} is in one")
        placed.append(ready[0])
        waiting.remove(ready[0])
    return placed
