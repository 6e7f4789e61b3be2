"""Plants bugs, one at a time, in a copy of the tree and expects the chaos tests to catch each.

    python tests/chaos/mutants.py [NAME ...]

A bug that no test catches ends this with 1, and so does a test that fails without any bug.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).parents[2]
COPIED = ("trainables", "spaces", "cluster", "search", "tests")
TEST_S = 900
FAILED, PASSED = 1, 0  # exit statuses of pytest


@dataclass(frozen=True)
class Bug:
    """A change of the source that a test must notice.

    Attributes:
        what: what goes wrong with it.
        file: where, below the root.
        old: text that is there exactly once.
        new: what replaces it.
        test: file below `tests/chaos`, with `::name` where one test is enough.
    """

    what: str
    file: str
    old: str
    new: str
    test: str


BUGS = {
    "fsync": Bug(
        "files are renamed into place before they are on the disk",
        "trainables/files.py",
        "            os.fsync(file.fileno())\n",
        "",
        "test_power_loss.py",
    ),
    "min-max": Bug(
        "minimised objectives are maximised in Optuna's book",
        "search/founding.py",
        '"min": StudyDirection.MINIMIZE',
        '"min": StudyDirection.MAXIMIZE',
        "test_oracle.py",
    ),
    "nan-best": Bug(
        "a trial without finite values may be the best one",
        "search/study.py",
        "return values if all(math.isfinite(v) for v in values) else None",
        "return values",
        "test_oracle.py",
    ),
    "log-twice": Bug(
        "a resumed driver makes the search a second run",
        "search/tracking_runs.py",
        "self._ids[_PARENT] = found or self._create",
        "self._ids[_PARENT] = self._create",
        "test_driver_kills.py",
    ),
    "late-stamps": Bug(
        "replayed points carry the time of the replay",
        "search/tracking_runs.py",
        "        time_ms = _milliseconds(event.time_s)\n        self._held",
        "        time_ms = _milliseconds(__import__('time').time())\n        self._held",
        "test_crash_everywhere.py",
    ),
    "lost-events": Bug(
        "what the ledger knows and no event tells stays untold",
        "search/director.py",
        "        tracker.catch_up(ledger.records, partial(trial_files, folder, self.store))\n",
        "",
        "test_crash_everywhere.py",
    ),
    "forgotten-rung": Bug(
        "the highest rung stops nobody",
        "search/stopping.py",
        "while epoch < full:",
        "while epoch * factor < full:",
        "test_crash_everywhere.py",
    ),
    "two-steps": Bug(
        "an epoch and the decision on it are two transactions",
        "search/director.py",
        "        self.ledger.report("
        "number, epoch, metrics, rates, outcome, decision.spared, host)\n",
        "        pause = outcome if isinstance(outcome, Pause) else None\n"
        "        self.ledger.report(number, epoch, metrics, rates, pause, decision.spared, host)\n"
        "        if isinstance(outcome, Outcome):\n"
        "            self.ledger.finish(\n"
        "                number, outcome.state, outcome.reason, outcome.violations\n"
        "            )\n",
        "test_crash_everywhere.py",
    ),
    "from-scratch": Bug(
        "a resumed trial throws its checkpoints away and starts again",
        "search/director.py",
        '"known_epochs": len(record.epochs)',
        '"known_epochs": -1',
        "test_crash_everywhere.py",
    ),
    "unfinished": Bug(
        "trials that a lost driver left running are not continued",
        "search/director.py",
        'deque(r.number for r in ledger.records if r.state == "running")',
        "deque[int]()",
        "test_crash_everywhere.py",
    ),
    "restless": Bug(
        "trials that wait at a rung are continued by the next driver",
        "search/director.py",
        'if r.state == "running")',
        "if not r.has_ended)",
        "test_crash_everywhere.py",
    ),
    "two-drivers": Bug(
        "the lease is given to whoever asks",
        "search/lease.py",
        "            if alive:\n                raise self._refusal(before)\n",
        "",
        "test_double_resume.py",
    ),
    "bit-flips": Bug(
        "a checkpoint's checksum is not looked at",
        "trainables/checkpoint.py",
        "if digest != _digest(tensors, text):",
        "if False:",
        "test_damage_everywhere.py",
    ),
    "unsealed": Bug(
        "altered values of the ledger are believed",
        "search/seal.py",
        "_MIDDLE or seal != _seal(place, value):",
        "_MIDDLE:",
        "test_guards.py",
    ),
    "unacknowledged": Bug(
        "events count as delivered before the store has them",
        "search/delivery.py",
        "if not chunk.events or self._deliver(chunk):\n"
        "                    self._spool.acknowledge(chunk)",
        "self._spool.acknowledge(chunk)\n                self._deliver(chunk)",
        "test_mlflow_faults.py",
    ),
    "left-running": Bug(
        "a signal leaves runs of unfinished trials open",
        "search/tracking_runs.py",
        '        if status == "KILLED":\n            self._kill_trials(time_ms)\n',
        "",
        "test_signals.py",
    ),
    "charged": Bug(
        "a killed worker costs no retry, for ever",
        "search/retries.py",
        'if raised else "worker_lost", charged=True)',
        'if raised else "worker_lost", charged=False)',
        "test_worker_kills.py",
    ),
}


def main(names: list[str]) -> int:
    """Try the named bugs, or all; the number of those that nothing caught is not 0: 1."""
    console = Console()
    bugs = {name: BUGS[name] for name in names or BUGS}
    tests = sorted({bug.test for bug in bugs.values()})
    with tempfile.TemporaryDirectory(prefix="spiketune-mutants-") as scratch:
        tree = _copy(Path(scratch))
        code, seconds, output = _run(tree, tests)
        if code != PASSED:
            console.print(output, markup=False)
            console.print(f"[red]without any bug the tests end with {code}")
            return 1
        console.print(f"without any bug: {len(tests)} files pass in {seconds:.0f} s")
        survivors = [name for name, bug in bugs.items() if not _is_caught(tree, name, bug, console)]
    if survivors:
        console.print(f"[red]not caught: {', '.join(survivors)}")
    else:
        console.print(f"[green]{len(bugs)} of {len(bugs)} planted bugs are caught")
    return int(bool(survivors))


def _copy(scratch: Path) -> Path:
    tree = scratch / "tree"
    for name in COPIED:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def _run(tree: Path, tests: list[str]) -> tuple[int, float, str]:
    started = time.monotonic()
    paths = [f"tests/chaos/{test}" for test in tests]
    options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *paths],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TEST_S * len(tests),
        check=False,
    )
    return done.returncode, time.monotonic() - started, done.stdout


def _is_caught(tree: Path, name: str, bug: Bug, console: Console) -> bool:
    path = tree / bug.file
    source = path.read_text()
    if source.count(bug.old) != 1:
        console.print(f"[red]{name}: {bug.file} must hold once: {bug.old!r}", markup=True)
        return False
    path.write_text(source.replace(bug.old, bug.new))
    try:
        code, seconds, output = _run(tree, [bug.test])
    finally:
        path.write_text(source)
    is_caught = code == FAILED
    verdict = "caught" if is_caught else f"NOT CAUGHT (pytest ended with {code})"
    console.print(f"{name}: {bug.what}: {verdict} by {bug.test} in {seconds:.0f} s", markup=False)
    if code not in (FAILED, PASSED):
        console.print(output[-3000:], markup=False)
    return is_caught


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
