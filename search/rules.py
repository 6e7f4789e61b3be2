"""The stopping rules by name, those that are not successive halving, and the check of them all."""

import bisect
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from search.halving import Asha, Hyperband, MultiObjectiveAsha, compared
from search.promotion import AshaPromotion
from search.records import PAUSED, TrialRecord
from search.standings import Standings
from search.stopping import (
    GO_ON,
    Course,
    Decision,
    NeverStop,
    StoppingRule,
    grace_of,
    promotion,
)
from spaces.schema import SearchSpec

MIN_OTHERS = 4


class MedianRule:
    """Stops a trial whose best result is worse than the median of the others' averages.

    From the end of the grace period on, after every epoch: compared are the best value of the trial
    so far and, of each other trial that has come as far, the mean of its values up to there.

    Source: Golovin et al., Google Vizier, KDD 2017, section 3.2.2, which waits for trials that are
    complete; this compares with all that have come as far.
    """

    def __init__(self, course: Course) -> None:
        """Compare at each epoch from the grace period on."""
        self.rungs = course.rungs
        self._course = course
        self._epochs = range(course.grace_epochs, course.full_epochs)
        self._standings = Standings(self._epochs, self._averages)

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:
        """Compare the trial with the others' averages up to this epoch."""
        epoch = current.epochs[-1].epoch
        if epoch not in self._epochs:
            return GO_ON
        places = self._standings.at(epoch, records)
        others = [badness for badness, number in places if number != current.number]
        if len(others) < MIN_OTHERS:
            return GO_ON
        reached = compared(current, [e.epoch for e in current.epochs])
        best = min(self._badness(metrics) for metrics in reached.values())
        if bisect.bisect_left(others, best) <= len(others) // 2:
            return GO_ON
        return Decision(stop=True, reason=f"median@{epoch}")

    def _badness(self, metrics: dict[str, float]) -> tuple[float, float]:
        return self._course.violation(metrics), self._course.loss(metrics)

    def _averages(self, record: TrialRecord) -> dict[int, tuple[float, float]]:
        reached = compared(record, [e.epoch for e in record.epochs])
        pairs = [self._badness(metrics) for metrics in reached.values()]
        sums = itertools.accumulate(pairs, lambda a, b: (a[0] + b[0], a[1] + b[1]))
        return {
            epoch: (broken / num, loss / num)
            for num, (epoch, (broken, loss)) in enumerate(zip(reached, sums, strict=True), start=1)
        }


class Plateau:
    """Stops a trial that has not improved for `patience` epochs, whatever the others do."""

    def __init__(self, course: Course) -> None:
        """Keep the patience."""
        self.rungs = course.rungs
        self._course = course

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:  # noqa: ARG002  # the others do not matter here
        """Look for the trial's best epoch."""
        losses = [self._course.loss(epoch.metrics) for epoch in current.epochs]
        since = len(losses) - 1 - losses.index(min(losses))
        if len(losses) < self._course.grace_epochs or since < self._course.patience_epochs:
            return GO_ON
        return Decision(stop=True, reason=f"plateau@{len(losses)}")


class SelfCheck:
    """Lets a seeded share of the trials that a rule would stop run on, to see what was missed.

    Such a trial runs its full budget; its later results do not count against the other trials. Of a
    rule that pauses, those run on that would wait, for most of them wait until they are stopped.

    Args:
        rule: what is checked.
        share: of the trials, 0 to 1.
        seed: draws them by number, so that a resumed search draws the same.
    """

    def __init__(self, rule: StoppingRule, share: float, seed: int) -> None:
        """Put the check around the rule."""
        self.rungs = rule.rungs
        self._rule = rule
        self._share = share
        self._seed = seed

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:
        """As the rule says, unless the trial is one to check it by."""
        if current.spared is not None:
            return GO_ON
        decision = self._rule.decide(records, current)
        ends = decision.stop or decision.pause
        if ends and is_checked(self._seed, current.number, self._share):
            spared = f"{PAUSED}@{len(current.epochs)}" if decision.pause else decision.reason
            return Decision(stop=False, spared=spared)
        return decision

    def promotion(self, records: Sequence[TrialRecord], *, last: bool = False) -> int | None:
        """As the rule says."""
        return promotion(self._rule, records, last=last)


def is_checked(seed: int, number: int, share: float) -> bool:
    """Whether a trial would run on if it were to be stopped."""
    return bool(np.random.default_rng([seed, number, 1]).random() < share)


RULES: dict[str, Callable[[Course], StoppingRule]] = {
    "asha": Asha,
    "asha_promotion": AshaPromotion,
    "mo_asha": MultiObjectiveAsha,
    "hyperband": Hyperband,
    "median": MedianRule,
    "plateau": Plateau,
    "none": NeverStop,
}


def make_rule(name: str, course: Course, check_share: float = 0.0) -> StoppingRule:
    """Build a stopping rule by name.

    Raises:
        ValueError: the name is unknown; the message lists the valid ones.
    """
    if name not in RULES:
        raise ValueError(f"stopping.name must be one of {sorted(RULES)}, but got {name!r}")
    rule = RULES[name](course)
    return SelfCheck(rule, check_share, course.seed) if check_share else rule


def course_of(spec: SearchSpec) -> Course:
    """What a search's stopping rule is given."""
    stopping, full = spec.stopping, spec.base_config.train.total_epochs
    patience = stopping.patience_epochs
    return Course(
        spec.stopping_metric,
        spec.stopping_mode,
        full,
        grace_of(stopping.grace_epochs, full),
        adaptive=stopping.grace_epochs == "auto",
        factor=stopping.reduction_factor,
        patience_epochs=math.ceil(full / 5) if patience == "auto" else patience,
        objectives=spec.objectives,
        constraints=spec.outcome_constraints,
        seed=spec.sampler.seed,
    )


def stopping_rule(spec: SearchSpec) -> StoppingRule:
    """Build the rule that a search names."""
    return make_rule(spec.stopping.name, course_of(spec), spec.stopping.check_share)
