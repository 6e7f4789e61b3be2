"""A search of instant trials that counts what it does for each of them; run as a program.

    python counted_search.py FOLDER TRIALS

Prints a JSON line a trial in the order of their ends, `[name, count]` pairs since the start.
"""

import gc
import json
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks import many_trials

COUNTS: Counter[str] = Counter()
LIVE: weakref.WeakSet[Any] = weakref.WeakSet()  # what Tune knows of trials
SETTINGS = ("sampler.name=random", "resources.cpus=0.5", "resources.concurrent=2")


class Printer:
    """Prints the counts whenever a trial has ended."""

    def trial_changed(self, record: Any) -> None:
        if record.has_ended:
            if record.number % 100 == 0:
                gc.collect()
            COUNTS["trials that Tune keeps"] = len(LIVE)
            sys.stdout.write(json.dumps(COUNTS) + "\n")


def counted(owner: Any, name: str, what: str, size: Callable[..., int] = lambda *_: 1) -> None:
    """Count the calls of a method, or what `size` finds in their arguments."""
    plain = getattr(owner, name)

    def counting(*arguments: Any, **options: Any) -> Any:
        COUNTS[what] += size(*arguments)
        return plain(*arguments, **options)

    setattr(owner, name, counting)


def main(folder: Path, trials: int) -> None:
    from cluster.connect import prepare_environment

    prepare_environment()
    from ray.air.execution._internal import RayActorManager
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    from search import runner, study, tracking_runs
    from search.folder import SearchFolder
    from search.tracking_store import MlflowStore
    from spaces import load_search_space

    def statement(connection: Any, *_rest: Any) -> None:
        COUNTS["statements"] += str(connection.engine.url).endswith("study.db")

    plain = Trial.__init__

    def born(trial: Any, *arguments: Any, **options: Any) -> None:
        plain(trial, *arguments, **options)
        LIVE.add(trial)

    # A wrapper takes anything, and Tune has no hook for a trial's birth.
    Trial.__init__ = born  # type: ignore[method-assign, assignment]
    event.listen(Engine, "before_cursor_execute", statement)
    counted(RayActorManager, "add_actor", "workers asked for")
    counted(TuneController, "save_to_dir", "snapshots")
    counted(TuneController, "is_finished", "trials Tune walks through", lambda c: len(c._trials))
    counted(TuneController, "is_finished", "walks")
    counted(MlflowStore, "find_runs", "searches in the store")
    for module, name in ((tracking_runs, "append_checked"), (tracking_runs, "write_checked")):
        counted(module, name, "bytes of ids", lambda _path, value: len(json.dumps(value)))
    counted(study, "load", "ledger reads")
    path = folder / "many.yaml"
    path.write_text(many_trials.SPACE)
    spec = load_search_space(path, (f"budget.trials={trials}", *SETTINGS))
    where = SearchFolder(folder / "runs", "many")
    printer, trial = Printer(), many_trials.InstantTrial
    outcome = runner.start_search(spec, where, many_trials.SPACE, None, printer, trial)
    sys.stdout.write(json.dumps({**COUNTS, "unsent": outcome.unsent}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]))
