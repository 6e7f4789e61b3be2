"""What must hold between the parts of a search space file, beyond the type of each part."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from spaces.constraints import InputConstraint, compile_constraint
from spaces.domains import AnyDomain, ChoiceDomain, Domain
from spaces.expressions import ExpressionError
from spaces.feasibility import Blocker, blockers
from spaces.fields import FIXED_KEYS, convert, searchable_keys, trial_keys, unknown_key
from spaces.metrics import BETTER
from spaces.points import completed
from spaces.problems import Path, shown
from spaces.reading import recipe
from spaces.space import SearchSpace
from trainables.config import flatten

MAX_CONSTRAINTS = 50
MAX_GUESSES = 50
_UNSEEN = frozenset({"model.drop_path"})  # by a score of the untrained network
_ALWAYS_MAX = frozenset({"val_top1", "val_top5"})

_DOMAIN: TypeAdapter[AnyDomain] = TypeAdapter(Domain)


@dataclass(frozen=True)
class Finding:
    """Something wrong at a path of the file.

    Attributes:
        at_key: whether the key, rather than its value, is the wrong part.
        column: offset into the text of the value, for errors at a place inside it.
    """

    path: Path
    message: str
    at_key: bool = False
    column: int | None = None


class Semantics:
    """Checks one plain tree as far as its parts are well-formed; ill-formed ones are skipped.

    Attributes:
        findings: everything wrong.
        base: every trial key's value, recipe and `trial` merged; None without a valid recipe.
        domains: the well-formed domains, values converted to what their fields store.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        """Run all checks but feasibility."""
        self.findings: list[Finding] = []
        self.domains: dict[str, AnyDomain] = {}
        self.inputs: list[tuple[int, str]] = []
        self._tree = tree
        self._num_unknown = 0
        self.base = self._recipe()
        self._trial()
        self._space()
        for key in list(self.domains):
            self._when(key)
        self._cycle()
        self._constraints()
        self._objectives()
        self._stopping()
        self._cost_aware()
        self._screen()
        self._points()

    def _mapping(self, key: str) -> dict[Any, Any]:
        value = self._tree.get(key)
        return dict(value) if isinstance(value, Mapping) else {}

    def _list(self, key: str) -> list[Any]:
        value = self._tree.get(key)
        return list(value) if isinstance(value, list | tuple) else []

    def _add(self, path: Path, message: str, **where: Any) -> None:
        self.findings.append(Finding(path, message, **where))

    def _unknown(self, key: object, valid: tuple[str, ...]) -> str:
        # Guessing takes time: a file of thousands of unknown keys is not a search space.
        self._num_unknown += 1
        return unknown_key(key, valid if self._num_unknown <= MAX_GUESSES else ())

    def _recipe(self) -> dict[str, Any] | None:
        name = self._tree.get("recipe")
        if not isinstance(name, str):
            return None
        try:
            return flatten(recipe(name).model_dump())
        except ValueError as error:
            self._add(("recipe",), str(error))
            return None

    def _trial(self) -> None:
        for key, value in self._mapping("trial").items():
            if key not in trial_keys():
                self._add(("trial", key), self._unknown(key, trial_keys()), at_key=True)
                continue
            try:
                typed = convert(key, value)
            except ValueError as error:
                self._add(("trial", key), str(error))
                continue
            if self.base is not None:
                self.base[key] = typed

    def _space(self) -> None:
        space = self._mapping("space")
        if isinstance(self._tree.get("space"), Mapping) and not space:
            self._add(("space",), "must hold at least one parameter, but it is empty")
        for key, raw in space.items():
            if key in FIXED_KEYS:
                message = "must not be searched: trials would no longer be comparable"
                self._add(("space", key), message, at_key=True)
                continue
            if key not in trial_keys():
                self._add(("space", key), self._unknown(key, searchable_keys()), at_key=True)
                continue
            if key in self._mapping("trial"):
                message = "must be in `trial` (fixed) or in `space` (searched), but it is in both"
                self._add(("space", key), message, at_key=True)
            try:
                domain = _DOMAIN.validate_python(raw)
            except ValidationError:
                continue  # reported with the types
            self._bind(key, domain)

    def _bind(self, key: str, domain: AnyDomain) -> None:
        """Keep a domain if its field accepts every value the domain can produce."""
        typed, before = [], len(self.findings)
        for index, value in enumerate(domain.ends()):
            try:
                typed.append(convert(key, value))
            except ValueError as error:
                self._add(("space", key, domain.form, index), str(error))
        if len(self.findings) > before:
            return
        if isinstance(domain, ChoiceDomain):
            seen: set[Any] = set()
            for index, value in enumerate(typed):
                if value in seen:
                    message = f"choices must differ, but got {shown(value)} twice"
                    self._add(("space", key, domain.form, index), message)
                seen.add(value)
            domain = domain.model_copy(update={"choice": tuple(typed)})
        self.domains[key] = domain

    def _when(self, key: str) -> None:
        when: dict[str, tuple[Any, ...]] = {}
        for parent, values in self.domains[key].when.items():
            path: Path = ("space", key, "when", parent)
            if parent not in trial_keys():
                self._add(path, self._unknown(parent, trial_keys()), at_key=True)
            elif parent == key:
                self._add(path, "must name another parameter, but got itself", at_key=True)
            else:
                when[parent] = tuple(
                    self._parent_value((*path, index), parent, value)
                    for index, value in enumerate(values)
                )
                self._check_fixed_parent(path, parent, when[parent])
        self.domains[key] = self.domains[key].model_copy(update={"when": when})

    def _parent_value(self, path: Path, parent: str, value: Any) -> Any:
        try:
            typed = convert(parent, value)
        except ValueError as error:
            self._add(path, f"{parent} {error}")
            return value
        domain = self.domains.get(parent)
        if domain is not None and not domain.contains(typed):
            got = domain.describe()
            self._add(path, f"{parent} must be able to be {shown(typed)}, but it is {got}")
        return typed

    def _check_fixed_parent(self, path: Path, parent: str, values: tuple[Any, ...]) -> None:
        if self.base is None or parent in self._mapping("space") or self.base[parent] in values:
            return
        got = shown(self.base[parent])
        self._add(path, f"must be met by some trial, but {parent} is fixed at {got}")

    def _cycle(self) -> None:
        waiting = dict(self.domains)
        while ready := [key for key, d in waiting.items() if not d.when.keys() & waiting.keys()]:
            for key in ready:
                del waiting[key]
        for key in waiting:
            message = f"must not depend on itself, but got a cycle of {', '.join(waiting)}"
            self._add(("space", key, "when"), message, at_key=True)

    def _constraints(self) -> None:
        texts = self._list("constraints")
        if len(texts) > MAX_CONSTRAINTS:
            message = f"must have at most {MAX_CONSTRAINTS} items, but got {len(texts)}"
            self._add(("constraints",), message)
            return
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                continue
            try:
                constraint = compile_constraint(text)
            except ExpressionError as error:
                self._add(("constraints", index), str(error), column=error.column)
                continue
            if isinstance(constraint, InputConstraint):
                self.inputs.append((index, text))

    def _objectives(self) -> None:
        seen: set[str] = set()
        for index, objective in enumerate(self._list("objectives")):
            if not isinstance(objective, Mapping) or not isinstance(objective.get("metric"), str):
                continue
            metric = objective["metric"]
            if metric in seen:
                message = f"objectives must differ, but got {shown(metric)} twice"
                self._add(("objectives", index, "metric"), message)
            seen.add(metric)
            if metric in _ALWAYS_MAX and objective.get("mode") == "min":
                message = f"must be max for the accuracy {metric}, but got 'min'"
                self._add(("objectives", index, "mode"), message)

    def _stopping(self) -> None:
        stopping = self._mapping("stopping")
        metric, mode = stopping.get("metric"), stopping.get("mode")
        if not isinstance(metric, str):
            return
        known = {
            o["metric"]: o.get("mode")
            for o in self._list("objectives")
            if isinstance(o, Mapping) and isinstance(o.get("metric"), str)
        }
        if mode is None and metric not in known and metric not in BETTER:
            message = (
                f"must have `mode: max` or `mode: min` beside it, but got only {shown(metric)}"
            )
            self._add(("stopping", "metric"), message)
        if mode in {"max", "min"} and known.get(metric, mode) != mode:
            message = f"must be {known[metric]} as in objectives, but got {shown(mode)}"
            self._add(("stopping", "mode"), message)

    def _cost_aware(self) -> None:
        sampler = self._mapping("sampler")
        name = sampler.get("name", "gp")
        if sampler.get("cost_aware") is True and name != "gp":
            self._add(("sampler", "cost_aware"), f"must be false for {shown(name)}: only gp can")

    def _screen(self) -> None:
        space = self._mapping("space")
        tells = any(isinstance(k, str) and k.startswith("model.") for k in space.keys() - _UNSEEN)
        if self._tree.get("screen") is not None and space and not tells:
            message = "must have a parameter of the network in `space`: it scores nothing else"
            self._add(("screen",), message, at_key=True)

    def _points(self) -> None:
        """Check each value of the points to try first by itself."""
        for index, point in enumerate(self._given_points()):
            for key, value in point.items() if isinstance(point, Mapping) else ():
                path: Path = ("sampler", "points", index, key)
                domain = self.domains.get(key)
                if key not in self._mapping("space"):
                    message = f"must be a key of `space`, but got {shown(key)}"
                    self._add(path, message, at_key=True)
                elif domain is not None:
                    try:
                        typed = convert(key, value)
                    except ValueError as error:
                        self._add(path, str(error))
                        continue
                    if not domain.contains(typed):
                        self._add(path, f"must be in {domain.describe()}, but got {shown(value)}")

    def _given_points(self) -> list[Any]:
        points = self._mapping("sampler").get("points")
        return list(points) if isinstance(points, list | tuple) else []

    def point_findings(self, space: SearchSpace) -> list[Finding]:
        """Points to try first that no valid point agrees with; only when there are no findings."""
        found = []
        for index, given in enumerate(self._given_points()):
            typed = {key: convert(key, value) for key, value in given.items()}
            if completed(space, typed) is None:
                rules = [p for p in space.problems(typed) if "must be set" not in p]
                message = "must be part of a valid configuration, but no such one has these values"
                if rules:
                    message += f": {'; '.join(rules[:2])}"
                found.append(Finding(("sampler", "points", index), message))
        return found

    def placed(self, blocker: Blocker) -> Finding:
        """Say where in the file a rule that leaves no valid point comes from."""
        if blocker.index is not None:
            return Finding(("constraints", self.inputs[blocker.index][0]), blocker.message)
        section = "space"
        if blocker.is_fixed:
            section = "trial" if self._mapping("trial") else "recipe"
        return Finding((section,), blocker.message, at_key=True)

    def search_space(self) -> SearchSpace:
        """Build the space; only when there are no findings."""
        return SearchSpace(self.domains, self.base or {}, [text for _, text in self.inputs])


def spec_findings(tree: Mapping[str, Any], *, feasibility: bool = True) -> list[Finding]:
    """Check a plain tree of a search space.

    Args:
        tree: as read from YAML; parts of the wrong type are skipped.
        feasibility: whether to look for a valid point if nothing else is wrong.

    Returns:
        Everything that is wrong, in no particular order.
    """
    semantics = Semantics(tree)
    if semantics.findings or not feasibility or semantics.base is None or not semantics.domains:
        return semantics.findings
    space = semantics.search_space()
    found = [semantics.placed(blocker) for blocker in blockers(space)]
    return found or semantics.point_findings(space)
