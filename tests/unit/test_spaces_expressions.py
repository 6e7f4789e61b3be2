import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.constraints import InputConstraint, OutcomeConstraint, compile_constraint
from spaces.expressions import Compiler, ExpressionError, parse
from spaces.rules import Point
from trainables.config import TrialConfig, flatten
from trainables.cost import parameter_count, total_macs

NAMES = {"a": "number", "b": "number", "t": "text", "f": "bool"}
BASE = flatten(TrialConfig().model_dump())


def evaluate(text: str, **point: object) -> object:
    return Compiler(text, NAMES).compile(parse(text)).evaluate(point)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "a + b * 2 - -a",
        "a / b",
        "a // b % 3",
        "a ** 2 > b",
        "1 < a < b <= 9",
        "a == b or not f",
        "f and a != b",
        "t == 'x'",
        "t in ['x', 'y']",
        "a not in [1, b]",
        "min(a, b, 3) + max(a, b) + abs(-a)",
        "+a",
    ],
)
@pytest.mark.parametrize(
    "point", [{"a": 2, "b": 5, "t": "x", "f": True}, {"a": 7.5, "b": 3, "t": "z", "f": False}]
)
def test_evaluates_as_python_does(text: str, point: dict[str, object]) -> None:
    assert evaluate(text, **point) == eval(text, {}, dict(point))


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("a.__class__ == 1", 0),
        ("__import__('os') == 1", 0),
        ("(lambda: 1)() == 1", 0),
        ("[x for x in [1]] == 1", 0),
        ("a[0] == 1", 0),
        ("1 == (a if f else b)", 6),
        ("f'{a}' == t", 0),
        ("a is b", 5),
        ("a & b", 0),
        ("~a", 0),
        ("a == 1j", 5),
        ("a == None", 5),
        ("a == ...", 5),
        ("b'x' == t", 0),
        ("a in b", 5),
        ("min(a) == 1", 0),
        ("abs(a, b) == 1", 0),
        ("min(a, key=b) == 1", 0),
        ("open(a) == 1", 0),
        ("t + 'x' == t", 0),
        ("t % a == t", 0),
        ("t * 3 == t", 0),
        ("t < 'x'", 0),
        ("a == 't'", 0),
        ("a in ['x']", 6),
        ("not a", 4),
        ("a and f", 0),
        ("  c > 1", 2),
        ("t == 'é' or d > 1", 12),
        ("a == 1e999", 5),
        ("-t == 1", 1),
    ],
)
def test_refuses_what_is_not_in_the_language(text: str, column: int) -> None:
    with pytest.raises(ExpressionError) as raised:
        evaluate(text, a=1, b=2, t="x", f=True)
    assert raised.value.column == column


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "a\n+ b",
        "a; b",
        "a = 1",
        "a := 1",
        "(" * 300,
        "-" * 400 + "a",
        "a" * 501,
        "a +",
        "9" * 450 + "0" * 40 + "x",
    ],
)
def test_refuses_what_is_no_expression(text: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate(text, a=1)


@pytest.mark.parametrize(
    "text",
    ["a / 0", "a % 0", "a ** 65", "(2 ** a) ** 64 ** 1 * 2 ** a", "(-8) ** 0.5", "1e300 ** 2"],
)
def test_what_cannot_be_computed_is_an_arithmetic_error(text: str) -> None:
    with pytest.raises(ArithmeticError):
        evaluate(text, a=64)


@given(st.text(max_size=60))
def test_any_text_compiles_or_is_refused(text: str) -> None:
    try:
        constraint = compile_constraint(text)
    except ExpressionError:
        return
    assert isinstance(constraint, InputConstraint | OutcomeConstraint)


def test_derived_names_are_the_costs() -> None:
    point = Point(BASE)
    model = TrialConfig().model
    assert point["params_m"] == parameter_count(model) / 1e6
    assert point["macs_g"] == total_macs(model) / 1e9
    columns = Point({**BASE, "data.name": "seq_cifar10"})
    assert columns["macs_g"] == total_macs(model, is_sequence=True) / 1e9
    with pytest.raises(KeyError):
        point["other"]


@pytest.mark.parametrize(
    ("text", "metrics", "violation"),
    [
        ("energy_mj <= 0.5", {"energy_mj": 0.7}, 0.2),
        ("energy_mj <= 0.5", {"energy_mj": 0.5}, 0.0),
        ("energy_mj < 0.5", {"energy_mj": 0.5}, 1e-12),
        ("0.5 >= energy_mj", {"energy_mj": 0.4}, -0.1),
        ("val_top1 >= 90", {"val_top1": 80.0}, 10.0),
        ("val_top1 / energy_mj > 2", {"val_top1": 3.0, "energy_mj": 1.0}, -1.0),
        ("val_top1 / energy_mj > 2", {"val_top1": 3.0, "energy_mj": 0.0}, math.inf),
        ("energy_mj <= 0.5", {}, math.inf),
        ("energy_mj <= 0.5", {"energy_mj": math.nan}, math.inf),
        ("energy_mj + params_m <= 0.5", {"energy_mj": 0.5, "params_m": 0.25}, 0.25),
    ],
)
def test_violation_of_outcomes(text: str, metrics: dict[str, float], violation: float) -> None:
    constraint = compile_constraint(text)
    assert isinstance(constraint, OutcomeConstraint)
    assert constraint.violation(metrics) == pytest.approx(violation)
