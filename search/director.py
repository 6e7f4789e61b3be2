"""Runs a search's decisions: what next, go on or stop, what to remember. Knows nothing of Ray.

The adapters in `search/adapters.py` call it from Tune's loop, tests call it directly.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from search.folder import SearchFolder
from search.propose import Proposer, distributions, make_proposer
from search.records import TrialRecord
from search.stopping import Asha, Decision, NeverStop, StoppingRule, health
from search.study import Ledger
from search.tracking import Tracker
from spaces.schema import SearchSpec
from trainables.checkpoint import BEST

logger = logging.getLogger(__name__)

METRICS = (
    "epoch", "train_loss", "val_loss", "val_top1", "val_top5", "energy_mj", "sops_g",
    "firing_rate", "params_m", "images_per_s", "peak_memory_mib", "epoch_s",
)  # fmt: skip
SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True)
class Assignment:
    """A trial to run: its number and everything a worker needs."""

    number: int
    config: dict[str, Any]


class Watcher(Protocol):
    """Someone who is told when something has changed (the progress display)."""

    def trial_changed(self, record: TrialRecord) -> None:
        """A trial was started, reported or ended."""


class Director:
    """Holds a search while it runs: specification, ledger, tracker, sampler and stopping rule."""

    def __init__(
        self,
        spec: SearchSpec,
        folder: SearchFolder,
        ledger: Ledger,
        tracker: Tracker,
        watcher: Watcher,
    ) -> None:
        """Derive rule and sampler, and queue what an earlier driver left unfinished."""
        self.spec = spec
        self.ledger = ledger
        self.rule = stopping_rule(spec)
        self.closing = False
        self._folder = folder
        self._tracker = tracker
        self._watcher = watcher
        self._proposer: Proposer = make_proposer(spec, rungs_of(self.rule))
        self._unfinished = deque(r.number for r in ledger.records if r.state == "running")
        self._deadline_s = (
            time.monotonic() + spec.budget.hours * SECONDS_AN_HOUR
            if spec.budget.hours is not None
            else None
        )
        self.exhausted = False

    def next_assignment(self) -> Assignment | None:
        """The next trial to start, or None when the budget or the space is used up."""
        if self._unfinished:
            return self._again(self._unfinished.popleft())
        records = self.ledger.records
        if self.closing or self.out_of_time or len(records) >= self.spec.budget.trials:
            return None
        params = self._proposer.propose(records)
        if params is None:
            self.exhausted = True
            return None
        config = self.spec.trial_config(params)
        record = self.ledger.add(
            params,
            distributions(self.spec.search_space, params),
            config.model_dump(mode="json"),
            config.config_hash(),
        )
        self._tracker.trial_started(
            record.number,
            record.params,
            {"spiketune.config_hash": record.config_hash, "spiketune.state": "running"},
            record.config,
            record.started_s,
        )
        self._watcher.trial_changed(record)
        return self._assignment(record)

    def report(self, number: int, result: Mapping[str, Any]) -> bool:
        """Take a trial's report; True when the trial is to end.

        Args:
            number: the trial.
            result: what the trainable returned: an epoch's metrics, or `failure` and `message`.
        """
        if self.closing:
            return True
        record = self.ledger.record(number)
        if record.state != "running":
            return True
        if "failure" in result:
            logger.warning("trial %s failed: %s", record.name, result.get("message", ""))
            self._end(number, "failed", str(result["failure"]))
            return True
        metrics = {name: float(result[name]) for name in METRICS if name in result}
        epoch = int(metrics.pop("epoch"))
        rates = json.loads(result["layer_rates"]) if "layer_rates" in result else None
        if self.ledger.report(number, epoch, metrics, rates):
            known = self.ledger.record(number)
            self._tracker.trial_epoch(number, epoch, metrics, known.epochs[-1].time_s)
            self._watcher.trial_changed(known)
        return self._decide(number, int(result.get("num_steps", 0)), done=bool(result.get("done")))

    def lost(self, number: int) -> None:
        """A trial's worker is gone and the trial starts again from its last checkpoint."""
        if self.ledger.record(number).state != "running":
            return
        record = self.ledger.retry(number)
        self._tracker.trial_reopened(number, record.attempt, time.time())
        self._watcher.trial_changed(record)

    def failed(self, number: int, reason: str) -> None:
        """A trial has failed for good."""
        if not self.closing and self.ledger.record(number).state == "running":
            self._end(number, "failed", reason)

    @property
    def out_of_time(self) -> bool:
        """Whether `budget.hours` are over."""
        return self._deadline_s is not None and time.monotonic() >= self._deadline_s

    def _again(self, number: int) -> Assignment:
        record = self.ledger.retry(number)
        self._tracker.trial_reopened(number, record.attempt, time.time())
        self._watcher.trial_changed(record)
        return self._assignment(record)

    def _assignment(self, record: TrialRecord) -> Assignment:
        config = {
            "number": record.number,
            "trial": dict(record.config),
            "folder": str(self._folder.trial(record.number)),
            "threads": int(self.spec.resources.cpus),
        }
        return Assignment(record.number, config)

    def _decide(self, number: int, num_steps: int, *, done: bool) -> bool:
        record = self.ledger.record(number)
        decision = health(record, self.spec.stopping_metric, num_steps)
        if decision.stop:
            self._end(number, "failed" if decision.failed else "stopped", decision.reason)
        elif done:
            self._end(number, "finished", "completed")
        else:
            decision = (
                Decision(stop=True, reason="budget")
                if self.out_of_time
                else self.rule.decide(self.ledger.records, record)
            )
            if not decision.stop:
                return False
            self._end(number, "stopped", decision.reason)
        return True

    def _end(self, number: int, state: Any, reason: str) -> None:
        last = self.ledger.record(number).last
        constraints = self.spec.outcome_constraints if last else ()
        violations = {c.text: c.violation(last) for c in constraints}
        record = self.ledger.finish(number, state, reason, violations)
        self._tracker.trial_ended(
            number, record.state, record.reason, record.ended_s or time.time(), self._files(record)
        )
        self._watcher.trial_changed(record)

    def _files(self, record: TrialRecord) -> dict[str, Any]:
        files: dict[str, Any] = {}
        rates = record.extra.get("layer_rates")
        if rates:
            files["firing_rates.json"] = json.dumps(rates, indent=2)
        best = self._folder.trial(record.number) / BEST
        if best.is_file() and record.state == "finished":
            files[f"checkpoint/{BEST}"] = best
        return files


def stopping_rule(spec: SearchSpec) -> StoppingRule:
    """Build the rule a search names."""
    if spec.stopping.name == "none":
        return NeverStop()
    return Asha(
        metric=spec.stopping_metric,
        maximise=spec.stopping_mode == "max",
        grace_epochs=spec.stopping.grace_epochs,
        reduction_factor=spec.stopping.reduction_factor,
        max_epochs=spec.base_config.train.total_epochs,
    )


def rungs_of(rule: StoppingRule) -> tuple[int, ...]:
    """Epochs at which a rule compares trials; none for a rule that never stops."""
    return rule.rungs if isinstance(rule, Asha) else ()
