"""Tracking in MLflow: one writer, the driver's, that never keeps training waiting.

Calls append to a spool on disk and return; a thread sends. Every event keeps its own time, so
sending one twice writes the row that is already there.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from search.delivery import Delivery
from search.spool import Chunk, Spool
from search.tracking_events import EventWriter
from search.tracking_store import run_writer
from search.tracking_uri import (
    TrackerConfig,
    TrackingError,
    default_uri,
    redact,
    resolve_uri,
    tracking_key,
    ui_command,
    ui_environment,
    unusable,
)

__all__ = [
    "Tracker",
    "TrackerConfig",
    "TrackingError",
    "default_uri",
    "redact",
    "resolve_uri",
    "ui_command",
    "ui_environment",
]

_log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Runs(Protocol):
    """What a tracker hands its events to: `RunWriter`, here or in another process."""

    @property
    def rejected(self) -> int:
        """Values that the store refused for good."""

    def connect(self, time_s: float) -> bool:
        """Open the store; True when the search's run was not there and has been made."""

    def deliver(self, chunk: Chunk) -> None:
        """Apply events in order; an exception means that some may have been applied."""


class Tracker(EventWriter):
    """Writes one MLflow run for the search and one below it for each trial.

    The methods that report something are for one thread, cost one small durable write and do
    not raise when the store is away. Repeating a report changes nothing, so a resumed driver may
    report its whole ledger again.

    Args:
        config: where the search is tracked.
        open_runs: makes what writes there, here or in another process.

    Raises:
        TrackingError: the search's id holds other characters than letters, digits, `.`, `_`, `-`.
    """

    def __init__(
        self, config: TrackerConfig, open_runs: Callable[[TrackerConfig], Runs] = run_writer
    ) -> None:
        super().__init__()
        if not _ID.fullmatch(config.search_id):
            raise TrackingError(
                f"a search id must match `{_ID.pattern}`, but got {config.search_id!r}"
            )
        self._config = config
        self._runs = open_runs(config)
        self._spool: Spool | None = None
        self._delivery: Delivery | None = None

    def start(self) -> None:
        """Open spool, store, experiment and the search's run, and start sending.

        Raises:
            TrackingError: the store is required and does not answer.
            SpoolError: another process tracks this search.
        """
        spool = Spool(self._config.spool_dir, tracking_key(self._config), self._note)
        try:
            self._connect(spool)
        except Exception as error:  # MLflow lets errors of many classes through
            failure = self._unusable(error)
            if self._config.required:
                spool.close()
                raise failure from error
            _log.warning("tracking: %s; events are kept in %s", failure, spool.path)
        self._spool = spool
        self._delivery = Delivery(spool, self._deliver, lambda error: redact(str(error)))
        self._delivery.start()

    @property
    def pending(self) -> int:
        """Events that the store has not confirmed yet."""
        return self._spool.pending if self._spool else 0

    @property
    def rejected(self) -> int:
        """Values that the store refused for good since `start`; each was logged."""
        return self._runs.rejected

    def flush(self, timeout_s: float, *, patient: bool = True) -> bool:
        """Wait until the store has confirmed everything; False as `Delivery.flush` says."""
        return self._delivery is None or self._delivery.flush(timeout_s, patient=patient)

    def close(self, timeout_s: float = 30.0, *, patient: bool = True) -> bool:
        """Flush and stop; False when events are left, which `sync` or a resume will send."""
        if self._spool is None or self._delivery is None:
            return True
        deadline = time.monotonic() + timeout_s
        done = self.flush(timeout_s, patient=patient)
        ended = self._delivery.stop(max(1.0, deadline - time.monotonic()))
        if not done:
            _log.warning(
                "tracking: %d event(s) are left in %s and will be sent at the next resume or sync",
                self._spool.pending,
                self._spool.path,
            )
        if ended:  # else the thread still reads; the process's end releases the spool
            self._spool.close()
        self._delivery = None
        return done

    def _append(self, kind: str, time_s: float, body: Mapping[str, Any]) -> bool:
        if self._spool is None or self._delivery is None:
            raise TrackingError("a tracker must be started before it is told anything")
        return self._spool.append(kind, time_s, body)

    def _unusable(self, error: Exception) -> TrackingError:
        return error if isinstance(error, TrackingError) else unusable(self._config.uri, error)

    def _connect(self, spool: Spool) -> bool:
        """Open the store; False when its runs are gone and the spool was rewound for that."""
        if self._runs.connect(time.time()) and spool.acked:
            _log.warning("tracking: the store no longer has this search; sending it all again")
            spool.rewind()
            return False
        return True

    def _deliver(self, chunk: Chunk) -> bool:
        spool = self._spool
        if spool is None or not self._connect(spool):
            return False
        self._runs.deliver(chunk)
        return True
