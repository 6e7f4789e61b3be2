"""Ray Tune's Searcher, TrialScheduler, Callback and Stopper as thin adapters over the Director.

Ray pickles its search algorithm now and then; what it may pickle here is a key, nothing else: the
ledger is the state.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from search.director import WAIT, Director
from search.retries import HANG, loss_of

_DIRECTORS: dict[str, Director] = {}
_SLOTS: dict[str, Callable[[], int]] = {}
_KEPT = 64  # ended trials that Tune still knows, for what it may yet do with the latest


# What Tune says of its own affairs, by who says it and how that begins.
_NO_NEWS = {
    # An attempt that was lost is a failed trial to Tune; ours goes on with the next attempt.
    "ray.tune.tune": "Trials did not complete",
    # Of a search that ends at once Tune writes its record while it still copies the first one. The
    # record is thrown away in any case: the ledger is the state.
    "ray.tune.execution.experiment_state": "Saving experiment state to storage",
}


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_NO_NEWS[record.name])


for _name in _NO_NEWS:
    logging.getLogger(_name).addFilter(_is_news)


def register(key: str, director: Director, slots: Callable[[], int]) -> None:
    """Let adapters with this key find in this process their director, and how many trials fit."""
    _DIRECTORS[key] = director
    _SLOTS[key] = slots


def unregister(key: str) -> None:
    """Forget a director once its Tuner has ended."""
    _DIRECTORS.pop(key, None)
    _SLOTS.pop(key, None)


def _report(key: str, trial: Trial, result: dict[str, Any]) -> bool:
    return _DIRECTORS[key].report(trial.config["number"], result, trial.config["attempt"])


def _error_text(trial: Trial) -> str:
    """What Tune has just written; its own reader looks where that is copied to later."""
    try:
        return Path(trial.error_file).read_text(errors="replace").rpartition("Failure #")[2]
    except (OSError, TypeError):
        return ""


def forget_ended(controller: Any) -> None:
    """Let Tune's controller drop most of the trials that have ended.

    It keeps them all with their configurations, walks through them several times a step, and writes
    them to its own record, which nobody reads.
    """
    trials: list[Trial] = controller._trials
    if len(trials) < 2 * _KEPT:
        return
    old = {
        trial
        for trial in trials[:-_KEPT]
        if trial.is_finished() and trial not in controller._trial_to_actor
    }
    trials[:] = [trial for trial in trials if trial not in old]
    for kept in (
        controller._live_trials,
        controller._stopped_trials,
        controller._failed_trials,
        controller._trials_to_cache,
    ):
        kept -= old
    for trial in old:
        controller._trial_metadata.pop(trial.trial_id, None)


class LedgerSearcher(Searcher):
    """Hands the director's assignments to Tune, as many at once as fit."""

    def __init__(self, key: str) -> None:
        """Remember the key only."""
        super().__init__()
        self._key = key
        self._live: set[str] = set()

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """True: the limit is kept here, for Tune's own is one number for good."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next assignment, None for later, or FINISHED."""
        if len(self._live) >= _SLOTS[self._key]():
            return None
        assignment = _DIRECTORS[self._key].next_assignment()
        if assignment == WAIT:
            return None
        if assignment is None:
            return Searcher.FINISHED
        self._live.add(trial_id)
        return assignment.config

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001
    ) -> None:
        """Count it no more; what it did the ledger learnt from the scheduler."""
        self._live.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resumed search opens the ledger."""


class LedgerScheduler(FIFOScheduler):
    """Asks the director after every report."""

    def __init__(self, key: str) -> None:
        """Remember the key only."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._key = key

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """STOP when the director says so, else CONTINUE."""
        stop = _report(self._key, trial, result)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Take the last report: Tune shows one that says `done` to nobody else."""
        _report(self._key, trial, result)
        forget_ended(tune_controller)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Nothing to decide: the director hears of it from the callback."""
        forget_ended(tune_controller)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """None: Tune starts what is pending by itself.

        A trial named here is given a worker that another one has just left, although its own is
        about to come up. That one is then killed for the next trial to wait for one of its own, and
        where trials are short every one costs a process that never does anything.
        """
        return None


class NoProgress(TrialProgressCallback):
    """Stands where Tune would put its own, which keeps every trial there ever was (50 KiB each)."""

    def on_trial_result(self, *_args: Any, **_info: Any) -> None:
        """Nothing is printed."""

    def on_trial_error(self, *_args: Any, **_info: Any) -> None:
        """Nothing is printed."""

    def on_trial_complete(self, *_args: Any, **_info: Any) -> None:
        """Nothing is printed."""


class LedgerCallback(Callback):
    """Tells the director of lost workers, and kills trials that are silent for too long."""

    def __init__(self, key: str, timeout_s: float | None) -> None:
        """Args: `timeout_s` is the longest silence between reports; None for no limit."""
        self._key = key
        self._timeout_s = timeout_s
        self._heard_s: dict[str, float] = {}
        self._hanging: set[str] = set()

    def on_step_begin(self, iteration: int, trials: list[Trial], **_info: Any) -> None:
        """Kill the worker of a hanging trial; Tune then reports it as any lost worker."""
        if self._timeout_s is None:
            return
        now = time.monotonic()
        for trial in trials:
            if trial.status != Trial.RUNNING:
                self._heard_s.pop(trial.trial_id, None)
            elif now - self._heard_s.setdefault(trial.trial_id, now) > self._timeout_s:
                self._heard_s.pop(trial.trial_id)
                self._hanging.add(trial.trial_id)
                actor = trial.temporary_state.ray_actor
                if actor is not None:
                    ray.kill(actor)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **_info: Any,
    ) -> None:
        """Note that the trial is alive."""
        self._heard_s[trial.trial_id] = time.monotonic()

    def on_trial_error(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        **_info: Any,
    ) -> None:
        """Say why the worker is gone; every attempt is a Tune trial of its own."""
        hung = trial.trial_id in self._hanging
        loss = HANG if hung else loss_of(_error_text(trial))
        _DIRECTORS[self._key].lost(trial.config["number"], loss, trial.config["attempt"])


class InterruptStopper(Stopper):
    """Ends the whole experiment once the director is closing."""

    def __init__(self, key: str) -> None:
        """Remember the key only."""
        self._key = key

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never a single trial: that is the scheduler's."""
        return False

    def stop_all(self) -> bool:
        """Whether to end."""
        return _DIRECTORS[self._key].ending
