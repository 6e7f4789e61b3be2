"""A search in running numbers: each change of a trial is taken in, nothing is walked through."""

import bisect
import math
from collections import Counter
from collections.abc import Sequence

from search.records import TrialRecord
from search.results import ObjectiveLike, badness, dominates, pareto


class Board:
    """What a live display shows of a search.

    Args:
        objectives: metrics and modes.
        full_epochs: of a trial that is not stopped.
        records: what is known already.

    Attributes:
        states: how many trials are in each state.
        num_epochs: that all trials have reported.
        running: trials on a worker or about to be, by number.
        history: the best value of the first objective after each end of a trial, in order; NaN
            while no trial had a result.
        front: the Pareto set: how bad each member is, by number.
        last_failed: the trial that failed last.
    """

    def __init__(
        self,
        objectives: Sequence[ObjectiveLike],
        full_epochs: int,
        records: Sequence[TrialRecord] = (),
    ) -> None:
        self.objectives = tuple(objectives)
        self.full_epochs = full_epochs
        self.states: Counter[str] = Counter()
        self.num_epochs = 0
        self.running: dict[int, TrialRecord] = {}
        self.history: list[float] = []
        self.front: dict[int, tuple[float, ...]] = {}
        self.last_failed: TrialRecord | None = None
        self._known: dict[int, TrialRecord] = {}
        self._ranked: list[tuple[tuple[float, ...], int]] = []
        self._places: dict[int, tuple[float, ...]] = {}
        self._ended_epochs = 0
        self._saved_epochs = 0
        for record in sorted(records, key=lambda r: (r.ended_s or math.inf, r.number)):
            self.take(record)

    @property
    def num_ended(self) -> int:
        """Trials that never run again."""
        return self.states["finished"] + self.states["stopped"] + self.states["failed"]

    @property
    def saved_frac(self) -> float:
        """Share of the epochs of finished and stopped trials that early stopping saved."""
        whole = self.full_epochs * (self.states["finished"] + self.states["stopped"])
        return self._saved_epochs / whole if whole else 0.0

    @property
    def saved_epochs(self) -> int:
        """Epochs that early stopping saved."""
        return self._saved_epochs

    def take(self, record: TrialRecord) -> bool:
        """Take in a trial as it is now; False where it is as it was."""
        old = self._known.get(record.number)
        if old is not None and _sign(old) == _sign(record):
            return False
        self._known[record.number] = record
        self.states[record.state] += 1
        self.num_epochs += len(record.epochs)
        if old is not None:
            self.states[old.state] -= 1
            self.num_epochs -= len(old.epochs)
        self.running.pop(record.number, None)
        if record.state == "running":
            self.running[record.number] = record
        self._place(record)
        if record.has_ended and (old is None or not old.has_ended):
            self._end(record)
        return True

    def top(self, count: int) -> list[TrialRecord]:
        """The best trials that count, best first."""
        return [self._known[number] for _, number in self._ranked[:count]]

    def epochs_left(self, trials: int) -> float | None:
        """Epochs until so many trials have ended, by those that have; None before the first."""
        if not self.num_ended:
            return None
        mean = self._ended_epochs / self.num_ended
        begun = sum(min(mean, len(record.epochs)) for record in self.running.values())
        return max(0.0, mean * (trials - self.num_ended) - begun)

    def _place(self, record: TrialRecord) -> None:
        """Rank a trial, or take it out: one that waited may go on."""
        old = self._places.pop(record.number, None)
        if old is not None:
            del self._ranked[bisect.bisect_left(self._ranked, (old, record.number))]
        new = badness(record, self.objectives)
        if new is not None:
            self._places[record.number] = new
            bisect.insort(self._ranked, (new, record.number))
        if record.number in self.front:  # it may have hidden others
            counted = [self._known[number] for _, number in self._ranked]
            self.front = {
                r.number: self._places[r.number] for r in pareto(counted, self.objectives)
            }
        elif new is not None and not any(dominates(other, new) for other in self.front.values()):
            beaten = [n for n, other in self.front.items() if dominates(new, other)]
            for number in beaten:
                del self.front[number]
            self.front[record.number] = new

    def _end(self, record: TrialRecord) -> None:
        self._ended_epochs += len(record.epochs)
        if record.state == "failed":
            self.last_failed = record
        else:
            self._saved_epochs += max(0, self.full_epochs - len(record.epochs))
        first = self.objectives[0]
        best = self.history[-1] if self.history else math.nan
        if record.number in self._places:
            value = record.last[first.metric]
            best = value if math.isnan(best) else (max if first.mode == "max" else min)(best, value)
        self.history.append(best)


def _sign(record: TrialRecord) -> tuple[str, int, int]:
    """What differs whenever a trial has changed in what is shown of it."""
    return record.state, len(record.epochs), record.attempt
