"""What a trial costs besides its training: from its proposal to its first step, and every epoch.

A real search on digits with Ray, ledger and MLflow; `python -m tests.benchmarks.trial_overhead`.
"""

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from search.folder import SearchFolder
from search.records import TrialRecord
from search.runner import start_search
from spaces import load_search_space
from trainables import trial
from trainables.optimization import Optimization

ROOT = Path(__file__).parents[2]
LOG = "times.jsonl"


class TimedTrial(trial.SpikingTrial):
    """A trial that notes when its steps began and ended, and its first optimisation step."""

    def step(self) -> dict[str, Any]:
        """An epoch, as the search's own trials take it."""
        times = {"pid": os.getpid(), "begun_s": time.time()}
        if self._epochs is None:
            _note_first_step(times)
        result = super().step()
        times |= {"ended_s": time.time(), "epoch_s": result["epoch_s"]}
        with (self._folder / LOG).open("a") as log:
            log.write(json.dumps(times) + "\n")
        return result


def _note_first_step(times: dict[str, float]) -> None:
    """Let the next optimisation step of this process write down when it begins."""
    plain = Optimization.step

    def noting(
        self: Optimization, inputs: torch.Tensor, target: torch.Tensor, share: float
    ) -> torch.Tensor:
        times["first_step_s"] = time.time()
        Optimization.step = plain  # type: ignore[method-assign]  # back to what it was
        return plain(self, inputs, target, share)

    Optimization.step = noting  # type: ignore[method-assign]  # nobody else tells of it


class _Quiet:
    def trial_changed(self, record: TrialRecord) -> None:
        """Show nothing."""


def main(arguments: Sequence[str] = ()) -> None:
    """Print medians and spreads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--concurrent", type=int, default=1)
    parser.add_argument("--space", type=Path, default=ROOT / "spaces" / "digits.yaml")
    parser.add_argument("--set", action="append", default=[], help="overrides, key=value")
    asked = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    os.environ["PYTHONPATH"] = str(ROOT)  # workers find this module
    overrides = (
        f"trial.train.epochs={asked.epochs}",
        "stopping.name=none",
        f"budget.trials={asked.trials}",
        f"resources.concurrent={asked.concurrent}",
        *asked.set,
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = SearchFolder(Path(name), "overhead")
        spec = load_search_space(asked.space, overrides)
        outcome = start_search(spec, folder, asked.space.read_text(), None, _Quiet(), TimedTrial)
        logs = {
            record.number: [
                json.loads(line)
                for line in (folder.trial(record.number) / LOG).read_text().splitlines()
            ]
            for record in outcome.records
        }
        show(outcome.records, logs)


def show(records: Sequence[TrialRecord], logs: Mapping[int, Sequence[dict[str, float]]]) -> None:
    """What the notes of all trials say."""
    last: dict[float, float] = {}  # end of a worker's last epoch
    waits: dict[str, list[float]] = {"a new worker": [], "a reused worker": []}
    inside, between, idle = [], [], []
    for record in sorted(records, key=lambda record: record.started_s):
        epochs = logs[record.number]
        first = epochs[0]
        kind = "a reused worker" if first["pid"] in last else "a new worker"
        if first["pid"] in last:
            idle.append(first["first_step_s"] - last[first["pid"]])
        last[first["pid"]] = epochs[-1]["ended_s"]
        waits[kind].append(first["first_step_s"] - record.started_s)
        inside += [e["ended_s"] - e["begun_s"] - e["epoch_s"] for e in epochs[1:]]
        between += [b["begun_s"] - a["ended_s"] for a, b in pairwise(epochs)]
    for kind, taken in waits.items():
        if taken:
            print(f"from proposal to first step on {kind}: {spread(taken)}")
    print(f"from a trial's last epoch to the first step of its worker's next: {spread(idle)}")
    print(f"an epoch besides training and evaluation, in the worker: {spread(inside)}")
    print(f"from an epoch's report to the next epoch: {spread(between)}")
    total = [a + b for a, b in zip(inside, between, strict=True)]
    share = 100 * statistics.median(total) / 5.0
    print(f"together {spread(total)}: {share:.2f} % of an epoch of 5 s")


def spread(seconds: Sequence[float]) -> str:
    ordered = sorted(1e3 * s for s in seconds)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return f"{statistics.median(ordered):.1f} ms ({low:.1f} to {high:.1f}, {len(ordered)} times)"


if __name__ == "__main__":
    import sys

    from tests.benchmarks import trial_overhead  # workers must find the class by this name

    trial_overhead.main(sys.argv[1:])
