"""What follows a lost worker: another attempt, when, or the end. Pure functions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from search.records import PAUSED, Attempt, TrialRecord
from trainables.config import TrialConfig

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
# Lost machines and drivers are not the trial's fault, but nothing goes on for ever.
MAX_ATTEMPTS = 50

# Ray's own words, for a trial's error may speak of nodes and preemption too.
_NODE = re.compile(
    r"its node has died|actor's node was (?:terminated|preempted)|node it was running on is dead"
    r"|node preemption|by preemption|NodeDiedError"
)
_UNREACHABLE = re.compile(r"ActorUnavailableError|is unavailable:")
_MEMORY = re.compile(r"running low on memory|OutOfMemoryError")
_STORE = re.compile(r"^(?:\w+\.)*StoreError: (.+)$", re.M)
_RAISED = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception))\b", re.M)


@dataclass(frozen=True)
class Loss:
    """Why an attempt has ended.

    Attributes:
        reason: for the ledger.
        charged: whether it counts against the retries.
        detail: for the log.
    """

    reason: str
    charged: bool
    detail: str = ""

    def __str__(self) -> str:
        """Reason and detail."""
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


OUT_OF_MEMORY = "out_of_memory"
# The share of a card or machine that was predicted was too small; the next one is larger.
SHARE_TOO_SMALL = "share_too_small"
HOST_OUT_OF_MEMORY = "host_out_of_memory"
HANG = Loss("hang", charged=True)
MISSING_EPOCH = Loss("missing_epoch", charged=True)
INTERRUPTED = Loss("interrupted", charged=False)


def loss_of(error: str) -> Loss:
    """Tell from Ray's error text what a worker was lost to.

    A machine or a store that is gone is not charged; a killed or failing worker is.
    """
    if _NODE.search(error):
        return Loss("node_lost", charged=False)
    if _UNREACHABLE.search(error):
        return Loss("worker_unreachable", charged=False)
    if _MEMORY.search(error):
        return Loss(HOST_OUT_OF_MEMORY, charged=True)
    stores = _STORE.findall(error)
    if stores:
        return Loss("store_unavailable", charged=False, detail=stores[-1])
    raised = [name for name in _RAISED.findall(error) if not name.startswith(("Actor", "Ray"))]
    return Loss(f"error {raised[-1]}" if raised else "worker_lost", charged=True)


def used_up(attempts: Sequence[Attempt], max_retries: int) -> bool:
    """Whether a trial that has just been lost gets no further attempt."""
    return num_charged(attempts) > max_retries or len(_lost(attempts)) >= MAX_ATTEMPTS


def backoff_s(attempts: Sequence[Attempt]) -> float:
    """Seconds to wait before the next attempt: twice as long each time."""
    return float(min(BACKOFF_FIRST_S * 2.0 ** (len(_lost(attempts)) - 1), BACKOFF_MAX_S))


def num_too_small(record: TrialRecord) -> int:
    """How often a trial has run out of the memory it had asked for, and been given more."""
    return sum(attempt.reason == SHARE_TOO_SMALL for attempt in record.attempts)


def smaller_parts(record: TrialRecord) -> TrialConfig | None:
    """The configuration for a trial that did not fit: its batches in twice as many parts.

    None when that was tried, when an epoch had fitted, or when a part would be a single sample.
    """
    config = TrialConfig.model_validate(record.config)
    parts = 2 * config.train.accumulate
    was_tried = any(attempt.reason == OUT_OF_MEMORY for attempt in record.attempts)
    if was_tried or record.epochs or config.train.batch_size < 2 * parts:
        return None
    train = config.train.model_copy(update={"accumulate": parts})
    return config.model_copy(update={"train": train})


def _lost(attempts: Sequence[Attempt]) -> list[Attempt]:
    return [attempt for attempt in attempts if attempt.reason != PAUSED]


def num_charged(attempts: Sequence[Attempt]) -> int:
    """Attempts that count against the retries."""
    return sum(attempt.charged for attempt in attempts)
