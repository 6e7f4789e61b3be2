"""Stopping rules: pure functions of the ledger.

A rule sees all records and the trial that has just reported; it says go on or why to stop. NaN and
silent networks are not a rule's choice: they always end a trial.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from search.records import TrialRecord
from search.results import Mode, ObjectiveLike
from spaces.constraints import OutcomeConstraint

SILENT = 0.0
SATURATED = 0.999
# Batch norm's running variance starts at 1 and keeps 0.9 of itself a step: 0.9^100 < 3e-5.
SETTLED_STEPS = 100


@dataclass(frozen=True)
class Decision:
    """What to do with a trial after an epoch.

    Attributes:
        stop: whether to end it.
        reason: one word for the ledger; empty when it goes on.
        failed: whether the end is a failure rather than a poor result.
        spared: why it would have ended, were it not to run on as a check of the rule.
        pause: whether it gives its worker to another trial and may go on later; `reason` is then
            what its end is called if it never does.
    """

    stop: bool
    reason: str = ""
    failed: bool = False
    spared: str = ""
    pause: bool = False


GO_ON = Decision(stop=False)


@dataclass(frozen=True)
class Course:
    """What a stopping rule is given of a search.

    Attributes:
        metric: what trials are compared by.
        mode: which way it is better.
        full_epochs: of a trial that is not stopped.
        grace_epochs: before the first comparison.
        adaptive: whether the grace period may grow when early ranks do not predict later ones.
        factor: one in so many trials goes on at each rung.
        patience_epochs: without improvement, for rules that wait for one.
        objectives: of the search, for rules that look at all of them.
        constraints: bounds on measured metrics; a trial that breaks one ranks behind the others.
        seed: of all draws.
    """

    metric: str
    mode: Mode
    full_epochs: int
    grace_epochs: int
    adaptive: bool = False
    factor: int = 3
    patience_epochs: int = 1
    objectives: tuple[ObjectiveLike, ...] = ()
    constraints: tuple[OutcomeConstraint, ...] = ()
    seed: int = 0

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs `grace, grace*factor, grace*factor^2, ...` below the full budget."""
        return rung_epochs(self.grace_epochs, self.factor, self.full_epochs)

    def loss(self, metrics: Mapping[str, float]) -> float:
        """The metric with its sign such that smaller is better; infinite when not finite."""
        return signed(metrics, self.metric, self.mode)

    def violation(self, metrics: Mapping[str, float]) -> float:
        """By how much outcome constraints are broken together; 0 when all are kept."""
        return sum(max(0.0, constraint.violation(metrics)) for constraint in self.constraints)


class StoppingRule(Protocol):
    """Decides from the ledger alone, so it is the same after a resume and in a simulation."""

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs below the full budget at which trials can be compared, ascending."""

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:
        """Go on or stop, after `current` has reported its last epoch."""


@runtime_checkable
class Pausing(Protocol):
    """A rule that pauses trials, and says which of them goes on."""

    def promotion(self, records: Sequence[TrialRecord], *, last: bool = False) -> int | None:
        """Number of the paused trial that a free worker is to continue; None: a new one instead.

        Args:
            records: by trial number.
            last: whether nothing runs and nothing new may start.
        """


def promotion(rule: object, records: Sequence[TrialRecord], *, last: bool = False) -> int | None:
    """What a rule says of the paused trials, as of `Pausing`; None where it pauses none."""
    return rule.promotion(records, last=last) if isinstance(rule, Pausing) else None


class NeverStop:
    """Every trial runs its full budget."""

    rungs: tuple[int, ...] = ()

    def __init__(self, course: Course) -> None:
        """Take what every rule is given."""

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:  # noqa: ARG002
        """Always go on."""
        return GO_ON


def grace_of(grace: int | Literal["auto"], full_epochs: int) -> int:
    """The epochs that every trial is given; `auto` is a tenth of the full budget."""
    return max(1, round(full_epochs / 10)) if grace == "auto" else grace


def signed(metrics: Mapping[str, float], metric: str, mode: Mode) -> float:
    """A metric such that smaller is better; infinite when it is not finite, whatever its sign."""
    value = metrics.get(metric, math.nan)
    if not math.isfinite(value):  # such a trial has failed
        return math.inf
    return -value if mode == "max" else value


def rung_epochs(grace: int, factor: int, full: int) -> tuple[int, ...]:
    """Epochs `grace, grace*factor, grace*factor^2, ...` below the full budget."""
    rungs = []
    epoch = grace
    while epoch < full:
        rungs.append(epoch)
        epoch *= factor
    return tuple(rungs)


def health(current: TrialRecord, metric: str, num_steps: int) -> Decision:
    """End a trial whose last report can lead nowhere.

    A non-finite loss or objective is `nan`. A network that no longer fires anywhere is `silent`,
    one whose every layer always fires `saturated`; as running batch-norm statistics silence a young
    network, one that has never fired is given its first optimisation steps.

    Args:
        current: the trial, its last epoch reported.
        metric: what trials are compared by.
        num_steps: optimisation steps taken so far.
    """
    last = current.last
    for name in (metric, "train_loss", "val_loss"):
        if name in last and not math.isfinite(last[name]):
            return Decision(stop=True, reason=f"nan_{name}", failed=True)
    if metric not in last:
        return Decision(stop=True, reason=f"missing_{metric}", failed=True)
    rates = list(current.extra.get("layer_rates", {}).values())
    fired = any(epoch.metrics.get("firing_rate", 0.0) > SILENT for epoch in current.epochs)
    if rates and (fired or num_steps >= SETTLED_STEPS):
        if max(rates) <= SILENT:
            return Decision(stop=True, reason="silent_network", failed=True)
        if min(rates) >= SATURATED:
            return Decision(stop=True, reason="saturated_network", failed=True)
    return GO_ON
