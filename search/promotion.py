"""Successive halving that pauses: a free worker continues what has proved best, or begins anew."""

from collections.abc import Iterator, Sequence
from heapq import nlargest
from operator import itemgetter

from search.halving import Asha
from search.records import TrialRecord
from search.standings import Place
from search.stopping import GO_ON, Decision


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

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:
        """Pause the trial at a rung, unless its worker would take it up again at once."""
        epoch = current.epochs[-1].epoch
        if epoch not in self.rungs or epoch < self.grace(records):
            return GO_ON
        if next(self._due(records, current.number), None) == current.number:
            return GO_ON
        return Decision(stop=False, reason=f"asha@{epoch}", pause=True)

    def promotion(self, records: Sequence[TrialRecord], *, last: bool = False) -> int | None:
        """The trial to continue; arguments as of `Pausing`."""
        if all(record.state != "paused" for record in records):
            return None
        found = next(self._due(records), None)
        return next(self._leaders(records), None) if found is None and last else found

    def _due(self, records: Sequence[TrialRecord], arrived: int | None = None) -> Iterator[int]:
        """Who is to go on, first the first; `arrived` is as good as paused."""
        for epoch in reversed(self.rungs):
            places = self._standings.at(epoch, records)
            latest = nlargest(self._recent, places, itemgetter(1))
            for place in places[: len(places) // self._course.factor]:
                record = records[place[1]]
                waits = record.state == "paused" or record.number == arrived
                if waits and len(record.epochs) == epoch and self._is_recent(place, latest):
                    yield record.number

    def _is_recent(self, place: Place, latest: Sequence[Place]) -> bool:
        return not self._recent or self._is_kept(place, sorted({*latest, place}))

    def _leaders(self, records: Sequence[TrialRecord]) -> Iterator[int]:
        """The best at each rung, where it waits; failed ones lead to nothing."""
        for epoch in reversed(self.rungs):
            places = self._standings.at(epoch, records)
            alive = (records[n] for _, n in places if records[n].state != "failed")
            best = next(alive, None)
            if best is not None and best.state == "paused" and len(best.epochs) == epoch:
                yield best.number
