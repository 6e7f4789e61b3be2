"""Runs a search's decisions: what next, go on or stop, what to remember. Knows nothing of Ray.

The adapters in `search/adapters.py` call it from Tune's loop, tests call it directly.
"""

import json
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from search.database import LedgerError
from search.folder import SearchFolder
from search.packing import OUT_OF_MEMORY_ADVICE, Shares
from search.propose import distributions
from search.pruning import Front
from search.records import MissingEpochError, Outcome, Pause, TrialRecord
from search.retries import (
    HOST_OUT_OF_MEMORY,
    INTERRUPTED,
    MISSING_EPOCH,
    OUT_OF_MEMORY,
    SHARE_TOO_SMALL,
    Loss,
    backoff_s,
    smaller_parts,
    used_up,
)
from search.rules import stopping_rule
from search.screening import Chooser, ScreenError
from search.stopping import Decision, health, promotion
from search.stored import Remover, StoredFile, stored_folder
from search.study import Ledger
from search.tracking import Tracker
from spaces.schema import SearchSpec
from trainables.files import BEST
from trainables.remote import StoredFolder

logger = logging.getLogger(__name__)

METRICS = (
    "epoch", "timesteps", "train_loss", "val_loss", "val_top1", "val_top5", "energy_mj", "sops_g",
    "firing_rate", "params_m", "images_per_s", "peak_memory_mib", "epoch_s",
)  # fmt: skip
USAGE = "system/"  # where MLflow looks for system metrics
WAIT: Final = "wait"


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
    """Holds a search while it runs: specification, ledger, tracker, sampler and stopping rule.

    Args:
        spec: the search.
        folder: where its trials' files lie.
        ledger: held by this process.
        tracker: started.
        watcher: told of every change.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        spec: SearchSpec,
        folder: SearchFolder,
        ledger: Ledger,
        tracker: Tracker,
        watcher: Watcher,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Derive rule and sampler, and queue what an earlier driver left unfinished."""
        self.spec = spec
        self.ledger = ledger
        self.rule = stopping_rule(spec)
        self.closing = False
        self.failure: LedgerError | ScreenError | None = None
        self.exhausted = False
        self._folder = folder
        self.store = stored_folder(spec, folder.name, ledger.search_id)
        self._remover = Remover(folder, self.store)
        self._tracker = tracker
        self._watcher = watcher
        self._clock = clock
        self._chooser = Chooser(spec, self.rule.rungs)
        self._unfinished = deque(r.number for r in ledger.records if r.state == "running")
        self._waiting: dict[int, float] = {}
        self._running: set[int] = set()
        self.shares = Shares(ledger.records)
        self._front = Front(spec.objectives)
        self._deadline_s = clock() + spec.budget.most_s - ledger.used_s(time.time())
        tracker.catch_up(ledger.records, partial(trial_files, folder, self.store))
        for record in ledger.records:
            if record.has_ended:
                self._prune(record)

    @property
    def ending(self) -> bool:
        """Whether no decision is taken any more: interrupted, or something has failed for good."""
        return self.closing or self.failure is not None or self.ledger.lost

    def next_assignment(self) -> Assignment | Literal["wait"] | None:
        """The next trial to start; WAIT when one may come later; None when there is none."""
        if self.ending:
            return None
        try:
            return self._next()
        except (LedgerError, ScreenError) as error:
            self._fail(error)
            return None

    def report(self, number: int, result: Mapping[str, Any], attempt: int | None = None) -> bool:
        """Take a trial's report; True when the attempt is to end.

        Args:
            number: the trial.
            result: what the trainable returned: an epoch's metrics, or `failure` and `message`.
            attempt: which attempt reports; an earlier one is ignored.
        """
        record = self.ledger.record(number)
        stale = attempt is not None and attempt != record.attempt
        if self.ending or stale or record.state != "running":
            return True
        try:
            return self._take(record, result)
        except LedgerError as error:
            self._fail(error)
            return True

    def lost(self, number: int, loss: Loss, attempt: int | None = None) -> None:
        """A trial's worker is gone: it starts again later from its checkpoint, or has failed."""
        record = self.ledger.record(number)
        stale = attempt is not None and attempt != record.attempt
        if self.ending or stale or record.state != "running":
            return
        try:
            if loss.reason == HOST_OUT_OF_MEMORY and self.shares.packing is not None:
                self._ran_out(record)
            else:
                self._lose(number, loss)
        except LedgerError as error:
            self._fail(error)

    def close(self, timeout_s: float) -> None:
        """Wait for what is done beside the decisions, but no longer than that."""
        self._remover.close(timeout_s)

    @property
    def out_of_time(self) -> bool:
        """Whether `budget.hours` are over, those of earlier drivers included."""
        return self._clock() >= self._deadline_s

    def _next(self) -> Assignment | Literal["wait"] | None:
        if self.out_of_time:
            self._stop_unstarted()
        if not self.shares.have_room(self._running):
            return WAIT
        number = self._due()
        if number is not None:
            return self._again(number)
        fresh = None if self.out_of_time or self.exhausted else self._fresh()
        if fresh is not None:
            return fresh
        if self._running or self._waiting:
            return WAIT
        return self._last()

    def _due(self) -> int | None:
        if self._unfinished:
            return self._unfinished.popleft()
        due = [n for n, at_s in self._waiting.items() if at_s <= self._clock()]
        if due:
            del self._waiting[due[0]]
            return due[0]
        return promotion(self.rule, self.ledger.records)

    def _last(self) -> Assignment | None:
        """A paused trial although nothing new may start; without any, none will ever go on."""
        number = promotion(self.rule, self.ledger.records, last=True)
        if number is not None:
            return self._again(number)
        self._stop_paused()
        return None

    def _stop_unstarted(self) -> None:
        for number in [*self._unfinished, *self._waiting]:
            self._end(number, Outcome("stopped", "budget"))
        self._unfinished.clear()
        self._waiting.clear()
        while (due := promotion(self.rule, self.ledger.records)) is not None:
            self._end(due, Outcome("stopped", "budget"))
        self._stop_paused()

    def _stop_paused(self) -> None:
        for record in self.ledger.records:
            if record.state == "paused":
                self._end(record.number, Outcome("stopped", record.reason))

    def _fresh(self) -> Assignment | None:
        records = self.ledger.records
        if len(records) >= self.spec.budget.trials:
            return None
        choice = self._chooser.choose(records)
        if choice is None:
            self.exhausted = True
            return None
        params = choice.params
        config = self.spec.trial_config(params)
        # What lies there is of a trial that the ledger has lost.
        shutil.rmtree(self._folder.trial(len(records)), ignore_errors=True)
        record = self.ledger.add(
            params,
            distributions(self.spec.search_space, params),
            config.model_dump(mode="json"),
            config.config_hash(),
            choice.screen,
        )
        self._tracker.trial_started(record)
        return self._assignment(record)

    def _again(self, number: int) -> Assignment:
        self.ledger.interrupt(number, INTERRUPTED.reason, charged=INTERRUPTED.charged)
        record = self.ledger.retry(number)
        self._tracker.trial_reopened(number, record.attempt, time.time())
        return self._assignment(record)

    def _assignment(self, record: TrialRecord) -> Assignment:
        self._running.add(record.number)
        self._watcher.trial_changed(record)
        config = {
            "number": record.number,
            "attempt": record.attempt,
            "known_epochs": len(record.epochs),
            "trial": dict(record.config),
            "folder": str(self._folder.trial(record.number)),
            "threads": int(self.spec.resources.cpus),
        }
        if self.store is not None:
            config["store"] = self.store.below(record.name).address
        return Assignment(record.number, config | self.shares.asked(record))

    def _take(self, record: TrialRecord, result: Mapping[str, Any]) -> bool:
        number = record.number
        if "failure" in result:
            logger.warning("trial %s failed: %s", record.name, result.get("message", ""))
            if result["failure"] == OUT_OF_MEMORY:
                self._ran_out(record)
            else:
                self._end(number, Outcome("failed", str(result["failure"])))
            return True
        metrics = {name: float(result[name]) for name in METRICS if name in result}
        epoch = int(metrics.pop("epoch"))
        rates = json.loads(result["layer_rates"]) if "layer_rates" in result else None
        done = bool(result.get("done"))
        try:
            seen = self.ledger.preview(number, epoch, metrics, rates)
        except MissingEpochError:
            self._lose(number, MISSING_EPOCH)
            return True
        if seen is None:  # known, so it was decided to go on
            if done:
                self._end(number, Outcome("finished", "completed"))
            return done
        decision, outcome = self._decide(seen, int(result.get("num_steps", 0)), done=done)
        host = str(result.get("hostname", ""))
        self.ledger.report(number, epoch, metrics, rates, outcome, decision.spared, host)
        record = self.ledger.record(number)
        # What it took of its machine is no result: MLflow shows it, the ledger does not keep it.
        usage = {k: float(v) for k, v in result.items() if k.startswith(USAGE)}
        self._tracker.trial_epoch(number, epoch, metrics | usage, record.epochs[-1].time_s)
        if isinstance(outcome, Pause):
            self._running.discard(number)
            self._tracker.trial_paused(record)
        if record.has_ended:
            self._ended(record)
        else:
            self._watcher.trial_changed(record)
        return outcome is not None

    def _decide(
        self, record: TrialRecord, num_steps: int, *, done: bool
    ) -> tuple[Decision, Outcome | Pause | None]:
        """What the rules say, and how the trial ends or waits with it, if it does."""
        decision = health(record, self.spec.stopping_metric, num_steps)
        if not decision.stop and done:
            return decision, self._outcome(record, Outcome("finished", "completed"))
        if not decision.stop and self.out_of_time:
            decision = Decision(stop=True, reason="budget")
        if not decision.stop:
            records = self.ledger.records
            records[record.number] = record
            decision = self.rule.decide(records, record)
        if decision.pause:
            return decision, Pause(decision.reason, self._violations(record))
        if not decision.stop:
            return decision, None
        state: Literal["failed", "stopped"] = "failed" if decision.failed else "stopped"
        return decision, self._outcome(record, Outcome(state, decision.reason))

    def _outcome(self, record: TrialRecord, outcome: Outcome) -> Outcome:
        return Outcome(outcome.state, outcome.reason, self._violations(record))

    def _violations(self, record: TrialRecord) -> dict[str, float]:
        constraints = self.spec.outcome_constraints if record.last else ()
        return {c.text: c.violation(record.last) for c in constraints}

    def _lose(self, number: int, loss: Loss) -> None:
        record = self.ledger.interrupt(number, loss.reason, charged=loss.charged)
        self._running.discard(number)
        if used_up(record.attempts, self.spec.stopping.max_retries):
            self._end(number, Outcome("failed", loss.reason))
            return
        pause_s = backoff_s(record.attempts)
        logger.warning("trial %s: %s; again in %g s", record.name, loss, pause_s)
        self._waiting[number] = self._clock() + pause_s
        self._watcher.trial_changed(record)

    def _ran_out(self, record: TrialRecord) -> None:
        """Try once with a larger share, then in smaller parts where that is allowed."""
        if self.shares.can_grow(record):
            # Not charged: it is the prediction that was wrong.
            record = self.ledger.interrupt(record.number, SHARE_TOO_SMALL, charged=False)
            self.shares.learn(self.ledger.records)
            self._running.discard(record.number)
            self._waiting[record.number] = self._clock()
            self._watcher.trial_changed(record)
        elif not self._fitted(record):
            logger.warning("trial %s ran out of memory: %s", record.name, OUT_OF_MEMORY_ADVICE)
            self._end(record.number, Outcome("failed", OUT_OF_MEMORY))

    def _fitted(self, record: TrialRecord) -> bool:
        """Whether a trial that does not fit into memory may try again in smaller parts."""
        may = self.spec.stopping.out_of_memory == "accumulate"
        config = smaller_parts(record) if may else None
        if config is None:
            return False
        tree = config.model_dump(mode="json")
        record = self.ledger.change(record.number, tree, config.config_hash(), OUT_OF_MEMORY)
        logger.warning("%s: again with train.accumulate=%d", record.name, config.train.accumulate)
        self._running.discard(record.number)
        self._waiting[record.number] = self._clock()
        self._tracker.trial_started(record)  # its configuration is told anew
        self._watcher.trial_changed(record)
        return True

    def _end(self, number: int, outcome: Outcome) -> None:
        outcome = self._outcome(self.ledger.record(number), outcome)
        self._ended(self.ledger.finish(number, outcome.state, outcome.reason, outcome.violations))

    def _ended(self, record: TrialRecord) -> None:
        self._running.discard(record.number)
        self._tracker.trial_ended(record, trial_files(self._folder, self.store, record))
        self._watcher.trial_changed(record)
        self._prune(record)

    def _prune(self, record: TrialRecord) -> None:
        for loser in self._front.ended(record):
            self._remover.remove(loser)

    def _fail(self, error: LedgerError | ScreenError) -> None:
        """Nothing can be remembered, or chosen, any more, so nothing is decided any more."""
        logger.error("%s", error)
        self.failure = error


def trial_files(
    folder: SearchFolder, store: StoredFolder | None, record: TrialRecord
) -> dict[str, str | Path | StoredFile]:
    """What the tracker keeps of a trial that has ended: last firing rates, best checkpoint."""
    files: dict[str, str | Path | StoredFile] = {}
    rates = record.extra.get("layer_rates")
    if rates:
        files["firing_rates.json"] = json.dumps(rates, indent=2)
    best = folder.trial(record.number) / BEST
    if store is not None and record.state == "finished":
        files[f"checkpoint/{BEST}"] = StoredFile(store.below(record.name), BEST)
    elif best.is_file() and record.state == "finished":
        files[f"checkpoint/{BEST}"] = best
    return files
