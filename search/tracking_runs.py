"""Which event changes which run: applies a spool's events to a tracking store."""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from search.records import trial_name
from search.spool import Chunk, Event, append_checked, read_all_checked, write_checked

_log = logging.getLogger(__name__)

_PARENT = "search"


class Point(NamedTuple):
    """One metric row; `time_ms` is Unix milliseconds."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass
class Values:
    """What is to be written to one run."""

    points: list[Point] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Store(Protocol):
    """What is asked of a tracking store; each call may be repeated without changing what is there.

    Any exception means try again later; what is refused for good is counted instead.
    """

    rejected: int

    def connect(self) -> bool:
        """Open the store; False when it is open already."""

    def find_runs(self, tags: Mapping[str, str], status: str | None = None) -> list[str]:
        """Ids of the runs that carry all these tags, oldest first."""

    def create_run(self, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        """Make a run and return its id."""

    def set_status(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        """Set a run's status, and its end when it has one."""

    def log(self, run_id: str, values: Values, *, uncertain: bool) -> None:
        """Write metric rows, parameters and tags; `uncertain`: some rows may be there already."""

    def log_datasets(self, run_id: str, datasets: Sequence[Mapping[str, str]]) -> None:
        """Say which data a run used; each is what MLflow's `Dataset` takes and a `context`."""

    def upload(self, run_id: str, name: str, content: Mapping[str, str]) -> None:
        """Store one artifact from its `text` or from the file at its `path`."""


class RunWriter:
    """Keeps one run for the search and one for each trial up to date.

    A run is looked up by its tags before it is made, so losing `path` costs requests only.

    Args:
        store: where runs are.
        search: name of the search and of its run.
        search_id: what tells it from others of the same name.
        key: names the store and search; ids saved under another key are not used.
        path: file that remembers run ids.
    """

    def __init__(self, store: Store, *, search: str, search_id: str, key: str, path: Path) -> None:
        self.key = key
        self._store = store
        self._search = search
        self._search_id = search_id
        self._path = path
        self._ids: dict[str, str] = {}
        self._unsaved: dict[str, str] = {}
        self._is_whole = False  # no id of a run is missing but for those of an uncertain chunk
        self._uncertain = False
        # What consecutive events say of a run goes out in one request: a store takes some ten
        # milliseconds for each, however little is in it.
        self._held: dict[str, Values] = {}
        self._handlers: dict[str, Callable[[Event], None]] = {
            "search_start": self._search_start,
            "trial_start": self._trial_start,
            "epoch": self._epoch,
            "trial_end": self._trial_end,
            "trial_pause": self._set_state,
            "trial_reopen": self._set_state,
            "search_end": self._search_end,
        }

    @property
    def rejected(self) -> int:
        """Values that the store refused for good."""
        return self._store.rejected

    def connect(self, time_s: float) -> bool:
        """Open the store; True when the search's run was not there and has been made."""
        if not self._store.connect() and _PARENT in self._ids:
            return False
        found = self._find(_PARENT)
        saved, is_intact = self._load_ids()
        is_ours = saved.get(_PARENT) == found
        self._ids = saved if is_ours else {}
        self._ids[_PARENT] = found or self._create(_PARENT, {}, time_s)
        self._is_whole = found is None or (is_ours and is_intact)
        write_checked(self._path, {"key": self.key, "runs": self._ids})
        self._unsaved = {}
        return found is None

    def deliver(self, chunk: Chunk) -> None:
        """Apply events in order; an exception means that some may have been applied."""
        self._uncertain = chunk.uncertain
        self._held.clear()
        for event in chunk.events:
            handler = self._handlers.get(event.kind)
            if handler is None:
                _log.error("tracking: event %d has the unknown kind %r", event.seq, event.kind)
                continue
            handler(event)
        self._send_held()
        self._save_ids()

    def _find(self, name: str) -> str | None:
        tags = {"spiketune.search_id": self._search_id, "spiketune.trial": name}
        return next(iter(self._store.find_runs(tags)), None)

    def _create(self, name: str, tags: Mapping[str, str], time_s: float) -> str:
        own = {
            "spiketune.search": self._search,
            "spiketune.search_id": self._search_id,
            "spiketune.trial": name,
            "spiketune.state": "running",
            "mlflow.source.name": "spiketune",
            "mlflow.source.type": "LOCAL",
        }
        if name == _PARENT:
            return self._store.create_run(self._search, {**tags, **own}, _milliseconds(time_s))
        own["mlflow.parentRunId"] = self._ids[_PARENT]
        return self._store.create_run(name, {**tags, **own}, _milliseconds(time_s))

    def _trial_run(self, event: Event) -> str:
        name = trial_name(event.body["trial"])
        if name not in self._ids:
            # Asking the store takes it the longer the more runs it has.
            is_new = self._is_whole and not self._uncertain
            found = None if is_new else self._find(name)
            tags = event.body.get("tags", {})
            self._ids[name] = found or self._create(name, tags, event.time_s)
            self._unsaved[name] = self._ids[name]
        return self._ids[name]

    def _hold(self, run_id: str) -> Values:
        return self._held.setdefault(run_id, Values())

    def _load_ids(self) -> tuple[dict[str, str], bool]:
        """The ids that were saved, and whether all of them could be read."""
        ids: dict[str, str] = {}
        parts = read_all_checked(self._path)
        for part in parts:
            if part.get("key") == self.key:
                ids |= part["runs"]
        return ids, all(parts)

    def _save_ids(self) -> None:
        if self._unsaved:
            append_checked(self._path, {"key": self.key, "runs": self._unsaved})
            self._unsaved = {}

    def _send_held(self, run_id: str | None = None) -> None:
        for run in [run_id] if run_id else list(self._held):
            values = self._held.pop(run, None)
            if values is not None:
                self._store.log(run, values, uncertain=self._uncertain)

    def _upload(self, run_id: str, event: Event) -> None:
        for name, content in event.body["artifacts"].items():
            self._store.upload(run_id, name, content)

    def _log_datasets(self, run_id: str, event: Event) -> None:
        datasets = event.body.get("datasets")  # earlier versions' spools have none
        if datasets:
            self._store.log_datasets(run_id, datasets)

    def _search_start(self, event: Event) -> None:
        run = self._ids[_PARENT]
        self._store.set_status(run, "RUNNING")
        held = self._hold(run)
        held.params |= event.body["params"]
        held.tags |= {"spiketune.state": "running", **event.body["tags"]}
        self._send_held(run)
        self._log_datasets(run, event)
        self._upload(run, event)

    def _trial_start(self, event: Event) -> None:
        run = self._trial_run(event)
        held = self._hold(run)
        if not event.body["params"].items() >= held.params.items():
            self._send_held(run)  # the store is to refuse other values, not we
            held = self._hold(run)
        held.params |= event.body["params"]
        held.tags |= event.body["tags"]
        self._log_datasets(run, event)
        self._upload(run, event)

    def _epoch(self, event: Event) -> None:
        run, epoch = self._trial_run(event), event.body["epoch"]
        time_ms = _milliseconds(event.time_s)
        self._hold(run).points.extend(
            Point(key, value, time_ms, epoch) for key, value in event.body["metrics"].items()
        )
        if event.body["nonfinite"]:
            names = ", ".join(event.body["nonfinite"])
            self._hold(run).tags["spiketune.nonfinite"] = f"epoch {epoch}: {names}"

    def _trial_end(self, event: Event) -> None:
        run = self._trial_run(event)
        self._hold(run).tags |= event.body["tags"]
        self._send_held(run)
        self._upload(run, event)
        self._store.set_status(run, event.body["status"], _milliseconds(event.time_s))

    def _set_state(self, event: Event) -> None:
        """The trial waits, or runs again."""
        run = self._trial_run(event)
        self._hold(run).tags |= event.body["tags"]
        self._send_held(run)
        self._store.set_status(run, event.body["status"])

    def _search_end(self, event: Event) -> None:
        self._send_held()
        run, time_ms = self._ids[_PARENT], _milliseconds(event.time_s)
        status = event.body["status"]
        if status == "KILLED":
            self._kill_trials(time_ms)
        held = self._hold(run)
        held.points += [
            Point(key, value, time_ms, 0) for key, value in event.body["metrics"].items()
        ]
        held.tags["spiketune.state"] = status.lower()
        self._send_held(run)
        self._upload(run, event)
        self._store.set_status(run, status, time_ms)

    def _kill_trials(self, time_ms: int) -> None:
        # Asked of the store: it knows also those that an earlier driver left running.
        mine = {"spiketune.search_id": self._search_id}
        open_runs = (self._store.find_runs(mine, status) for status in ("RUNNING", "SCHEDULED"))
        for run in itertools.chain(*open_runs):
            if run != self._ids[_PARENT]:
                self._hold(run).tags["spiketune.state"] = "killed"
                self._send_held(run)
                self._store.set_status(run, "KILLED", time_ms)


def _milliseconds(time_s: float) -> int:
    return round(time_s * 1000)
