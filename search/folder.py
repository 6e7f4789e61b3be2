"""A search's folder `runs/NAME/`: names, paths and the files a person can read.

`search.yaml` (as given) `resolved.yaml` `manifest.json` `study.db` `trials/00042/` `spool/`
`report.html`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from search.records import trial_name
from search.versions import versions
from spaces.schema import SearchSpec
from trainables.errors import InputError
from trainables.files import write_atomically

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
SCHEMA_VERSION = 1


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

    @property
    def path(self) -> Path:
        """The folder itself."""
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
    def ledger_url(self) -> str:
        """URL of the embedded ledger."""
        return f"sqlite:///{self.path / 'study.db'}"

    def trial(self, number: int) -> Path:
        """A trial's folder, where its checkpoints are."""
        return self.path / "trials" / trial_name(number)

    @property
    def exists(self) -> bool:
        """Whether a search of this name has been started: a ledger alone is one, never rubbish."""
        return any((self.path / name).is_file() for name in ("manifest.json", "study.db"))

    def create(self, spec: SearchSpec, text: str) -> None:
        """Make the folder and its readable files; the manifest comes last and says it is whole.

        Raises:
            InputError: the name is taken.
            OSError: the disk is full or read-only.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self.exists:
            raise InputError(
                f"{self.path}: a search named {self.name!r} exists already; "
                "choose another --name or delete that folder"
            )
        (self.path / "trials").mkdir(exist_ok=True)
        resolved = yaml.safe_dump(spec.resolved(), sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "search.yaml", text.encode())
        write_atomically(self.path / "resolved.yaml", resolved.encode())

    def write_manifest(self, facts: Mapping[str, Any]) -> None:
        """Say what made this search."""
        manifest = {"schema": SCHEMA_VERSION, "name": self.name, "versions": versions(), **facts}
        text = json.dumps(manifest, indent=2, default=str) + "\n"
        write_atomically(self.path / "manifest.json", text.encode())

    def manifest(self) -> dict[str, Any]:
        """What made this search.

        Raises:
            InputError: there is no such search, or its manifest is damaged.
        """
        path = self.path / "manifest.json"
        if not path.is_file():
            known = sorted(p.parent.name for p in self.runs.glob("*/manifest.json"))
            listed = f"; searches there: {', '.join(known[-8:])}" if known else ""
            raise InputError(f"{self.runs}: no search named {self.name!r}{listed}")
        try:
            manifest: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path}: not a readable manifest ({error})") from error
        return manifest


def all_searches(runs: Path) -> list[SearchFolder]:
    """Every search below a runs folder, by name."""
    names = sorted(p.parent.name for p in runs.glob("*/manifest.json"))
    return [SearchFolder(runs, name) for name in names if NAME.fullmatch(name)]
