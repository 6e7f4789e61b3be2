"""Trials that hang, raise and die: bounded attempts, each with its reason."""

import os
import subprocess
import sys
from pathlib import Path

from fake_trial import misbehave
from tiny_search import environment, write_space

from search.folder import SearchFolder
from search.recorded import open_ledger
from search.records import TrialRecord

FAKE = Path(__file__).with_name("fake_trial.py")


def fake_search(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(FAKE.parent)]))
    return subprocess.run(
        [sys.executable, str(FAKE), "search", "runs", "tiny", str(write_space(folder)), *overrides],
        cwd=folder,
        env={**environment(folder), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def records_of(folder: Path) -> list[TrialRecord]:
    ledger = open_ledger(SearchFolder(folder / "runs", "tiny"))[1]
    ledger.close()
    return ledger.records


def test_lost_workers_are_retried_and_failed_with_their_reasons(tmp_path: Path) -> None:
    for number, what in enumerate((["exit"], ["hang"], ["raise", "raise", "exit"])):
        misbehave(tmp_path / "runs", "tiny", number, *what)
    done = fake_search(
        tmp_path,
        "stopping={name: none, trial_timeout_s: 15}",
        "budget.trials=4",
        "tracking.required=false",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "did not complete" not in done.stderr, "Tune's view of an attempt"
    records = records_of(tmp_path)
    assert [r.state for r in records] == ["finished", "finished", "failed", "finished"]
    reasons = [[a.reason for a in r.attempts] for r in records]
    assert reasons == [
        ["worker_lost", ""],
        ["hang", ""],
        ["error OSError", "error OSError", "worker_lost"],
        [""],
    ]
    assert records[2].reason == "worker_lost"
    assert all([e.epoch for e in r.epochs] == [1, 2, 3, 4] for r in records if r.state != "failed")
