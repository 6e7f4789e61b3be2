"""What a trial costs the driver as a search grows: a real search of trials that do nothing.

    python -m tests.benchmarks.many_trials [--trials N] [--sampler gp|random|tpe] [--no-tracking]

Real Ray (4 logical CPUs), the real Tuner with reused actors, a SQLite ledger, MLflow on a local
SQLite store unless it is turned off. The driver is killed shortly before the end; the search is
then resumed to its end, and once more with nothing left to do.
"""

import argparse
import cProfile
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

MANY, CPUS, LEFT = 10_000, 4, 20
WINDOWS = (500, 1000, 2000, 5000, 10_000)
WINDOW = 100
SPACE = """
name: many
recipe: digits
trial: {train.epochs: 2}
objectives:
  - {metric: val_top1, mode: max}
  - {metric: energy_mj, mode: min}
space:
  model.timesteps: {choice: [1, 2, 4, 8]}
  model.width: {choice: [32, 64, 96]}
  train.lr: {float: [1.0e-4, 1.0e-1], log: true}
  train.weight_decay: {float: [1.0e-4, 1.0e-1], log: true}
tracking: {required: false}
budget: {trials: 10000}
"""


class InstantTrial(tune.Trainable):
    """Reports epochs that take no time."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin at no epoch."""
        self._trial, self._number, self._epoch = config["trial"], config["number"], 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Serve the next trial."""
        self.setup(new_config)
        return True

    def save_checkpoint(self, _checkpoint_dir: str) -> dict[str, Any]:
        """Nothing is kept."""
        return {}

    def load_checkpoint(self, _checkpoint: dict[str, Any] | None) -> None:
        """Nothing was kept."""

    def step(self) -> dict[str, Any]:
        """An epoch's metrics."""
        self._epoch += 1
        rate = self._trial["train"]["lr"]
        return {
            "epoch": self._epoch,
            "val_top1": 50.0 + 10.0 * self._epoch - 100.0 * abs(rate - 0.01) + self._number % 7,
            "energy_mj": self._trial["model"]["width"] * self._trial["model"]["timesteps"] / 1e3,
            "train_loss": 1.0 / self._epoch,
            "layer_rates": json.dumps({"head_lif": 0.2}),
            "num_steps": 40,
            "done": self._epoch >= self._trial["train"]["epochs"],
        }


class Meter:
    """Counts trials that have ended, and says what they took, window by window.

    Args:
        runs: where the search lies.
        until: after so many trials the driver kills itself; None for never.
    """

    def __init__(self, runs: Path, until: int | None) -> None:
        self._runs = runs
        self._until = until
        self._ended = 0
        self.first_s: float | None = None
        self.profile: cProfile.Profile | None = None
        self.profile_path = Path()
        self._last = self._now()

    def trial_changed(self, record: Any) -> None:
        """Count a trial that has ended."""
        if self.first_s is None:
            self.first_s = time.monotonic()
            self._last = self._now()
        if not record.has_ended:
            return
        self._ended += 1
        if self._ended % WINDOW == 0:
            self._show()
        if self._until is not None and self._ended >= self._until:
            sys.stdout.flush()
            if self.profile is not None:
                self.profile.disable()
                self.profile.dump_stats(str(self.profile_path))
            os.kill(os.getpid(), signal.SIGKILL)

    def _show(self) -> None:
        now, before = self._now(), self._last
        self._last = now
        wall, whole, loop, writes = ((a - b) / WINDOW for a, b in zip(now, before, strict=True))
        sizes = {
            name: sum(p.stat().st_size for p in self._runs.glob(pattern)) / 2**20
            for name, pattern in (("ledger", "many/study.db*"), ("mlflow", "mlflow.db*"))
        }
        if self._ended in WINDOWS or self._ended % 1000 == 0 or self._ended <= 500:
            print(
                f"{self._ended:6,} trials: {1 / wall:5.1f} trials/s, "
                f"driver {1e3 * whole:5.1f} ms CPU a trial, its Tune thread {1e3 * loop:5.1f} ms, "
                f"{writes / wall:5.1f} tracked runs/s, RSS {_rss_mib():.0f} MiB, "
                f"ledger {sizes['ledger']:.0f} MiB, MLflow {sizes['mlflow']:.0f} MiB",
                flush=True,
            )

    def _now(self) -> tuple[float, float, float, float]:
        return time.monotonic(), time.process_time(), time.thread_time(), self._tracked()

    def _tracked(self) -> float:
        acked = self._runs / "many" / "spool" / "acked.json"
        events = self._runs / "many" / "spool" / "events.jsonl"
        try:
            share: float = json.loads(acked.read_text())["value"]["offset"] / events.stat().st_size
        except (OSError, ValueError, KeyError, ZeroDivisionError):
            return 0.0
        return share * self._ended


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(arguments: Sequence[str] = ()) -> None:
    """Print what a search of so many trials takes, and then its resumes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=MANY)
    parser.add_argument("--sampler", default="gp")
    parser.add_argument("--no-tracking", action="store_true")
    parser.add_argument("--profile", type=Path, help="where the driver's profile goes")
    parser.add_argument("--drive", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.drive:
        _drive(asked, *asked.drive)
        return
    import ray

    os.environ |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(Path(__file__).parents[2])}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        ray.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False)
        address = str(ray.get_runtime_context().gcs_address)
        runs = str(Path(name) / "runs")
        try:
            for what in ("search", "resume", "again"):
                print(f"{what}: {asked.trials:,} trials, {asked.sampler}", flush=True)
                command = [sys.executable, "-m", "tests.benchmarks.many_trials", *arguments]
                subprocess.run([*command, "--drive", what, runs, address], check=False)
        finally:
            ray.shutdown()


def _drive(asked: argparse.Namespace, what: str, runs: str, address: str) -> None:
    from cluster.connect import prepare_environment

    started = time.monotonic()
    prepare_environment()
    logging.disable(logging.WARNING)
    import search.runner
    from search.folder import SearchFolder
    from spaces import load_search_space

    if asked.no_tracking:
        _without_tracking()
    folder = SearchFolder(Path(runs), "many")
    folder.runs.mkdir(parents=True, exist_ok=True)
    meter = Meter(folder.runs, asked.trials - LEFT if what == "search" else None)
    if asked.profile and what == "search":
        meter.profile, meter.profile_path = cProfile.Profile(), asked.profile
        meter.profile.enable()
    if what == "search":
        path = folder.runs / "many.yaml"
        path.write_text(SPACE)
        overrides = (f"budget.trials={asked.trials}", f"sampler.name={asked.sampler}")
        spec = load_search_space(path, overrides)
        search.runner.start_search(spec, folder, SPACE, address, meter, _by_its_name())
    else:
        outcome = search.runner.resume_search(folder, address, meter, _by_its_name())
        first = (meter.first_s or time.monotonic()) - started
        print(
            f"{'first trial again' if meter.first_s else 'ended'} after {first:.1f} s, end after "
            f"{time.monotonic() - started:.1f} s, {time.process_time():.1f} s of CPU, "
            f"{len(outcome.records):,} trials, {outcome.unsent} events unsent, "
            f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB"
        )


def _by_its_name() -> Any:
    from tests.benchmarks import many_trials  # workers must find the class by this name

    return many_trials.InstantTrial


def _without_tracking() -> None:
    """Let the tracker keep nothing and send nothing."""
    from search.tracking import Tracker

    def nothing(*_told: Any) -> bool:
        return True

    for name in ("start", "_append"):
        setattr(Tracker, name, nothing)


if __name__ == "__main__":
    main(sys.argv[1:])
