"""Who stands where at each rung, brought up to date from the records.

A memory of earlier answers only: what it says depends on nothing but the records of the last call,
so that a rule or a sampler that keeps one stays a pure function of the records.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from operator import is_not
from typing import Any

from search.records import TrialRecord

Place = tuple[Any, int]  # how bad, trial number


def at_epoch(record: TrialRecord, epoch: int) -> dict[str, float] | None:
    """Metrics a trial reported at an epoch, or None when it has not come so far."""
    epochs = record.epochs
    if 0 < epoch <= len(epochs) and epochs[epoch - 1].epoch == epoch:
        return dict(epochs[epoch - 1].metrics)
    return next((dict(known.metrics) for known in epochs if known.epoch == epoch), None)


class Changes:
    """Tells which records differ from those of the call before, by identity."""

    def __init__(self) -> None:
        """Begin with no record."""
        self._last: list[TrialRecord] = []

    def since(self, records: Sequence[TrialRecord]) -> tuple[bool, list[TrialRecord]]:
        """Whether some are gone, so that all must be read again, and which are new or changed.

        Args:
            records: by trial number.
        """
        last, self._last = self._last, list(records)
        if len(records) < len(last):
            return True, list(records)
        # Without a line of Python a record: this is asked thousands of times of thousands.
        differ = list(compress(range(len(last)), map(is_not, records, last)))
        if any(records[at].number != last[at].number for at in differ):
            return True, list(records)
        return False, [*(records[at] for at in differ), *records[len(last) :]]


class Standings:
    """Trials in order of badness at each of some epochs.

    Args:
        epochs: at which trials are compared.
        places: of a trial, how bad it was at each of those epochs that it has reached; smaller is
            better.
    """

    def __init__(
        self, epochs: Sequence[int], places: Callable[[TrialRecord], Mapping[int, Any]]
    ) -> None:
        """Begin with no record."""
        self._epochs = tuple(epochs)
        self._places_of = places
        self._changes = Changes()
        self._clear()

    def at(self, epoch: int, records: Sequence[TrialRecord]) -> list[Place]:
        """Trials that have reported the epoch, best first, ties by number; not to be changed."""
        return self.boards(records)[epoch]

    def boards(self, records: Sequence[TrialRecord]) -> Mapping[int, list[Place]]:
        """The same for every epoch."""
        gone, changed = self._changes.since(records)
        if gone:
            self._clear()
        for record in changed:
            self._enter(record)
        return self._places

    def _clear(self) -> None:
        self._places: dict[int, list[Place]] = {epoch: [] for epoch in self._epochs}
        self._entered: dict[tuple[int, int], Place] = {}

    def _enter(self, record: TrialRecord) -> None:
        found = self._places_of(record)
        for epoch, places in self._places.items():
            old = self._entered.get((epoch, record.number))
            new = (found[epoch], record.number) if epoch in found else None
            if old == new:
                continue
            if old is not None:
                del places[bisect.bisect_left(places, old)]
                del self._entered[epoch, record.number]
            if new is not None:
                bisect.insort(places, new)
                self._entered[epoch, record.number] = new
