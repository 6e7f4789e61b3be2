"""A search's folder `runs/NAME/`: names, paths and the files a person can read.

`search.yaml` (as given) `resolved.yaml` `manifest.json` `study.db` `trials/00042/` `spool/`
`report.html` `report.json`. The ledger (`study.db` unless it is a server's) comes first and holds
what the three files say, so that they can be written again.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from search.records import trial_name
from search.versions import versions
from trainables.errors import InputError
from trainables.files import write_atomically

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class SearchFolder:
    """Paths of one search below the runs folder."""

    runs: Path
    name: str

    def __post_init__(self) -> None:
        """Refuse a name that could lead elsewhere.

        Raises:
            InputError: the name is not allowed.
        """
        if not NAME.fullmatch(self.name):
            raise InputError(
                "a search's name must have 1-64 characters of A-Z a-z 0-9 . _ - and not start "
                f"with a dot, but got {self.name[:80]!r}"
            )

    @cached_property
    def path(self) -> Path:
        """The folder itself, wherever the process goes."""
        return self.runs.resolve() / self.name

    @property
    def spool(self) -> Path:
        """Where the tracker keeps what it has not sent."""
        return self.path / "spool"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    @property
    def report_numbers(self) -> Path:
        """The report's numbers."""
        return self.path / "report.json"

    @property
    def database(self) -> Path:
        """The embedded ledger."""
        return self.path / "study.db"

    @property
    def manifest_path(self) -> Path:
        """What says what made this search."""
        return self.path / "manifest.json"

    @property
    def runs_option(self) -> str:
        """What a command needs beside the name to find this search; empty for `./runs`."""
        return "" if self.runs == Path("runs") else f" --runs {self.runs}"

    def trial(self, number: int) -> Path:
        """A trial's folder, where its checkpoints are."""
        return self.path / "trials" / trial_name(number)

    @property
    def exists(self) -> bool:
        """Whether a search of this name has been started: a ledger alone is one, never rubbish."""
        return any((self.path / name).is_file() for name in ("manifest.json", "study.db"))

    def create(self) -> None:
        """Make the folder.

        Raises:
            InputError: the name is taken.
            OSError: the disk is full or read-only.
        """
        if self.exists:
            raise InputError(
                f"{self.path}: a search named {self.name!r} exists already; "
                "choose another --name or delete that folder"
            )
        (self.path / "trials").mkdir(parents=True, exist_ok=True)

    def texts(self, facts: Mapping[str, Any]) -> dict[Path, bytes]:
        """The files that a person reads, from what the ledger keeps."""
        resolved = yaml.safe_dump(facts["spec"], sort_keys=False, allow_unicode=True)
        return {
            self.path / "search.yaml": str(facts["text"]).encode(),
            self.path / "resolved.yaml": resolved.encode(),
        }

    def write_manifest(self, facts: Mapping[str, Any]) -> None:
        """Say what made this search."""
        manifest = {"schema": SCHEMA_VERSION, "name": self.name, "versions": versions(), **facts}
        text = json.dumps(manifest, indent=2, default=str) + "\n"
        write_atomically(self.manifest_path, text.encode())

    def manifest(self) -> dict[str, Any] | None:
        """What made this search; None when that is missing or damaged."""
        try:
            manifest = json.loads(self.manifest_path.read_bytes())
        except (OSError, ValueError):
            return None
        whole = isinstance(manifest, dict) and isinstance(manifest.get("versions"), dict)
        return manifest if whole else None


def all_searches(runs: Path) -> list[SearchFolder]:
    """Every search below a runs folder, by name."""
    files = [*runs.glob("*/manifest.json"), *runs.glob("*/study.db")]
    names = sorted({path.parent.name for path in files})
    return [SearchFolder(runs, name) for name in names if NAME.fullmatch(name)]


def find_folder(given: str | Path, runs: Path) -> SearchFolder:
    """The search that a person means: by its name below `runs`, or by the path of its folder.

    Raises:
        InputError: it can be neither.
    """
    text = str(given)
    if os.sep not in text:
        return SearchFolder(runs, text)
    try:
        folder = SearchFolder(Path(text).parent, Path(text).name)
        os.stat(folder.runs)  # noqa: PTH116  # Path.exists hides some of what may be wrong
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{text[:80]!r} must be the folder of a search, but: {why}") from error
    return folder
