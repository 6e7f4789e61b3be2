"""Reads files that launch clusters: what stands where, whatever their language."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from spaces.nodes import Mark
from spaces.problems import SpaceError
from spaces.reading import read_text

Key = tuple[str | int, ...]

_INSTRUCTION = re.compile(r"\A\s*(#(?!SBATCH)|$)")


class LaunchError(SpaceError):
    """A launch file cannot be used as it is; lists every problem by position."""


@dataclass(frozen=True)
class Piece:
    """One value or one command, comments left out.

    Attributes:
        key: where it stands in a YAML file, the document's number first; empty in other files.
        value: the text as it is meant.
        start: where it begins in the file's text.
        end: where it ends there.
    """

    key: Key
    value: str
    start: int
    end: int


@dataclass(frozen=True)
class LaunchFile:
    """A launch file.

    Attributes:
        name: as the user gave it.
        kind: `ray`, `kuberay`, `shell` or `docker`.
        text: all of it.
        documents: the YAML documents; empty in other files.
        pieces: its values and commands in their order.
        places: where each YAML key begins in the text; a list's item where that begins.
    """

    name: str
    kind: str
    text: str
    documents: tuple[Any, ...] = ()
    pieces: tuple[Piece, ...] = ()
    places: dict[Key, int] = field(default_factory=dict)

    def mark(self, index: int) -> Mark:
        """Line and column of a character."""
        before = self.text[:index]
        return Mark(self.name, before.count("\n") + 1, index - before.rfind("\n"))

    def place(self, key: Key) -> Mark:
        """Where a YAML key stands, or the nearest one around it that does."""
        while key and key not in self.places:
            key = key[:-1]
        return self.mark(self.places.get(key, 0))

    def find(self, piece: Piece, pattern: str) -> Mark:
        """Where a pattern stands in a piece; the piece itself where that is written otherwise."""
        found = re.compile(pattern).search(self.text, piece.start, piece.end)
        return self.mark(found.start() if found else piece.start)


def read_launch_file(path: Path) -> LaunchFile:
    """Read a cluster YAML, a KubeRay manifest, a shell script or a Dockerfile.

    Raises:
        LaunchError: it is none of these or cannot be read.
    """
    try:
        text = read_text(path)
    except SpaceError as error:
        raise LaunchError(error.problems) from None
    name = str(path)
    if path.name.startswith("Dockerfile"):
        return LaunchFile(name, "docker", text, pieces=tuple(_lines(text)))
    if path.suffix == ".sh" or text.startswith("#!"):
        return LaunchFile(name, "shell", text, pieces=tuple(_lines(text)))
    return _read_yaml(name, text)


def _lines(text: str) -> Iterator[Piece]:
    """Commands with their continuation lines, without those that are comments only."""
    start, parts = 0, list[str]()
    index = 0
    for line in text.splitlines(keepends=True):
        if not parts:
            start = index
        index += len(line)
        if _INSTRUCTION.match(line):
            continue
        bare = line.rstrip("\r\n")
        parts.append(bare.removesuffix("\\"))
        if not bare.endswith("\\"):
            yield Piece((), " ".join(part.strip() for part in parts), start, index)
            parts = []
    if parts:
        yield Piece((), " ".join(part.strip() for part in parts), start, index)


def _read_yaml(name: str, text: str) -> LaunchFile:
    places: dict[Key, int] = {}
    pieces: list[Piece] = []
    try:
        for number, node in enumerate(yaml.compose_all(text, yaml.SafeLoader)):
            places[(number,)] = node.start_mark.index
            _walk(node, (number,), places, pieces, set())
        documents = tuple(yaml.safe_load_all(text))
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        mark = Mark(name, at.line + 1, at.column + 1) if at else Mark(name, 1, 1)
        raise LaunchError([mark.problem(f"must be YAML, but: {error.problem}")]) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise LaunchError([Mark(name, 1, 1).problem(f"must be YAML, but: {reason}")]) from None
    kind = _kind(documents)
    if not kind:
        message = "must launch a cluster: a YAML with `cluster_name` and `provider`, a KubeRay "
        message += "manifest with a RayCluster or RayJob, a shell script (.sh) or a Dockerfile"
        raise LaunchError([Mark(name, 1, 1).problem(message)])
    return LaunchFile(name, kind, text, documents, tuple(pieces), places)


def _kind(documents: tuple[Any, ...]) -> str:
    trees = [tree for tree in documents if tree is not None]
    if not trees or not all(isinstance(tree, dict) for tree in trees):
        return ""
    if any(tree.get("kind") in ("RayCluster", "RayJob") for tree in trees):
        return "kuberay"
    return "ray" if len(trees) == 1 and {"cluster_name", "provider"} & trees[0].keys() else ""


def _walk(
    node: yaml.Node, key: Key, places: dict[Key, int], pieces: list[Piece], seen: set[int]
) -> None:
    if isinstance(node, yaml.ScalarNode):
        pieces.append(Piece(key, node.value, node.start_mark.index, node.end_mark.index))
        return
    if id(node) in seen:  # an alias: a few of them could stand for billions of values
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            places[*key, number] = item.start_mark.index
            _walk(item, (*key, number), places, pieces, seen)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            at = (*key, str(name.value))
            places[at] = name.start_mark.index
            _walk(value, at, places, pieces, seen)
