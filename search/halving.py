"""Successive halving on epochs: at each rung only the best share of the trials goes on."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from heapq import nlargest
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from search.fronts import best_of
from search.records import TrialRecord
from search.standings import Place, Standings, at_epoch
from search.stopping import GO_ON, Course, Decision, signed

Floats = NDArray[np.float64]

RECENT_ROUNDS = 4
MIN_PAIRS = 12
UNRELATED = 0.3  # rank correlation of neighbouring rungs below which the lower one says nothing
_DOUBT = 1.28  # standard errors; ninety in a hundred
_MOST_COMPARED = 64  # sorting them into fronts takes time


class Asha:
    """Asynchronous successive halving, stopping variant.

    At rung epochs `grace, grace*factor, grace*factor^2, ...` below the full budget, a trial goes on
    when it is among the best `1/factor` (at least one) of all results at that rung so far. Ties
    go on only while there is room, earlier trial numbers first: dead networks at chance level do
    not keep each other alive. It must be among the best `1/factor` of the latest trials at the rung
    as well: a sampler that learns proposes better and better trials, nearly all of which are among
    the best so far, and without this few would be stopped any more.

    With `course.adaptive`, a rung whose ranks say nothing of those at the next one stops nobody.
    That is measured on trials that have reached both; as these were chosen at the lower one, the
    correlation found is smaller than that of all trials, so only one that is clearly below
    `UNRELATED` counts.

    Source: Li et al., MLSys 2020 (arXiv 1810.05934), which it differs from by the latest trials and
    the adaptive grace period.
    """

    def __init__(self, course: Course, recent: int | None = None) -> None:
        """Derive the rungs; the latest are four rounds of `factor`, or `recent` trials, 0: off."""
        self.rungs = course.rungs
        self._course = course
        self._recent = RECENT_ROUNDS * course.factor if recent is None else recent
        self._standings = Standings(self.rungs, self._places)
        self._all = Standings((*self.rungs, course.full_epochs), self._losses)

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:
        """Compare the trial with all that have reached the same rung."""
        epoch = current.epochs[-1].epoch
        if epoch not in self.rungs or epoch < self.grace(records):
            return GO_ON
        places = self._standings.at(epoch, records)
        own = (self._badness(current.last), current.number)
        goes_on = self._is_kept(own, places)
        if goes_on and self._recent:
            earlier = (place for place in places if place[1] <= current.number)
            goes_on = self._is_kept(own, sorted(nlargest(self._recent, earlier, itemgetter(1))))
        return GO_ON if goes_on else Decision(stop=True, reason=f"asha@{epoch}")

    def grace(self, records: Sequence[TrialRecord]) -> int:
        """The first epoch at which trials are stopped, by what is known so far."""
        if not self._course.adaptive or len(self.rungs) < 2:
            return self._course.grace_epochs
        for lower, upper in itertools.pairwise((*self.rungs, self._course.full_epochs)):
            if not self._is_unrelated(lower, upper, records):
                return lower
        return self.rungs[-1]

    def _is_unrelated(self, lower: int, upper: int, records: Sequence[TrialRecord]) -> bool:
        above = {number: loss for loss, number in self._all.at(upper, records)}
        if len(above) < MIN_PAIRS:
            return False
        below = {number: loss for loss, number in self._all.at(lower, records) if number in above}
        first, second = (np.array([side[n] for n in below]) for side in (below, above))
        known = np.isfinite(first) & np.isfinite(second)
        found = rank_correlation(first[known], second[known])
        return found is not None and found + _DOUBT / math.sqrt(known.sum() - 1) < UNRELATED

    def _is_kept(self, own: Place, places: Sequence[Place]) -> bool:
        """Whether a place is among the best of all, given best first."""
        return bool(own <= places[max(1, len(places) // self._course.factor) - 1])

    def _badness(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        return self._course.violation(metrics), self._course.loss(metrics)

    def _places(self, record: TrialRecord) -> dict[int, tuple[float, float]]:
        return {e: self._badness(metrics) for e, metrics in compared(record, self.rungs).items()}

    def _losses(self, record: TrialRecord) -> dict[int, float]:
        epochs = (*self.rungs, self._course.full_epochs)
        found = ((epoch, at_epoch(record, epoch)) for epoch in epochs)
        return {epoch: self._course.loss(metrics) for epoch, metrics in found if metrics}


class Hyperband:
    """Asynchronous Hyperband: several successive halvings, each with a longer grace period.

    A trial belongs to one bracket, drawn with its seed and number so that every bracket costs about
    as much as the others; the last one stops nobody.

    Source: Li et al., JMLR 2018 (arXiv 1603.06560), asynchronous as in Li et al., MLSys 2020.
    """

    def __init__(self, course: Course) -> None:
        """Lay out the brackets."""
        self.rungs = course.rungs
        self._seed = course.seed
        graces = [*self.rungs, course.full_epochs]
        self._brackets = [
            Asha(replace(course, grace_epochs=grace, adaptive=False), recent=0) for grace in graces
        ]
        # As many trials as the original gives each: the longer the grace, the fewer.
        weights = [course.factor**-i / (len(graces) - i) for i in range(len(graces))]
        self._until = np.cumsum(weights) / sum(weights)
        self._drawn: dict[int, int] = {}

    def bracket(self, number: int) -> int:
        """The bracket that a trial belongs to."""
        if number not in self._drawn:
            drawn = np.random.default_rng([self._seed, number, 2]).random()
            found = int(np.searchsorted(self._until, drawn))
            self._drawn[number] = min(found, len(self._brackets) - 1)
        return self._drawn[number]

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:
        """Compare the trial with those of its own bracket."""
        epoch, index = current.epochs[-1].epoch, self.bracket(current.number)
        if epoch not in self._brackets[index].rungs:
            return GO_ON
        mine = [record for record in records if self.bracket(record.number) == index]
        goes_on = not self._brackets[index].decide(mine, current).stop
        return GO_ON if goes_on else Decision(stop=True, reason=f"hyperband@{epoch}")


class MultiObjectiveAsha:
    """Successive halving by all objectives of the search.

    At each rung a trial goes on when it is among the best `1/factor` of the latest
    `_MOST_COMPARED` results there: by how many fronts dominate it, and within a front by what it
    adds to the front's hypervolume. Trials that break an outcome constraint rank behind the others.

    Source: non-dominated sorting at rungs after Schmucker et al., 2021 (arXiv 2106.12639); differs
    by the hypervolume as the tie-break.
    """

    def __init__(self, course: Course) -> None:
        """Derive the rungs."""
        self.rungs = course.rungs
        self._course = course
        self._standings = Standings(self.rungs, self._places)

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:
        """Compare the trial with the others that have reached the same rung."""
        epoch = current.epochs[-1].epoch
        if epoch not in self.rungs:
            return GO_ON
        places = self._standings.at(epoch, records)
        latest = nlargest(_MOST_COMPARED, places, itemgetter(1))
        if all(number != current.number for _, number in latest):
            latest.append(next(place for place in places if place[1] == current.number))
        best = best_of(np.array([b for b, _ in latest]), max(1, len(latest) // self._course.factor))
        goes_on = current.number in {latest[index][1] for index in best}
        return GO_ON if goes_on else Decision(stop=True, reason=f"mo_asha@{epoch}")

    def _places(self, record: TrialRecord) -> dict[int, tuple[float, ...]]:
        course = self._course
        return {
            epoch: (
                course.violation(metrics),
                *(signed(metrics, o.metric, o.mode) for o in course.objectives),
            )
            for epoch, metrics in compared(record, self.rungs).items()
        }


def compared(record: TrialRecord, epochs: Sequence[int]) -> dict[int, dict[str, float]]:
    """Metrics at the epochs at which a trial stands among others.

    One that runs on only as a check of the rule no longer does: its results are not to change what
    becomes of the others.
    """
    spared = record.spared
    last = math.inf if spared is None else spared.epoch
    found = ((epoch, at_epoch(record, epoch)) for epoch in epochs if epoch <= last)
    return {epoch: metrics for epoch, metrics in found if metrics is not None}


def rank_correlation(first: Floats, second: Floats) -> float | None:
    """Spearman's rank correlation; None with few pairs, or where one side is all the same."""
    if len(first) < MIN_PAIRS or np.ptp(second) == 0.0:
        return None
    if np.ptp(first) == 0.0:
        return 0.0
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Floats) -> Floats:
    """From 1, ties sharing their mean; SciPy's own take two seconds to import."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: Floats = np.cumsum(counts) - (counts - 1) / 2.0
    return means[places]
