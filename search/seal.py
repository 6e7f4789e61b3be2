"""Seals: each value in the ledger carries a checksum of itself and of the place it belongs to."""

import hashlib
import json
from typing import Any

_HEAD = '{"seal": "'
_MIDDLE = '", "value": '
_SEAL_CHARS = 16
_VALUE_AT = len(_HEAD) + _SEAL_CHARS + len(_MIDDLE)


class SealError(ValueError):
    """A value is not the one that was written in this place."""


def sealed(place: str, value: Any) -> dict[str, Any]:
    """Wrap a value for `json.dumps`.

    Args:
        place: names search, trial and key, so that a value that moved elsewhere is noticed.
        value: anything that JSON can hold.
    """
    return {"seal": _seal(place, json.dumps(value)), "value": value}


def unsealed(place: str, text: object) -> Any:
    """Read back what `json.dumps(sealed(place, value))` wrote.

    Raises:
        SealError: it was altered, or written for another place.
    """
    if not isinstance(text, str) or not text.startswith(_HEAD) or not text.endswith("}"):
        raise SealError(place)
    value = text[_VALUE_AT:-1]
    seal = text[len(_HEAD) : len(_HEAD) + _SEAL_CHARS]
    if text[len(_HEAD) + _SEAL_CHARS : _VALUE_AT] != _MIDDLE or seal != _seal(place, value):
        raise SealError(place)
    return json.loads(value)


def _seal(place: str, text: str) -> str:
    # Typed as is, a damaged database can hold lone surrogates.
    data = f"{place}\0{text}".encode(errors="surrogatepass")
    return hashlib.sha256(data).hexdigest()[:_SEAL_CHARS]
