"""Stopping rules: pure functions of the ledger.

A rule sees all records and the trial that has just reported; it says go on or why to stop. NaN and
silent networks are not a rule's choice: they always end a trial.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import nlargest
from operator import itemgetter
from typing import Literal, Protocol

from search.records import TrialRecord
from search.results import Mode
from search.standings import Place, Standings

RECENT_ROUNDS = 4
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
    """

    stop: bool
    reason: str = ""
    failed: bool = False


GO_ON = Decision(stop=False)


class StoppingRule(Protocol):
    """Decides from the ledger alone, so it is the same after a resume and in a simulation."""

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:
        """Go on or stop, after `current` has reported its last epoch."""


class NeverStop:
    """Every trial runs its full budget."""

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:  # noqa: ARG002
        """Always go on."""
        return GO_ON


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving on epochs, stopping variant.

    At rung epochs `grace, grace*factor, grace*factor^2, ...` below the full budget, a trial goes on
    when it is among the best `1/factor` (at least one) of all results at that rung so far. Ties
    go on only while there is room, earlier trial numbers first: dead networks at chance level do
    not keep each other alive.

    With `recent`, it must be among the best `1/factor` of that many latest trials at the rung as
    well: a sampler that learns proposes better and better trials, nearly all of which are among the
    best so far, and without this few would be stopped any more.

    Source: Li et al., MLSys 2020 (arXiv 1810.05934), which it differs from by `recent`.
    """

    metric: str
    maximise: bool
    grace_epochs: int
    reduction_factor: int
    max_epochs: int
    recent: int | None = None

    @cached_property
    def rungs(self) -> tuple[int, ...]:
        """Epochs at which trials are compared, ascending."""
        return rung_epochs(self.grace_epochs, self.reduction_factor, self.max_epochs)

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:
        """Compare the trial with all that have reached the same rung."""
        epoch = current.epochs[-1].epoch
        if epoch not in self.rungs:
            return GO_ON
        places = self._standings.at(epoch, records)
        own = (self._badness(current.last), current.number)
        goes_on = self._is_kept(own, places)
        if goes_on and self.recent is not None:
            earlier = (place for place in places if place[1] <= current.number)
            goes_on = self._is_kept(own, sorted(nlargest(self.recent, earlier, itemgetter(1))))
        return GO_ON if goes_on else Decision(stop=True, reason=f"asha@{epoch}")

    def _is_kept(self, own: Place, places: Sequence[Place]) -> bool:
        """Whether a place is among the best of all, given best first."""
        return bool(own <= places[max(1, len(places) // self.reduction_factor) - 1])

    @cached_property
    def _standings(self) -> Standings:
        return Standings(self.rungs, self._badness)

    def _badness(self, metrics: Mapping[str, float]) -> float:
        metric = metrics.get(self.metric, math.nan)
        if not math.isfinite(metric):  # such a trial has failed, whatever the sign
            return math.inf
        return -metric if self.maximise else metric


def asha(metric: str, mode: Mode, full_epochs: int, grace: int, factor: int) -> Asha:
    """The rule that searches use: four rounds of `factor` trials are recent."""
    return Asha(metric, mode == "max", grace, factor, full_epochs, RECENT_ROUNDS * factor)


def grace_of(grace: int | Literal["auto"], full_epochs: int) -> int:
    """The epochs that every trial is given; `auto` is a tenth of the full budget."""
    return max(1, round(full_epochs / 10)) if grace == "auto" else grace


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
