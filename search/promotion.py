"""Successive halving that pauses: a free worker continues what has proved best, or begins anew."""

from collections.abc import Sequence
from heapq import nlargest
from operator import itemgetter

from search.halving import Asha
from search.records import TrialRecord
from search.standings import Standings
from search.stopping import GO_ON, Course, Decision


class AshaPromotion(Asha):
    """Asynchronous successive halving, promotion variant.

    A trial that reaches a rung waits there. A free worker continues, from the highest rung down,
    the best that waits among the best `1/factor` of all results at its rung, rounded down; where
    there is none, it begins a new trial. So the first results at a rung promote nobody, and a trial
    may go on long after it was paused, when worse ones have joined it. Ties are for earlier trial
    numbers. A worker that would continue the very trial that has just arrived keeps it.

    As with `Asha` a trial must be among the best `1/factor` of the latest ones at the rung too,
    here those that are the latest now; and the grace period may grow: from then on trials pass a
    rung that says nothing without waiting, and those that wait there already go on by its ranks.

    When nothing runs and nothing new may start, the best at each rung goes on, however few came so
    far: a search ends with a trial that was trained in full.

    Source: Li et al., MLSys 2020 (arXiv 1810.05934), Algorithm 2, which it differs from by the
    latest trials, the adaptive grace period and the end.
    """

    def __init__(self, course: Course, recent: int | None = None) -> None:
        """Derive the rungs; arguments as of `Asha`."""
        super().__init__(course, recent)
        self._waiting = Standings(self.rungs, self._waiting_place)

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:
        """Pause the trial at a rung, unless its worker would take it up again at once."""
        epoch = current.epochs[-1].epoch
        if epoch not in self.rungs or epoch < self.grace(records):
            return GO_ON
        if self._due(records, current) == current.number:
            return GO_ON
        return Decision(stop=False, reason=f"asha@{epoch}", pause=True)

    def promotion(self, records: Sequence[TrialRecord], *, last: bool = False) -> int | None:
        """The trial to continue; arguments as of `Pausing`."""
        found = self._due(records)
        return self._leader(records) if found is None and last else found

    def _due(
        self, records: Sequence[TrialRecord], arrived: TrialRecord | None = None
    ) -> int | None:
        """Who is to go on; `arrived` is as good as paused."""
        waiting, boards = self._waiting.boards(records), self._standings.boards(records)
        for epoch in reversed(self.rungs):
            places, candidates = boards[epoch], waiting[epoch][:1]
            if arrived is not None and arrived.epochs[-1].epoch == epoch:
                candidates = [*candidates, (self._badness(arrived.last), arrived.number)]
            num = len(places) // self._course.factor
            # Where the best that waits is not good enough, none is.
            best = min(candidates, default=None)
            if num and best is not None and best <= places[num - 1]:
                latest = nlargest(self._recent, places, itemgetter(1))
                if not self._recent or self._is_kept(best, sorted({*latest, best})):
                    return best[1]
        return None

    def _leader(self, records: Sequence[TrialRecord]) -> int | None:
        """The best at a rung, where it waits, of the highest first; failed ones lead to nothing."""
        waiting, boards = self._waiting.boards(records), self._standings.boards(records)
        for epoch in reversed(self.rungs):
            alive = (place for place in boards[epoch] if records[place[1]].state != "failed")
            best = next(alive, None)
            if best is not None and best in waiting[epoch][:1]:
                return best[1]
        return None

    def _waiting_place(self, record: TrialRecord) -> dict[int, tuple[float, float]]:
        last = record.epochs[-1].epoch if record.epochs else 0
        waits = record.state == "paused"
        return {e: place for e, place in self._places(record).items() if waits and e == last}
