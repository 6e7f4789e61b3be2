"""YAML 1.2 core-schema scalars, with the traps of YAML 1.1 turned into errors.

PyYAML resolves YAML 1.1: `1e-4` is text, `no` is false, `010` is 8 and `1:30` is 90 there.
"""

import math
import re

Scalar = None | bool | int | float | str

MAX_INT_DIGITS = 18

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_ZERO = re.compile(r"[-+]?[0.]+(?:[eE].*)?")


def resolve(text: str) -> Scalar:
    """Read an unquoted scalar.

    Raises:
        ValueError: it is a number that cannot be meant as written; the message says why.
    """
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.fullmatch(text):
        return _integer(text)
    if _BASED.fullmatch(text):
        _check_digits(text[2:], text)
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return _float(text)
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"must be a finite number, but got {text}")
    return text


def _integer(text: str) -> int:
    digits = text.lstrip("+-")
    if len(digits) > 1 and digits[0] == "0":
        short = text if len(text) <= 24 else f"{text[:20]}…"
        raise ValueError(
            f"must not start with a zero, but got {short}: "
            f"quote it ('{short}') if it is text, drop the zero if it is a number"
        )
    _check_digits(digits, text)
    return int(text)


def _check_digits(digits: str, text: str) -> None:
    if len(digits) > MAX_INT_DIGITS:
        raise ValueError(
            f"must be an integer of at most {MAX_INT_DIGITS} digits, "
            f"but got {len(digits)} ({text[:16]}…)"
        )


def _float(text: str) -> float:
    if len(text) > 64:
        raise ValueError(f"must be a number of at most 64 characters, but got {len(text)}")
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"must be a finite number, but got {text} (too large for a float)")
    if number == 0.0 and not _ZERO.fullmatch(text):
        raise ValueError(f"must be a representable number, but got {text} (too small for a float)")
    return number
