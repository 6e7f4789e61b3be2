"""The small, safe expression language of constraints: parsed by `ast`, run as closures, no eval.

Numbers, text, dotted names, `+ - * / // % **`, comparisons (chained), `and or not`,
`in [..]`, `min max abs`. Types are checked when compiling, so evaluating a point can only fail
arithmetically (division by zero, overflow).
"""

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spaces.fields import Kind
from spaces.problems import did_you_mean, shown

Point = Mapping[str, Any]
Evaluate = Callable[[Point], Any]

MAX_CHARS = 500
MAX_PARTS = 200
MAX_EXPONENT = 64
MAX_INT_BITS = 1024


class ExpressionError(ValueError):
    """An expression is not in the language.

    Attributes:
        column: where in the expression, counted from 0; None for the expression as a whole.
    """

    def __init__(self, message: str, column: int | None = None) -> None:
        """Keep the column beside the message."""
        super().__init__(message)
        self.column = column


@dataclass(frozen=True)
class Compiled:
    """A part of an expression that can be evaluated at a point."""

    kind: Kind
    evaluate: Evaluate
    names: frozenset[str] = frozenset()


def _bounded(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(left: Any, right: Any) -> Any:
        result = function(left, right)
        if type(result) is int and result.bit_length() > MAX_INT_BITS:
            raise OverflowError("integer too large")
        return result

    return apply


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > MAX_EXPONENT:
        raise OverflowError("exponent too large")
    result = base**exponent
    if isinstance(result, complex):
        raise ArithmeticError("root of a negative number")
    return result


_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: _bounded(operator.mul),
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _bounded(_power),
}
_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_EQUALITY: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs}


def parse(text: str) -> ast.expr:
    """Parse an expression and check its size.

    Raises:
        ExpressionError: it is empty, too long, not an expression, or not in the language.
    """
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"must have at most {MAX_CHARS} characters, but got {len(text)}")
    if not text.strip() or "\n" in text or "\r" in text or "\f" in text:
        raise ExpressionError("must be an expression on one line")
    lead = len(text) - len(text.lstrip())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        column = max(0, (error.offset or 1) - 1) + lead
        message = f"must be an expression, but got {shown(text)} ({error.msg})"
        raise ExpressionError(message, column) from None
    except (ValueError, MemoryError, RecursionError):
        raise ExpressionError(f"must be an expression, but got {shown(text)}") from None
    if sum(1 for _ in ast.walk(tree)) > MAX_PARTS:
        raise ExpressionError(f"must have at most {MAX_PARTS} parts")
    for node in ast.walk(tree):
        # get_source_segment needs both ends; leading blanks were cut off before parsing.
        if lead and isinstance(node, ast.expr):
            node.col_offset += lead
            node.end_col_offset = (node.end_col_offset or 0) + lead
    return tree


class Compiler:
    """Turn the syntax tree of a constraint into closures, checking names and types.

    Args:
        text: the expression, for messages.
        names: the kind of each name it may mention.
    """

    def __init__(self, text: str, names: Mapping[str, Kind]) -> None:
        """Keep the text for messages."""
        self._text = text
        self._names = names

    def compile(self, node: ast.expr) -> Compiled:
        """Compile a part of the expression.

        Raises:
            ExpressionError: a name is unknown, types do not fit, or a construct is not allowed.
        """
        match node:
            case ast.Constant():
                return self._constant(node)
            case ast.Name() | ast.Attribute():
                return self._name(node)
            case ast.BinOp():
                return self._binary(node)
            case ast.UnaryOp():
                return self._unary(node)
            case ast.BoolOp():
                return self._logic(node)
            case ast.Compare():
                return self._comparison(node)
            case ast.Call():
                return self._call(node)
        raise self._refusal(node)

    def _refusal(self, node: ast.AST) -> ExpressionError:
        return self._error(
            node,
            "may hold only names, numbers, text, + - * / // % **, comparisons, and, or, not, "
            f"in [..], min, max, abs, but got {self._source(node)}",
        )

    def _error(self, node: ast.AST, message: str) -> ExpressionError:
        # ast counts columns in UTF-8 bytes.
        offset = getattr(node, "col_offset", 0)
        before = self._text.encode()[:offset].decode(errors="ignore")
        return ExpressionError(message, len(before))

    def _constant(self, node: ast.Constant) -> Compiled:
        value = node.value
        if isinstance(value, bool):
            return Compiled("bool", lambda _: value)
        if isinstance(value, str):
            return Compiled("text", lambda _: value)
        if isinstance(value, int | float) and abs(value) <= 1e300:
            return Compiled("number", lambda _: value)
        raise self._refusal(node)

    def _name(self, node: ast.Name | ast.Attribute) -> Compiled:
        parts: list[str] = []
        part: ast.expr = node
        while isinstance(part, ast.Attribute):
            parts.append(part.attr)
            part = part.value
        if not isinstance(part, ast.Name):
            raise self._refusal(node)
        name = ".".join([part.id, *reversed(parts)])
        if name in {"true", "false"}:
            truth = name == "true"
            return Compiled("bool", lambda _: truth)
        if name not in self._names:
            known = tuple(self._names)
            raise self._error(node, f"unknown name {shown(name)}{did_you_mean(name, known)}")
        return Compiled(self._names[name], operator.itemgetter(name), frozenset({name}))

    def _numbers(self, node: ast.expr) -> Compiled:
        part = self.compile(node)
        if part.kind != "number":
            raise self._error(node, f"must be a number, but got {self._worded(node, part)}")
        return part

    def _truth(self, node: ast.expr) -> Compiled:
        part = self.compile(node)
        if part.kind != "bool":
            raise self._error(node, f"must be a condition, but got {self._worded(node, part)}")
        return part

    def _source(self, node: ast.AST) -> str:
        return shown(ast.get_source_segment(self._text, node) or "…")

    def _worded(self, node: ast.AST, part: Compiled) -> str:
        return f"{self._source(node)} ({part.kind})"

    def _binary(self, node: ast.BinOp) -> Compiled:
        if type(node.op) not in _ARITHMETIC:
            raise self._refusal(node)
        apply = _ARITHMETIC[type(node.op)]
        left, right = self._numbers(node.left), self._numbers(node.right)
        first, second = left.evaluate, right.evaluate
        return Compiled(
            "number", lambda point: apply(first(point), second(point)), left.names | right.names
        )

    def _unary(self, node: ast.UnaryOp) -> Compiled:
        if isinstance(node.op, ast.Not):
            inner = self._truth(node.operand)
            evaluate = inner.evaluate
            return Compiled("bool", lambda point: not evaluate(point), inner.names)
        if isinstance(node.op, ast.USub | ast.UAdd):
            inner = self._numbers(node.operand)
            evaluate = inner.evaluate
            if isinstance(node.op, ast.UAdd):
                return inner
            return Compiled("number", lambda point: -evaluate(point), inner.names)
        raise self._refusal(node)

    def _logic(self, node: ast.BoolOp) -> Compiled:
        parts = [self._truth(value) for value in node.values]
        names = frozenset[str]().union(*(part.names for part in parts))
        evaluates = [part.evaluate for part in parts]
        if isinstance(node.op, ast.And):
            return Compiled("bool", lambda point: all(e(point) for e in evaluates), names)
        return Compiled("bool", lambda point: any(e(point) for e in evaluates), names)

    def _comparison(self, node: ast.Compare) -> Compiled:
        tests: list[Compiled] = []
        left = node.left
        for sign, right in zip(node.ops, node.comparators, strict=True):
            tests.append(self._test(left, sign, right))
            left = right
        if len(tests) == 1:
            return tests[0]
        evaluates = [test.evaluate for test in tests]
        names = frozenset[str]().union(*(test.names for test in tests))
        return Compiled("bool", lambda point: all(e(point) for e in evaluates), names)

    def _test(self, left: ast.expr, sign: ast.cmpop, right: ast.expr) -> Compiled:
        if type(sign) in _ORDER:
            one, two = self._numbers(left), self._numbers(right)
            return _compare(_ORDER[type(sign)], one, two)
        if type(sign) in _EQUALITY:
            one, two = self.compile(left), self.compile(right)
            if one.kind != two.kind and "other" not in {one.kind, two.kind}:
                message = f"must compare like with like, but got {one.kind} and {two.kind}"
                raise self._error(left, message)
            return _compare(_EQUALITY[type(sign)], one, two)
        if isinstance(sign, ast.In | ast.NotIn):
            return self._membership(left, right, isinstance(sign, ast.NotIn))
        raise self._refusal(right)

    def _membership(self, left: ast.expr, right: ast.expr, negate: bool) -> Compiled:  # noqa: FBT001
        if not isinstance(right, ast.List | ast.Tuple):
            raise self._error(right, "`in` must be followed by a list, as in `x in [1, 2]`")
        one = self.compile(left)
        items = [self.compile(item) for item in right.elts]
        for node, item in zip(right.elts, items, strict=True):
            if item.kind != one.kind and "other" not in {item.kind, one.kind}:
                message = f"must compare like with like, but got {one.kind} and {item.kind}"
                raise self._error(node, message)
        names = one.names.union(*(item.names for item in items))
        evaluate, evaluates = one.evaluate, [item.evaluate for item in items]

        def test(point: Point) -> bool:
            value = evaluate(point)
            return any(value == e(point) for e in evaluates) is not negate

        return Compiled("bool", test, names)

    def _call(self, node: ast.Call) -> Compiled:
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS or node.keywords:
            raise self._refusal(node)
        function = _FUNCTIONS[node.func.id]
        parts = [self._numbers(argument) for argument in node.args]
        if (len(parts) != 1) if node.func.id == "abs" else (len(parts) < 2):
            wanted = "one argument" if node.func.id == "abs" else "two or more arguments"
            raise self._error(node, f"{node.func.id} must have {wanted}, but got {len(parts)}")
        names = frozenset[str]().union(*(part.names for part in parts))
        evaluates = [part.evaluate for part in parts]
        return Compiled("number", lambda point: function(*(e(point) for e in evaluates)), names)


def _compare(test: Callable[[Any, Any], bool], one: Compiled, two: Compiled) -> Compiled:
    first, second = one.evaluate, two.evaluate
    return Compiled("bool", lambda point: test(first(point), second(point)), one.names | two.names)
