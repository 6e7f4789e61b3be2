"""Say what pydantic found as `what must hold, but got what`."""

import re
from collections.abc import Mapping
from typing import Any

from spaces.problems import did_you_mean, one_of, shown

_YAML_11_BOOLS = frozenset({"yes", "no", "on", "off", "y", "n"})
_GROUPED_DIGITS = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?")

_BOUNDS = {
    "greater_than": ("gt", ">"),
    "greater_than_equal": ("ge", ">="),
    "less_than": ("lt", "<"),
    "less_than_equal": ("le", "<="),
}
_KINDS = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
}


def explain(error: Mapping[str, Any]) -> str:
    """Word one entry of `ValidationError.errors()`.

    Unknown keys are not worded here: suggesting a key needs to know the valid ones.
    """
    kind, got, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        return "must be set, but it is missing"
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}, but got {shown(got)}{_hint(kind, got)}"
    if kind in _BOUNDS:
        name, sign = _BOUNDS[kind]
        return f"must be {sign} {context[name]}, but got {shown(got)}"
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", str(context["expected"]))
        return f"must be one of {one_of(words)}, but got {shown(got)}{_closest(got, words)}"
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}, but got {shown(got)}"
    if kind in {"too_short", "too_long"}:
        return _length(kind, context)
    if kind == "value_error":
        return str(context["error"])
    return f"must hold: {error['msg']}, but got {shown(got)}"


def _length(kind: str, context: Mapping[str, Any]) -> str:
    sign, limit = ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
    return f"must have {sign} {context[limit]} items, but got {context['actual_length']}"


def _closest(got: object, words: list[str]) -> str:
    guess = did_you_mean(got, words)
    return guess if guess.startswith(", did") else ""


def _hint(kind: str, got: object) -> str:
    """Name the YAML trap behind a wrong type."""
    if kind == "string_type" and isinstance(got, int | float):
        return f" (quote it: '{shown(got)}')"
    if not isinstance(got, str):
        return ""
    if kind == "bool_type" and got.casefold() in _YAML_11_BOOLS:
        return " (YAML 1.2: write true or false)"
    if kind in {"int_type", "float_type"} and _GROUPED_DIGITS.fullmatch(got):
        return " (write the number without quotes and underscores)"
    return ""
