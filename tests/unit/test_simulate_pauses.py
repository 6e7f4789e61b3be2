"""Simulated searches whose trials wait at rungs: the clock, faults, the end, the command."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_simulate import EPOCHS, Scripted, arrays, row, written

from search.baselines import make_policy
from search.cli import main
from search.curves import CurveTable, load_tables
from search.promotion import AshaPromotion
from search.records import TrialRecord
from search.simulate import Conditions, Run, simulate
from search.stopping import Course

RUNGS = (1, 3, 9)


@pytest.fixture
def table(tmp_path: Path) -> CurveTable:
    (only,) = load_tables(written(tmp_path, arrays()))
    return only


class Waiting(AshaPromotion):
    """Proposes so many rows of the table in turn."""

    def __init__(self, table: CurveTable, num: int = 10**6) -> None:
        super().__init__(Course(table.metric, table.mode, EPOCHS, 1), recent=0)
        self.ends: list[TrialRecord] = []
        self._table = table
        self._num = num

    def propose(self, records: Sequence[TrialRecord]) -> dict[str, Any] | None:
        return row(self._table, len(records)) if len(records) < self._num else None

    def ended(self, record: TrialRecord) -> None:
        self.ends.append(record)


def history(run: Run) -> list[Any]:
    return [(r.state, r.reason, [e.time_s for e in r.epochs]) for r in run.records]


@pytest.mark.parametrize("sampler", ["random", "gp"])
@pytest.mark.parametrize("workers", [1, 8])
def test_a_search_is_the_same_again(table: CurveTable, sampler: str, workers: int) -> None:
    runs = [
        simulate(
            table,
            make_policy(table, sampler, "asha_promotion", seed, check_share=0.02),
            Conditions(workers=workers, trainings=3.0),
            seed,
        )
        for seed in (3, 3, 4)
    ]
    assert history(runs[0]) == history(runs[1])
    assert history(runs[0]) != history(runs[2])


def test_one_worker_does_what_the_paper_says(table: CurveTable) -> None:
    """Algorithm 2 with `get_job` written out, from the values of the table alone."""
    run = simulate(table, Waiting(table), Conditions(workers=1, trainings=12.0), 0)
    values = [table.curve(row(table, n)).values for n in range(len(run.records))]
    at: dict[int, list[int]] = {0: [], **{rung: [] for rung in RUNGS}}
    promoted: dict[int, set[int]] = {rung: set() for rung in RUNGS}
    jobs: list[tuple[int, int]] = []  # trial, epoch at which it stops
    while not jobs or jobs[-1][0] < len(run.records):
        job = (len(at[0]), RUNGS[0])
        for rung, following in reversed([*itertools.pairwise((*RUNGS, EPOCHS))]):
            best = sorted(at[rung], key=lambda n: -values[n][rung - 1])[: len(at[rung]) // 3]
            waiting = [n for n in best if n not in promoted[rung]]
            if waiting:
                promoted[rung].add(waiting[0])
                job = (waiting[0], following)
                break
        else:
            at[0].append(job[0])
        jobs.append(job)
        if job[1] in at:
            at[job[1]].append(job[0])
    reported = sorted((e.time_s, r.number, e.epoch) for r in run.records for e in r.epochs)
    found = [(n, e) for _, n, e in reported if e in (*RUNGS, EPOCHS)]
    assert len(found) > 40
    assert EPOCHS in {epoch for _, epoch in found}
    assert found == jobs[: len(found)]


def test_time_stands_still_for_a_trial_that_waits(table: CurveTable) -> None:
    conditions = Conditions(workers=3, trainings=6.0)
    run = simulate(table, Waiting(table), conditions, 0)
    gaps = 0
    for record in run.records:
        times_s = table.curve(dict(record.params)).times_s
        seen_s = [record.started_s, *(e.time_s for e in record.epochs)]
        extra_s = np.diff(seen_s) - np.diff([0.0, *times_s[: len(record.epochs)]])
        for epoch, waited_s in enumerate(extra_s):
            assert waited_s == pytest.approx(0.0, abs=1e-6) or (waited_s > 0 and epoch in RUNGS)
            gaps += waited_s > 1e-6
    assert gaps > 0
    # Of as many trials as there are workers an epoch is under way, at any time.
    busy_s = sum(
        float(table.curve(dict(r.params)).times_s[len(r.epochs) - 1])
        for r in run.records
        if r.epochs
    )
    budget_s = conditions.trainings * table.full_training_s
    longest_s = max(float(c[-1]) / EPOCHS for c in table.times_s)
    assert 0.0 <= 3 * budget_s - busy_s <= 3 * longest_s
    assert sum(r.state == "running" for r in run.records) == 3
    assert any(r.state == "paused" for r in run.records)


def test_when_nothing_new_may_start_what_waits_goes_on_or_ends(table: CurveTable) -> None:
    policy = Waiting(table, 30)
    run = simulate(table, policy, Conditions(workers=4, trainings=50.0), 0)
    assert len(run.records) == 30
    assert {r.state for r in run.records} == {"finished", "stopped"}
    assert len(policy.ends) == 30
    for record in run.records:
        if record.state == "stopped":
            assert record.reason == f"asha@{len(record.epochs)}"
    reached = [sum(len(r.epochs) >= epoch for r in run.records) for epoch in (*RUNGS, EPOCHS)]
    assert reached[0] == 30
    assert reached[1] >= 10
    few = simulate(table, Waiting(table, 2), Conditions(workers=4, trainings=50.0), 0)
    assert sorted((r.state, len(r.epochs)) for r in few.records) == [
        ("finished", EPOCHS),
        ("stopped", 1),
    ]


def test_faults_find_promoted_trials_too(table: CurveTable) -> None:
    conditions = Conditions(workers=20, failed_frac=0.4, slow_frac=0.3)
    runs = [simulate(table, Waiting(table), conditions, 1) for _ in range(2)]
    assert history(runs[0]) == history(runs[1])
    lost = [r for r in runs[0].records if r.reason == "worker_lost"]
    assert {r.state for r in lost} == {"failed"}
    assert any(len(r.epochs) >= RUNGS[0] for r in lost), "after it had waited"
    still = simulate(table, Waiting(table), replace(conditions, failed_frac=0.0), 1)
    fast = simulate(table, Waiting(table), Conditions(workers=20), 1)
    epochs = [sum(len(r.epochs) for r in run.records) for run in (still, fast)]
    assert epochs[0] < 0.95 * epochs[1]


def test_whoever_pauses_nobody_is_not_asked(table: CurveTable) -> None:
    run = simulate(table, Scripted(table, stop_at=6), Conditions(), 0)
    assert not any(r.state == "paused" for r in run.records)


def test_the_command_takes_it(tmp_path: Path) -> None:
    path = written(tmp_path, arrays())
    asked = ["simulate", str(path), "--sampler", "random", "--stopping", "asha_promotion"]
    done = CliRunner().invoke(main, [*asked, "--seeds", "2", "--format", "json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["method"] == "random + asha_promotion"
