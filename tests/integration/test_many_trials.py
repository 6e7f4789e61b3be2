"""What the driver does for a trial does not grow with their number: real Ray, real stores."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import counted_search
import pytest
from tiny_search import environment

pytestmark = pytest.mark.slow

TRIALS, EARLY, LATE, WINDOW = 360, 20, 290, 60
PER_TRIAL = 18  # statements: three transactions of two epochs and one proposal


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> list[dict[str, int]]:
    folder = tmp_path_factory.mktemp("many")
    (folder / "runs").mkdir()
    shutil.copy(empty_store, folder / "runs" / "mlflow.db")
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(map(str, (root, Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, counted_search.__file__, str(folder), str(TRIALS)],
        env={**environment(folder), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, int]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == TRIALS + 1
    return found


def grown(counts: list[dict[str, int]], name: str, at: int) -> int:
    """How much a count grew over a window of trials."""
    return counts[at + WINDOW].get(name, 0) - counts[at].get(name, 0)


def test_as_many_statements_a_trial_late_as_early(counts: list[dict[str, int]]) -> None:
    early, late = (grown(counts, "statements", at) / WINDOW for at in (EARLY, LATE))
    assert late <= early + 1
    assert late <= PER_TRIAL


def test_workers_are_asked_for_when_there_are_none_only(counts: list[dict[str, int]]) -> None:
    assert counts[-1]["workers asked for"] <= 12


def test_tune_walks_through_no_more_trials_in_the_end(counts: list[dict[str, int]]) -> None:
    walked, walks = (grown(counts, f, LATE) for f in ("trials Tune walks through", "walks"))
    assert 0 < walked / walks < 150


def test_tune_keeps_no_more_trials_in_the_end(counts: list[dict[str, int]]) -> None:
    assert 0 < counts[-2]["trials that Tune keeps"] < 250


def test_tune_writes_its_record_at_the_start_and_the_end_only(
    counts: list[dict[str, int]],
) -> None:
    assert counts[-2]["snapshots"] == 1
    assert counts[-1]["snapshots"] == 2


def test_the_store_is_searched_for_the_searchs_own_run_only(counts: list[dict[str, int]]) -> None:
    assert counts[-1]["searches in the store"] <= 2
    assert counts[-1]["bytes of ids"] < 200 * TRIALS


def test_a_new_ledger_is_read_once(counts: list[dict[str, int]]) -> None:
    assert counts[-1]["ledger reads"] == 1
