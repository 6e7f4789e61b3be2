"""Constraints on configurations (hard) and on measured outcomes (told to the ledger)."""

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from spaces.expressions import Compiled, Compiler, Evaluate, ExpressionError, parse
from spaces.fields import Kind, kind_of, trial_keys
from spaces.metrics import DERIVED, METRICS

_MEASURED = frozenset(METRICS) - set(DERIVED)
_STRICT_MARGIN = 1e-12

HintSign = Literal["==", "<=", ">="]
_HINT_SIGNS: dict[type[ast.cmpop], HintSign] = {
    ast.Eq: "==",
    ast.LtE: "<=",
    ast.Lt: "<=",
    ast.GtE: ">=",
    ast.Gt: ">=",
}
_MIRRORED: dict[HintSign, HintSign] = {"==": "==", "<=": ">=", ">=": "<="}


@dataclass(frozen=True)
class Hint:
    """`key sign bound` follows from the constraint: narrows what to try for the key."""

    key: str
    sign: HintSign
    bound: Evaluate
    needs: frozenset[str]


@dataclass(frozen=True)
class InputConstraint:
    """A condition on configuration keys, `params_m` and `macs_g`: no proposal ever breaks it."""

    text: str
    names: frozenset[str]
    evaluate: Evaluate = field(repr=False)
    hints: tuple[Hint, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class OutcomeConstraint:
    """A bound on measured metrics: results that break it are infeasible, not impossible."""

    text: str
    names: frozenset[str]
    lesser: Evaluate = field(repr=False)
    greater: Evaluate = field(repr=False)
    strict: bool = False

    def violation(self, metrics: Mapping[str, float]) -> float:
        """Say by how much measured metrics break the bound; at most 0 where they keep it.

        Returns:
            Lesser side minus greater side, in their own unit; infinity if a metric is missing,
            not finite, or the bound cannot be computed.
        """
        values = [metrics.get(name, math.nan) for name in self.names]
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            return math.inf
        try:
            excess = float(self.lesser(metrics) - self.greater(metrics))
        except ArithmeticError:
            return math.inf
        if math.isnan(excess):
            return math.inf
        return _STRICT_MARGIN if self.strict and excess == 0.0 else excess


def constraint_names() -> dict[str, Kind]:
    """List every name a constraint may mention, and what it holds."""
    names: dict[str, Kind] = {key: kind_of(key) for key in trial_keys()}
    names.update(dict.fromkeys((*DERIVED, *METRICS), "number"))
    return names


def compile_constraint(text: str) -> InputConstraint | OutcomeConstraint:
    """Compile the text of a constraint.

    Raises:
        ExpressionError: the text is not a constraint; it carries the column.
    """
    tree = parse(text)
    compiler = Compiler(text, constraint_names())
    whole = compiler.compile(tree)
    if whole.kind != "bool":
        raise ExpressionError("must be a condition such as `params_m <= 12`, not a value")
    if not whole.names:
        raise ExpressionError("must mention at least one configuration key or metric")
    if whole.names & _MEASURED:
        return _outcome(text, tree, compiler, whole)
    return InputConstraint(text, whole.names, whole.evaluate, tuple(_hints(tree, compiler)))


def _outcome(text: str, tree: ast.expr, compiler: Compiler, whole: Compiled) -> OutcomeConstraint:
    others = sorted(whole.names - set(METRICS))
    if others:
        metric = min(whole.names & _MEASURED)
        raise ExpressionError(
            f"a constraint on the measured metric {metric} may mention only metrics and numbers, "
            f"but got {others[0]}"
        )
    if (
        not isinstance(tree, ast.Compare)
        or len(tree.ops) != 1
        or not isinstance(tree.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE)
    ):
        raise ExpressionError(
            "a constraint on measured metrics must have the form `a <= b` (or <, >=, >)"
        )
    left, right = compiler.compile(tree.left), compiler.compile(tree.comparators[0])
    if isinstance(tree.ops[0], ast.Gt | ast.GtE):
        left, right = right, left
    strict = isinstance(tree.ops[0], ast.Lt | ast.Gt)
    return OutcomeConstraint(text, whole.names, left.evaluate, right.evaluate, strict)


def _hints(tree: ast.expr, compiler: Compiler) -> list[Hint]:
    if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And):
        return [hint for part in tree.values for hint in _hints(part, compiler)]
    if not isinstance(tree, ast.Compare):
        return []
    hints = []
    sides = [compiler.compile(side) for side in (tree.left, *tree.comparators) if _is_value(side)]
    if len(sides) != len(tree.ops) + 1:
        return []
    nodes = [tree.left, *tree.comparators]
    for index, sign in enumerate(tree.ops):
        word = _HINT_SIGNS.get(type(sign))
        if word is None:
            continue
        for key, other, direction in (
            (index, index + 1, word),
            (index + 1, index, _MIRRORED[word]),
        ):
            name = ast.unparse(nodes[key])
            if isinstance(nodes[key], ast.Name | ast.Attribute) and name in sides[key].names:
                bound = sides[other]
                if name not in bound.names:
                    hints.append(Hint(name, direction, bound.evaluate, bound.names))
    return hints


def _is_value(node: ast.expr) -> bool:
    return not isinstance(node, ast.List | ast.Tuple)
