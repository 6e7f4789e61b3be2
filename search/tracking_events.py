"""What is tracked of a search: each report becomes one plain event."""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from search.records import TrialRecord
from search.spool import Event
from search.stored import StoredFile
from spaces.redaction import redactor

Artifact = str | Path | StoredFile
Files = Callable[[TrialRecord], Mapping[str, Artifact]]

_MAX_PARAM_CHARS = 6000
_MAX_TAG_CHARS = 5000
_RUN_STATUS = {
    "finished": "FINISHED",
    "stopped": "FINISHED",
    "failed": "FAILED",
    "running": "RUNNING",
    "paused": "SCHEDULED",
}


class EventWriter(ABC):
    """Turns reports about a search into events; secrets are hidden before they leave the driver."""

    def __init__(self) -> None:
        self._epochs_seen: dict[int, int] = {}
        self._started: set[int] = set()
        self._ended: dict[int, str] = {}
        self._paused: dict[int, int] = {}  # the epoch at which it waits
        self._datasets: Sequence[Mapping[str, str]] = ()

    @abstractmethod
    def _append(self, kind: str, time_s: float, body: Mapping[str, Any]) -> bool:
        """Keep one event; False when it could not be kept."""

    def search_started(
        self,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        artifacts: Mapping[str, str],
        datasets: Sequence[Mapping[str, str]] = (),
    ) -> None:
        """Report the search itself.

        Args:
            params: what was chosen for it.
            tags: versions.
            artifacts: file names and their text.
            datasets: what it and all of its trials use, as `search.datasets` describes it.
        """
        self._datasets = datasets
        self._append(
            "search_start",
            time.time(),
            {
                "params": _texts(params, _MAX_PARAM_CHARS),
                "tags": _texts(tags, _MAX_TAG_CHARS),
                "artifacts": _artifacts(artifacts),
                "datasets": list(datasets),
            },
        )

    def trial_started(self, record: TrialRecord) -> None:
        """Report a new trial: proposed values by dotted key and its resolved configuration."""
        text = json.dumps(record.config, indent=2, default=str)
        tags = {"spiketune.config_hash": record.config_hash, "spiketune.state": "running"}
        screen = record.extra.get("screen")
        if screen:
            tags["spiketune.screen_score"] = repr(screen["score"])
            tags["spiketune.screen_dropped"] = str(len(screen["dropped"]))
        body = {
            "trial": record.number,
            "params": _texts(record.params, _MAX_PARAM_CHARS),
            "tags": tags,
            "artifacts": _artifacts({"config.json": text}),
            "datasets": list(self._datasets),
        }
        if self._append("trial_start", record.started_s, body):
            self._started.add(record.number)

    def trial_epoch(
        self, number: int, epoch: int, metrics: Mapping[str, float], time_s: float
    ) -> None:
        """Report an epoch's metrics; the first report of an epoch counts, others are ignored."""
        if self._epochs_seen.get(number, 0) >> epoch & 1:
            return
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        body = {
            "trial": number,
            "epoch": epoch,
            "metrics": finite,
            "nonfinite": sorted(metrics.keys() - finite.keys()),
        }
        if self._append("epoch", time_s, body):
            self._mark_seen(number, epoch)

    def trial_ended(
        self, record: TrialRecord, artifacts: Mapping[str, Artifact] | None = None
    ) -> None:
        """Report how a trial ended; an artifact is text, or a file to upload."""
        tags = {
            "spiketune.state": record.state,
            "spiketune.reason": record.reason,
            "spiketune.feasible": str(record.feasible).lower(),
        }
        body = {
            "trial": record.number,
            "status": _RUN_STATUS[record.state],
            "tags": _texts(tags, _MAX_TAG_CHARS),
            "artifacts": _artifacts(artifacts or {}),
        }
        if self._append("trial_end", record.ended_s or time.time(), body):
            self._ended[record.number] = record.state

    def trial_paused(self, record: TrialRecord) -> None:
        """Report that a trial waits at a rung; it may go on in the same run."""
        tags = {"spiketune.state": record.state, "spiketune.reason": record.reason}
        epoch = len(record.epochs)
        body = {
            "trial": record.number,
            "epoch": epoch,
            "status": _RUN_STATUS[record.state],
            "tags": _texts(tags, _MAX_TAG_CHARS),
        }
        if self._append("trial_pause", record.epochs[-1].time_s, body):
            self._paused[record.number] = epoch

    def trial_reopened(self, number: int, attempt: int, time_s: float) -> None:
        """Report that an ended, paused or interrupted trial runs again, in the same run."""
        tags = {
            "spiketune.state": "running",
            "spiketune.reason": "",
            "spiketune.attempt": str(attempt),
        }
        body = {"trial": number, "status": "RUNNING", "tags": tags}
        if self._append("trial_reopen", time_s, body):
            self._ended.pop(number, None)
            self._paused.pop(number, None)

    def catch_up(self, records: Iterable[TrialRecord], files: Files) -> None:
        """Report what the ledger knows and no event tells: a driver was killed between the two.

        Args:
            records: every trial.
            files: the artifacts of a trial that has ended.
        """
        for record in records:
            if record.number not in self._started:
                self.trial_started(record)
            for epoch in record.epochs:
                self.trial_epoch(record.number, epoch.epoch, epoch.metrics, epoch.time_s)
            waits_at = self._paused.get(record.number)
            if record.state == "paused" and waits_at != len(record.epochs):
                self.trial_paused(record)
            if record.has_ended and record.state != self._ended.get(record.number):
                self.trial_ended(record, files(record))

    def search_ended(
        self,
        status: str,
        metrics: Mapping[str, float],
        artifacts: Mapping[str, Artifact],
        time_s: float,
    ) -> None:
        """Report the end as FINISHED, FAILED or KILLED; KILLED closes open runs of trials too."""
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._append(
            "search_end",
            time_s,
            {
                "status": status,
                "metrics": finite,
                "artifacts": _artifacts(artifacts),
            },
        )

    def _note(self, event: Event) -> None:
        number: Any = event.body.get("trial")
        if event.kind == "search_start":
            self._datasets = event.body.get("datasets", ())
        elif event.kind == "epoch":
            self._mark_seen(number, event.body["epoch"])
        elif event.kind == "trial_pause":
            self._paused[number] = event.body["epoch"]
        elif event.kind == "search_end":
            self._paused.clear()  # their runs were closed with the search's
        elif event.kind == "trial_start":
            self._started.add(number)
        elif event.kind == "trial_end":
            self._ended[number] = event.body["tags"]["spiketune.state"]
        elif event.kind == "trial_reopen":
            self._ended.pop(number, None)
            self._paused.pop(number, None)

    def _mark_seen(self, number: int, epoch: int) -> None:
        # One bit an epoch: ten thousand trials stay below a megabyte.
        self._epochs_seen[number] = self._epochs_seen.get(number, 0) | 1 << epoch


def _texts(values: Mapping[str, Any], limit: int) -> dict[str, str]:
    """Write values as the YAML would (`true`, `0.001`), without secrets, cut to a length."""
    texts, hide = {}, redactor()
    for name, value in values.items():
        text = hide(value if isinstance(value, str) else json.dumps(value, default=str))
        texts[name] = text if len(text) <= limit else text[: limit - 1] + "…"
    return texts


def _artifacts(artifacts: Mapping[str, Artifact]) -> dict[str, dict[str, str]]:
    hide = redactor()

    def told(content: Artifact) -> dict[str, str]:
        if isinstance(content, StoredFile):
            return {**content.folder.address, "stored": content.name}
        return (
            {"path": str(content.resolve())}
            if isinstance(content, Path)
            else {"text": hide(content)}
        )

    return {name: told(content) for name, content in artifacts.items()}
