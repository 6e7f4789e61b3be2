"""Replays learning curves on a simulated clock through a search's own decisions.

What proposes and what stops sees the same records that a real search keeps, so that a sampler or a
stopping rule is measured as it is, thousands of trials a minute.
"""

import heapq
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from search.curves import EPOCH_S, Curve
from search.records import EpochRecord, TrialRecord, TrialState
from search.stopping import Decision, health, promotion

Params = dict[str, Any]
NO_STEPS = 0  # curves tell nothing of optimisation steps


class Curves(Protocol):
    """What trials report: a table of real curves, or drawn ones."""

    @property
    def metric(self) -> str:
        """What the values are called."""

    @property
    def num_epochs(self) -> int:
        """Epochs of a full training."""

    @property
    def full_training_s(self) -> float:
        """The unit of the budget."""

    def curve(self, params: Params) -> Curve:
        """What a trial reports, and when."""

    def regret(self, value: float) -> float:
        """How far a value is from the best."""


class Policy(Protocol):
    """Whoever decides a search: ours, or one to compare with; one that pauses is `Pausing` too."""

    def propose(self, records: Sequence[TrialRecord]) -> Params | None:
        """Parameters of the next trial; None when there is none."""

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:
        """Go on or stop, after `current` has reported an epoch that is not its last."""

    def ended(self, record: TrialRecord) -> None:
        """Hear that a trial has ended, whatever the reason."""


@dataclass(frozen=True)
class Conditions:
    """What a simulated search runs on.

    Attributes:
        workers: trials that run at once.
        trainings: budget of each worker, in median full trainings of the table.
        failed_frac: share of trials whose worker dies for good, at an epoch drawn evenly.
        slow_frac: share of trials that run on a slow worker.
        slowdown: how many times slower that is.
    """

    workers: int = 8
    trainings: float = 6.0
    failed_frac: float = 0.0
    slow_frac: float = 0.0
    slowdown: float = 5.0


@dataclass(frozen=True)
class Run:
    """One simulated search.

    Attributes:
        fractions: share of the budget at which the best value seen improved, ascending.
        regrets: normalised regret from then on.
        records: every trial.
        propose_s: real seconds that each proposal took.
        decide_s: real seconds that all other decisions took.
    """

    fractions: tuple[float, ...]
    regrets: tuple[float, ...]
    records: tuple[TrialRecord, ...]
    propose_s: tuple[float, ...]
    decide_s: float

    def regret_at(self, fraction: float) -> float:
        """Normalised regret when that share of the budget is used; NaN before any result."""
        index = int(np.searchsorted(self.fractions, fraction, side="right")) - 1
        return self.regrets[index] if index >= 0 else math.nan


@dataclass(order=True)
class _Event:
    """A running trial's next report."""

    time_s: float
    number: int
    epoch: int
    started_s: float = field(compare=False)
    curve: Curve = field(compare=False)
    pace: float = field(compare=False, default=1.0)
    last_epoch: float = field(compare=False, default=math.inf)


def simulate(table: Curves, policy: Policy, conditions: Conditions, seed: int) -> Run:
    """Run one search until its budget is used.

    Args:
        table: what trials report.
        policy: what decides.
        conditions: workers, budget, faults.
        seed: of the faults; the policy has its own.
    """
    simulation = _Simulation(table, policy, conditions, seed)
    simulation.run()
    return Run(
        tuple(simulation.fractions),
        tuple(simulation.regrets),
        tuple(simulation.records),
        tuple(simulation.propose_s),
        simulation.decide_s,
    )


class _Simulation:
    def __init__(self, table: Curves, policy: Policy, conditions: Conditions, seed: int) -> None:
        self.records: list[TrialRecord] = []
        self.fractions: list[float] = []
        self.regrets: list[float] = []
        self.propose_s: list[float] = []
        self.decide_s = 0.0
        self._table = table
        self._policy = policy
        self._conditions = conditions
        self._seed = seed
        self._budget_s = conditions.trainings * table.full_training_s
        self._queue: list[_Event] = []
        self._paused: dict[int, _Event] = {}
        self._free = 0
        self._exhausted = False
        self._best = math.inf

    def run(self) -> None:
        """Go from report to report."""
        for _ in range(self._conditions.workers):
            self._start(0.0)
        while self._queue and self._queue[0].time_s <= self._budget_s:
            event = heapq.heappop(self._queue)
            end = self._take(event)
            if end is None:
                self._push(event, event.epoch + 1)
                continue
            self._leave(event, *end)
            self._start(event.time_s)

    def _leave(self, event: _Event, state: TrialState, reason: str) -> None:
        """A trial gives its worker up, for good or as long as it is paused."""
        record = replace(self.records[event.number], state=state, reason=reason)
        if state == "paused":
            self.records[event.number] = record
            self._paused[event.number] = event
            return
        self.records[event.number] = replace(record, ended_s=event.time_s)
        self._policy.ended(self.records[event.number])

    def _start(self, now_s: float) -> None:
        """Put a free worker to a paused trial, or to a new one; so with those free before."""
        self._free += 1
        while self._free and (self._continue(now_s) or self._begin(now_s)):
            self._free -= 1
        if self._queue:
            return
        if self._continue(now_s, last=True):
            self._free -= 1
        else:
            for number, event in self._paused.items():
                event.time_s = now_s
                self._leave(event, "stopped", self.records[number].reason)

    def _continue(self, now_s: float, *, last: bool = False) -> bool:
        began = time.perf_counter()
        number = promotion(self._policy, self.records, last=last)
        self.decide_s += time.perf_counter() - began
        if number is None:
            return False
        self.records[number] = replace(self.records[number], state="running", reason="")
        event = self._paused.pop(number)
        event.started_s += now_s - event.time_s  # its time stands still while it is paused
        self._push(event, event.epoch + 1)
        return True

    def _begin(self, now_s: float) -> bool:
        if self._exhausted:
            return False
        began = time.perf_counter()
        params = self._policy.propose(self.records)
        self.propose_s.append(time.perf_counter() - began)
        if params is None:
            self._exhausted = True
            return False
        number = len(self.records)
        self.records.append(
            TrialRecord(number, params, {}, f"{number:016x}", "running", "", 1, (), now_s)
        )
        fate = np.random.default_rng([self._seed, number]).random(3)
        event = _Event(now_s, number, 0, now_s, self._table.curve(params))
        if fate[0] < self._conditions.slow_frac:
            event.pace = self._conditions.slowdown
        if fate[1] < self._conditions.failed_frac:
            event.last_epoch = 1 + int(fate[2] * self._table.num_epochs)
        self._push(event, 1)
        return True

    def _push(self, event: _Event, epoch: int) -> None:
        event.epoch = epoch
        event.time_s = event.started_s + event.pace * float(event.curve.times_s[epoch - 1])
        heapq.heappush(self._queue, event)

    def _take(self, event: _Event) -> tuple[TrialState, str] | None:
        """Report an epoch; how the trial ends or waits, or None when it goes on."""
        if event.epoch >= event.last_epoch:
            return "failed", "worker_lost"
        value = float(event.curve.values[event.epoch - 1])
        known = self.records[event.number]
        pace_s = float(event.curve.times_s[-1]) / self._table.num_epochs
        metrics = {self._table.metric: value, EPOCH_S: pace_s}
        entry = EpochRecord(event.epoch, metrics, event.time_s)
        record = replace(known, epochs=(*known.epochs, entry))
        self.records[event.number] = record
        if math.isfinite(value):
            self._note(event.time_s, self._table.regret(value))
        began = time.perf_counter()
        decision = health(record, self._table.metric, NO_STEPS)
        if not decision.stop and event.epoch < self._table.num_epochs:
            decision = self._policy.decide(self.records, record)
        self.decide_s += time.perf_counter() - began
        if decision.spared:
            entry = replace(entry, spared=decision.spared)
            self.records[event.number] = replace(known, epochs=(*known.epochs, entry))
        if decision.pause:
            return "paused", decision.reason
        if decision.stop:
            return ("failed" if decision.failed else "stopped"), decision.reason
        return ("finished", "completed") if event.epoch == self._table.num_epochs else None

    def _note(self, now_s: float, regret: float) -> None:
        if regret < self._best:
            self._best = regret
            self.fractions.append(now_s / self._budget_s)
            self.regrets.append(regret)
