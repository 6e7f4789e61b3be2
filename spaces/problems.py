"""What is wrong with an input file, and where: shared by every stage of loading."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spaces.redaction import redact
from trainables.errors import InputError

Path = tuple[str | int, ...]

MAX_SHOWN_PROBLEMS = 20
MAX_LINE_CHARS = 320
MAX_VALUE_CHARS = 48
MAX_GUESSED_CHARS = 64


@dataclass(frozen=True)
class Problem:
    """One thing that must change; line and column count from 1.

    Attributes:
        file: the path as the user gave it, or `--set` for a command-line override.
        key: dotted path of the offending key, empty for the file as a whole.
        message: what must hold, but got what.
    """

    file: str
    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        """Write `file:line:column: key: message`."""
        key = f"{self.key}: " if self.key else ""
        place = f"{self.file}:{self.line}:{self.column}"
        return shorten(f"{place}: {key}{self.message}", MAX_LINE_CHARS)


class SpaceError(InputError):
    """A search space or trial configuration cannot be used; lists every problem by position.

    Attributes:
        problems: all of them, also those the message leaves out to fit one screen.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Sort by position and write the first ones into the message."""
        self.problems = tuple(sorted(set(problems), key=_position))
        lines = [str(problem) for problem in self.problems[:MAX_SHOWN_PROBLEMS]]
        if len(self.problems) > MAX_SHOWN_PROBLEMS:
            lines.append(f"… and {len(self.problems) - MAX_SHOWN_PROBLEMS} more")
        super().__init__("\n".join(lines))


def _position(problem: Problem) -> tuple[bool, str, int, int, str, str]:
    from_option = problem.file == "--set"
    return from_option, problem.file, problem.line, problem.column, problem.key, problem.message


def shorten(text: str, limit: int) -> str:
    """Cut text in its middle to at most `limit` characters."""
    if len(text) <= limit:
        return text
    return f"{text[: limit * 2 // 3]}…{text[-(limit // 3 - 1) :]}"


def shown(value: object) -> str:
    """Write a user's value into a message: one short printable line without URL passwords."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return shorten(repr(redact(shorten(value, 400))), MAX_VALUE_CHARS)
    if isinstance(value, dict):
        return f"a mapping of {len(value)} keys"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)} items"
    return shorten(repr(value), MAX_VALUE_CHARS)


def dotted(path: Path) -> str:
    """Write a path as `space.model.depth.int[0]`, printable and short."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if part.isprintable() and part else repr(part)
            text += f".{name}" if text else name
    return shorten(redact(text), 80)


def one_of(words: Sequence[object]) -> str:
    """List the valid words, at most twelve of them."""
    listed = ", ".join(str(word) for word in words[:12])
    return f"{listed}, … ({len(words)} in all)" if len(words) > 12 else listed


def did_you_mean(word: object, valid: Sequence[str]) -> str:
    """Suggest the closest valid word, or list the valid ones when none is close."""
    if not isinstance(word, str) or len(word) > MAX_GUESSED_CHARS:
        return ""
    if not valid:
        return ""
    by_fold = {name.casefold(): name for name in valid}
    # The last part of a dotted key is what people remember: `lr` for `train.lr`.
    by_fold.update({name.rpartition(".")[2].casefold(): name for name in valid})
    close = difflib.get_close_matches(word.casefold(), list(by_fold), n=1, cutoff=0.6)
    if close:
        return f", did you mean {by_fold[close[0]]}?"
    return f", valid: {one_of(valid)}"
