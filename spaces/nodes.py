"""From YAML text to nodes that remember where they stand, with caps that hold before recursion."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)

from spaces.problems import Path, Problem, SpaceError, dotted, shorten, shown
from spaces.scalars import Scalar, resolve

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 10_000

# What YAML does not allow, and the line separators that editors do not count as lines.
_FORBIDDEN = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\u2028\u2029\ufeff]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Mark:
    """A place in an input; line and column count from 1."""

    file: str
    line: int
    column: int

    def problem(self, message: str, key: str = "") -> Problem:
        """Report what is wrong at this place."""
        return Problem(self.file, self.line, self.column, key, message)


@dataclass
class Node:
    """One YAML value.

    Attributes:
        mark: where it starts.
        value: the scalar, or None for a collection.
        entries: for a mapping, each key's mark and value.
        items: for a sequence, its values.
        verbatim: whether the scalar's characters stand one for one from `text_mark` on.
        broken: an error was already reported here; ignore what the schema says about it.
    """

    mark: Mark
    value: Scalar = None
    entries: dict[str, tuple[Mark, "Node"]] | None = None
    items: list["Node"] | None = None
    text_mark: Mark | None = None
    broken: bool = False

    def plain(self) -> Any:
        """Turn into dicts, lists and scalars."""
        if self.entries is not None:
            return {key: node.plain() for key, (_, node) in self.entries.items()}
        if self.items is not None:
            return [node.plain() for node in self.items]
        return self.value


@dataclass
class _Frame:
    """A collection that is still open, and the key its next value belongs to."""

    node: Node
    path: Path
    key: str | None = None
    key_mark: Mark | None = None
    key_dropped: bool = False
    wants_key: bool = field(default=True)


class Composer:
    """Build the node tree of one text from parser events, without recursion.

    Not thread-safe; use one for each text. `problems` fills with what can be reported together.
    """

    def __init__(self, text: str, file: str, column_offset: int = 0) -> None:
        """Remember where the text stands; an override's value does not start its line."""
        self.problems: list[Problem] = []
        self._text = text
        self._file = file
        self._offset = column_offset
        self._frames: list[_Frame] = []
        self._root: Node | None = None
        self._nodes = 0
        self._documents = 0

    def compose(self) -> Node | None:
        """Read the whole text.

        Returns:
            The root, or None for an empty text.

        Raises:
            SpaceError: the text is not YAML, or larger or deeper than a search space ever is.
        """
        self._check_characters()
        for event in self._events():
            if isinstance(event, DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    self._stop(event, "must be a single document, but a second one starts here")
            elif isinstance(event, NodeEvent):
                self._node(event)
            elif self._frames and type(event).__name__ in {"MappingEndEvent", "SequenceEndEvent"}:
                self._close()
        return self._root

    def _check_characters(self) -> None:
        bad = _FORBIDDEN.search(self._text)
        if bad is None:
            return
        before = self._text[: bad.start()]
        line = before.count("\n") + 1
        column = bad.start() - (before.rfind("\n") + 1) + 1 + (self._offset if line == 1 else 0)
        message = f"must be plain text, but got the character U+{ord(bad.group()):04X}"
        raise SpaceError([Mark(self._file, line, column).problem(message)])

    def _events(self) -> Iterator[Event]:
        loader = yaml.SafeLoader(self._text)
        try:
            while loader.check_event():
                event: Event = loader.get_event()  # type: ignore[no-untyped-call]
                yield event
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark or loader.get_mark()
            raise SpaceError([self._mark(mark).problem(_syntax_message(error))]) from None
        except (ValueError, OverflowError, yaml.YAMLError):
            # PyYAML lets e.g. chr(0x110000) of an escape through as it is.
            mark = loader.get_mark()
            message = "must be valid YAML, but this escape or number is out of range"
            raise SpaceError([self._mark(mark).problem(message)]) from None
        finally:
            loader.dispose()

    def _mark(self, mark: Any) -> Mark:
        offset = self._offset if mark.line == 0 else 0
        return Mark(self._file, mark.line + 1, mark.column + 1 + offset)

    def _stop(self, event: Event, message: str) -> None:
        raise SpaceError([*self.problems, self._mark(event.start_mark).problem(message)])

    def _node(self, event: NodeEvent) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._stop(event, f"must have at most {MAX_NODES:,} values and keys")
        frame = self._frames[-1] if self._frames else None
        if frame and frame.node.entries is not None and frame.wants_key:
            self._key(event, frame)
            return
        node = self._value(event)
        path = self._attach(node)
        if isinstance(event, MappingStartEvent | SequenceStartEvent):
            if len(self._frames) >= MAX_DEPTH:
                self._stop(event, f"must be nested at most {MAX_DEPTH} deep")
            self._frames.append(_Frame(node, path))

    def _key(self, event: NodeEvent, frame: _Frame) -> None:
        mark = self._mark(event.start_mark)
        frame.wants_key, frame.key_dropped, frame.key, frame.key_mark = False, True, None, mark
        self._refuse_extras(event, mark, frame.path)
        if not isinstance(event, ScalarEvent):
            if not isinstance(event, AliasEvent):
                self._stop(event, "keys must be plain text, but got a collection")
            return
        name: str = event.value
        if _SURROGATE.search(name):
            self.problems.append(mark.problem("keys must be text, but got half a surrogate pair"))
        elif name == "<<" and event.style is None:
            self.problems.append(mark.problem("merge keys are not supported: write the keys out"))
        elif name in (frame.node.entries or {}):
            first = (frame.node.entries or {})[name][0]
            self.problems.append(
                mark.problem(
                    "must be set once, but it is already set at "
                    f"line {first.line}, column {first.column}",
                    dotted((*frame.path, name)),
                )
            )
        else:
            frame.key, frame.key_dropped = name, False

    def _value(self, event: NodeEvent) -> Node:
        mark = self._mark(event.start_mark)
        path = self._next_path()
        node = Node(mark, broken=self._refuse_extras(event, mark, path))
        if isinstance(event, MappingStartEvent):
            node.entries = {}
        elif isinstance(event, SequenceStartEvent):
            node.items = []
        elif isinstance(event, ScalarEvent):
            self._scalar(event, node, path)
        return node

    def _refuse_extras(self, event: NodeEvent, mark: Mark, path: Path) -> bool:
        message, anchor = "", shorten(event.anchor or "", 20)
        if isinstance(event, AliasEvent):
            message = f"aliases (*{anchor}) are not supported: write the value out"
        elif anchor:
            message = f"anchors (&{anchor}) are not supported: write the value out"
        elif getattr(event, "tag", None) is not None:
            message = f"tags are not supported, but got {shown(getattr(event, 'tag', ''))}"
        if message:
            self.problems.append(mark.problem(message, dotted(path)))
        return bool(message)

    def _scalar(self, event: ScalarEvent, node: Node, path: Path) -> None:
        if _SURROGATE.search(event.value):
            node.broken = True
            message = "must be text, but got half a surrogate pair"
            self.problems.append(node.mark.problem(message, dotted(path)))
            return
        node.value = event.value
        quote = 1 if event.style else 0
        start: Any = event.start_mark
        end: Any = event.end_mark
        # Equal length on one line: nothing was escaped or folded, so columns can be counted on.
        span = end.column - start.column if start.line == end.line else -1
        if event.style not in {"|", ">"} and span - 2 * quote == len(event.value):
            node.text_mark = Mark(node.mark.file, node.mark.line, node.mark.column + quote)
        if event.style is None:
            try:
                node.value = resolve(event.value)
            except ValueError as error:
                node.broken = True
                self.problems.append(node.mark.problem(str(error), dotted(path)))

    def _next_path(self) -> Path:
        if not self._frames:
            return ()
        frame = self._frames[-1]
        if frame.node.items is not None:
            return (*frame.path, len(frame.node.items))
        return frame.path if frame.key is None else (*frame.path, frame.key)

    def _attach(self, node: Node) -> Path:
        path = self._next_path()
        if not self._frames:
            self._root = node
            return path
        frame = self._frames[-1]
        if frame.node.items is not None:
            frame.node.items.append(node)
            return path
        if not frame.key_dropped and frame.key is not None and frame.node.entries is not None:
            frame.node.entries[frame.key] = (frame.key_mark or node.mark, node)
        frame.wants_key = True
        return path

    def _close(self) -> None:
        self._frames.pop()


def _syntax_message(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem or error.context or "syntax error")
    if "'\\t'" in problem:
        return "must be indented with spaces, but got a tab"
    return f"must be valid YAML, but {shorten(problem, 120)}"


def locate(root: Node, path: Path) -> tuple[Mark, Node, bool]:
    """Find where a path stands.

    Returns:
        The key's mark (the value's for list items), the deepest node there is along the path,
        and whether the path passes a value about which an error was already reported.
    """
    node, key_mark, broken = root, root.mark, root.broken
    for part in path:
        if isinstance(part, int) and node.items is not None and part < len(node.items):
            node = node.items[part]
            key_mark = node.mark
        elif isinstance(part, str) and node.entries is not None and part in node.entries:
            key_mark, node = node.entries[part]
        else:
            break
        broken = broken or node.broken
    return key_mark, node, broken
