"""What is tracked of a search: each report becomes one plain event."""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.records import TrialState
from search.spool import Event
from search.tracking_uri import redact

_MAX_PARAM_CHARS = 6000
_MAX_TAG_CHARS = 5000
_RUN_STATUS = {
    "finished": "FINISHED",
    "stopped": "FINISHED",
    "failed": "FAILED",
    "running": "RUNNING",
}


class EventWriter(ABC):
    """Turns reports about a search into events; secrets are hidden before they leave the driver."""

    def __init__(self) -> None:
        self._epochs_seen: dict[int, int] = {}

    @abstractmethod
    def _append(self, kind: str, time_s: float, body: Mapping[str, Any]) -> bool:
        """Keep one event; False when it could not be kept."""

    def search_started(
        self, params: Mapping[str, Any], tags: Mapping[str, str], artifacts: Mapping[str, str]
    ) -> None:
        """Report the search itself; `artifacts` maps file names to their text."""
        self._append(
            "search_start",
            time.time(),
            {
                "params": _texts(params, _MAX_PARAM_CHARS),
                "tags": _texts(tags, _MAX_TAG_CHARS),
                "artifacts": _artifacts(artifacts),
            },
        )

    def trial_started(
        self,
        number: int,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        config: Mapping[str, Any],
        time_s: float,
    ) -> None:
        """Report a new trial: proposed values by dotted key and its resolved configuration."""
        text = json.dumps(config, indent=2, default=str)
        self._append(
            "trial_start",
            time_s,
            {
                "trial": number,
                "params": _texts(params, _MAX_PARAM_CHARS),
                "tags": _texts(tags, _MAX_TAG_CHARS),
                "artifacts": _artifacts({"config.json": text}),
            },
        )

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
        self,
        number: int,
        state: TrialState,
        reason: str,
        time_s: float,
        artifacts: Mapping[str, str | Path] | None = None,
    ) -> None:
        """Report how a trial ended; an artifact is text, or the path of a file to upload."""
        self._append(
            "trial_end",
            time_s,
            {
                "trial": number,
                "status": _RUN_STATUS[state],
                "tags": _texts(
                    {"spiketune.state": state, "spiketune.reason": reason}, _MAX_TAG_CHARS
                ),
                "artifacts": _artifacts(artifacts or {}),
            },
        )

    def trial_reopened(self, number: int, attempt: int, time_s: float) -> None:
        """Report that an ended or interrupted trial runs again, in the same run."""
        tags = {
            "spiketune.state": "running",
            "spiketune.reason": "",
            "spiketune.attempt": str(attempt),
        }
        self._append("trial_reopen", time_s, {"trial": number, "status": "RUNNING", "tags": tags})

    def search_ended(
        self,
        status: str,
        metrics: Mapping[str, float],
        artifacts: Mapping[str, str | Path],
        time_s: float,
    ) -> None:
        """Report the end as FINISHED, FAILED or KILLED; KILLED closes running trials' runs too."""
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
        if event.kind == "epoch":
            self._mark_seen(event.body["trial"], event.body["epoch"])

    def _mark_seen(self, number: int, epoch: int) -> None:
        # One bit an epoch: ten thousand trials stay below a megabyte.
        self._epochs_seen[number] = self._epochs_seen.get(number, 0) | 1 << epoch


def _texts(values: Mapping[str, Any], limit: int) -> dict[str, str]:
    """Write values as the YAML would (`true`, `0.001`), without secrets, cut to a length."""
    texts = {}
    for name, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        text = redact(text)
        texts[name] = text if len(text) <= limit else text[: limit - 1] + "…"
    return texts


def _artifacts(artifacts: Mapping[str, str | Path]) -> dict[str, dict[str, str]]:
    return {
        name: {"path": str(content.resolve())}
        if isinstance(content, Path)
        else {"text": redact(content)}
        for name, content in artifacts.items()
    }
