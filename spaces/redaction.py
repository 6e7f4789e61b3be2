"""Hides secrets: the one redactor of all packages."""

import os
import re
from collections.abc import Callable
from urllib.parse import unquote

_USERINFO = re.compile(r"://[^\s/?#]+@")
_SECRET_VALUE = re.compile(
    r"(?<![\w-])((?-i:(?:[A-Z0-9]+_)+)?"
    r"(?:(?:access_|api_|auth_|id_|refresh_|session_|x-amz-security-)?token|api_?key|"
    r"access_?key|secret(?:_?access)?(?:_?key)?|password|passwd|pwd|sig|(?:x-amz-|x-goog-)?"
    r"(?:signature|credential))|(?-i:(?:[A-Z0-9]+_)+KEY))(=|: *)"
    r"(?:\"[^\"\n]+|'[^'\n]+|[^&\s'\"<>#;,]+)",
    re.IGNORECASE,
)
# Tokens that say themselves what they are: GitHub, Hugging Face, Slack, OpenAI, AWS, GitLab, JSON
# web tokens, Google.
_KNOWN_TOKEN = re.compile(
    r"\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|hf_\w{20,}|xox[abpr]-[\w-]{10,}|sk-[\w-]{20,}|"
    r"A[KS]IA[0-9A-Z]{16}|glpat-[\w-]{20,}|eyJ[\w-]{10,}\.[\w-]{10,}|AIza[\w-]{30,})"
)
_SECRET_NAME = re.compile(
    r"TOKEN|PASSW|SECRET|API_?KEY|_KEY(?:_|$)|ACCESSKEY|CREDENTIAL", re.IGNORECASE
)
_MIN_SECRET_CHARS = 8
_BEARER = re.compile(r"\b(?:Bearer|Basic)\s+[\w.~+/=-]{8,}")


def redact(text: str) -> str:
    """Hide what must not be shown.

    User and password in addresses, values of token-like keys, tokens of known form, and whatever
    the environment holds as a secret or as the password of an address.
    """
    return redactor()(text)


def redactor() -> Callable[[str], str]:
    """`redact` for several texts at once, for which it looks through the environment once."""
    secrets = _environment_secrets()

    def hide(text: str) -> str:
        text = _USERINFO.sub("://***@", text)
        text = _SECRET_VALUE.sub(r"\1\2***", text)
        text = _BEARER.sub("***", text)
        text = _KNOWN_TOKEN.sub("***", text)
        for secret in secrets:
            text = text.replace(secret, "***")
        return text

    return hide


def holds_secret(text: str) -> bool:
    """Whether a text holds what `redact` hides."""
    return redact(text) != text


def _environment_secrets() -> set[str]:
    found = {value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    for value in os.environ.values():
        userinfo, at, _ = value.partition("://")[2].rpartition("@")
        if at and "/" not in userinfo:
            password = userinfo.partition(":")[2]
            found |= {password, unquote(password)}
    # What is short would be found everywhere, and a path to a file of secrets is none.
    return {s for s in found if len(s) >= _MIN_SECRET_CHARS and not s.startswith("/")}
