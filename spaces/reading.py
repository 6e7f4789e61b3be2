"""Reading an input file safely: everything that can be wrong before it is YAML."""

import stat
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from spaces.nodes import MAX_BYTES, Composer, Mark, Node
from spaces.problems import Problem, SpaceError, did_you_mean, shown
from trainables.config import TrialConfig


def read_text(path: Path) -> str:
    """Read a UTF-8 text file of bounded size.

    Raises:
        SpaceError: there is no readable regular file, or it is too large or not UTF-8.
    """
    start = Mark(str(path), 1, 1)
    try:
        # A pipe or a device could block or never end, so ask before opening.
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a directory" if path.is_dir() else "not a regular file"
            raise SpaceError([start.problem(f"must be a file, but it is {kind}")])
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpaceError([start.problem("must be an existing file, but there is none")]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpaceError([start.problem(f"must be readable, but got: {reason}")]) from None
    if len(data) > MAX_BYTES:
        raise SpaceError([start.problem(f"must be at most {MAX_BYTES // 1024} KiB")])
    return _decode(data, str(path))


def _decode(data: bytes, file: str) -> str:
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode()
        bad = data.find(b"\0")
    except UnicodeDecodeError as error:
        text, bad = "", error.start
    if bad < 0:
        return text
    before = data[:bad]
    line_start = before.rfind(b"\n") + 1
    column = len(before[line_start:].decode(errors="replace")) + 1
    mark = Mark(file, before.count(b"\n") + 1, column)
    raise SpaceError([mark.problem(f"must be UTF-8 text, but got the byte 0x{data[bad]:02x}")])


def compose_file(path: Path) -> tuple[Node, list[Problem]]:
    """Read a YAML file whose top level is a mapping.

    Returns:
        The root and what is wrong that does not keep the rest from being read.

    Raises:
        SpaceError: nothing can be read from it.
    """
    composer = Composer(read_text(path), str(path))
    root = composer.compose()
    start = Mark(str(path), 1, 1)
    if root is None:
        raise SpaceError([start.problem("must hold a YAML mapping, but it is empty")])
    if root.entries is None:
        message = f"must hold a YAML mapping, but got {shown(root.plain())}"
        raise SpaceError([*composer.problems, root.mark.problem(message)])
    return root, composer.problems


def _recipe_folder() -> Path:
    return Path(str(resources.files("trainables"))) / "recipes"


def recipe_names() -> tuple[str, ...]:
    """List the shipped training recipes."""
    return tuple(sorted(path.stem for path in _recipe_folder().glob("*.yaml")))


@lru_cache(maxsize=64)
def recipe(name: str) -> TrialConfig:
    """Load a shipped training recipe.

    Raises:
        ValueError: there is no recipe of that name.
        SpaceError: the recipe file is broken.
    """
    valid = recipe_names()
    # Membership in the listing also keeps the name from leading out of the folder.
    if name not in valid:
        guess = did_you_mean(name, valid)
        raise ValueError(f"must be a shipped recipe, but got {shown(name)}{guess}")
    root, problems = compose_file(_recipe_folder() / f"{name}.yaml")
    if problems:
        raise SpaceError(problems)
    tree: dict[str, Any] = root.plain()
    return TrialConfig.model_validate(tree)
