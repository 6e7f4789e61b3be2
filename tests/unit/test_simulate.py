"""Simulated searches: tables, the clock, faults, the command."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from data_sets import SHARED

from search.baselines import make_policy
from search.cli import main
from search.curves import CurveTable, load_tables
from search.records import TrialRecord
from search.regret import volume
from search.simulate import Conditions, simulate
from search.stopping import GO_ON, Decision
from trainables.errors import InputError

ROWS, EPOCHS = 60, 12


def arrays() -> dict[str, Any]:
    """Accuracy rises with the epochs to a height that depends on the rate and the width."""
    rng = np.random.default_rng(0)
    rate = np.exp(rng.uniform(np.log(1e-4), np.log(1e-1), ROWS))
    width = rng.integers(8, 65, ROWS)
    height = 90.0 - 5.0 * (np.log10(rate) + 2.0) ** 2 + width / 16
    share = 1.0 - np.exp(-np.arange(1, EPOCHS + 1) / 4.0)
    accuracy = height[:, None] * share
    seconds = width[:, None] / 16.0 * np.arange(1, EPOCHS + 1)
    return {
        "tasks": np.array(["made"]),
        "metrics": np.array(["time_s", "val_accuracy"]),
        "hp_names": np.array(["rate", "width"]),
        "hp": np.column_stack([rate, width]),
        "y": np.stack([seconds, accuracy], axis=-1)[None],
    }


def losses() -> dict[str, Any]:
    """The other layout; a tenth of the rows diverges after three epochs."""
    made = arrays()
    valid = 100.0 - made["y"][0, ..., 1]
    valid[::10, 3:] = math.nan
    return {"hp_names": made["hp_names"], "hp": made["hp"], "valid": valid}


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "made.npz"
    np.savez(path, **content)
    return path


@pytest.fixture
def table(tmp_path: Path) -> CurveTable:
    (only,) = load_tables(written(tmp_path, arrays()))
    return only


class Scripted:
    """Proposes rows of the table in turn and stops what it is told to."""

    def __init__(self, table: CurveTable, stop_at: int | None = None) -> None:
        self.ends: list[TrialRecord] = []
        self._table = table
        self._stop_at = stop_at

    def propose(self, records: Sequence[TrialRecord]) -> dict[str, Any]:
        return row(self._table, len(records))

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:
        assert records[current.number] is current
        stop = len(current.epochs) == self._stop_at
        return Decision(stop=True, reason="told") if stop else GO_ON

    def ended(self, record: TrialRecord) -> None:
        self.ends.append(record)


def row(table: CurveTable, index: int) -> dict[str, Any]:
    rate, width = table.hp[index % ROWS]
    return {"rate": float(rate), "width": int(width)}


def test_a_table_says_its_space_and_the_curve_of_its_own_rows(table: CurveTable) -> None:
    space = table.space()
    assert space.domains["rate"].model_dump()["log"]
    assert space.domains["width"].model_dump()["bounds"] == (
        table.hp[:, 1].min(),
        table.hp[:, 1].max(),
    )
    for index in range(0, ROWS, 7):
        curve = table.curve(row(table, index))
        np.testing.assert_allclose(curve.values, table.values[index], rtol=1e-4)
        np.testing.assert_allclose(curve.times_s, table.times_s[index], rtol=1e-4)
    point = space.sample(np.random.default_rng(1))
    assert not space.problems(point)


def test_regret_is_0_at_the_best_and_1_at_the_median(table: CurveTable) -> None:
    best = table.values.max(axis=1)
    assert table.regret(best.max()) == pytest.approx(0.0)
    assert table.regret(float(np.median(best))) == pytest.approx(1.0)


def test_losses_are_minimised_and_divergence_lasts(tmp_path: Path) -> None:
    (table,) = load_tables(written(tmp_path, losses()))
    assert table.regret(np.nanmin(table.values)) == pytest.approx(0.0)
    curve = table.curve(row(table, 10))
    assert np.isfinite(curve.values[:3]).all()
    assert np.isnan(curve.values[3:]).all()
    run = simulate(table, Scripted(table), Conditions(workers=2), seed=0)
    failed = [r for r in run.records if r.state == "failed"]
    assert failed
    assert {r.reason for r in failed} == {"nan_val_loss"}
    assert {len(r.epochs) for r in failed} == {4}


def test_the_clock_runs_as_fast_as_each_trial(table: CurveTable) -> None:
    policy = Scripted(table)
    conditions = Conditions(workers=3, trainings=4.0)
    run = simulate(table, policy, conditions, seed=0)
    budget_s = 4.0 * table.full_training_s
    for record in run.records:
        times = table.curve(dict(record.params)).times_s
        seen = [e.time_s - record.started_s for e in record.epochs]
        np.testing.assert_allclose(seen, times[: len(seen)])
        assert all(e.time_s <= budget_s for e in record.epochs)
    running = [r for r in run.records if r.state == "running"]
    assert len(running) == 3
    assert [r.number for r in policy.ends] == [
        r.number
        for r in sorted(run.records, key=lambda r: (r.ended_s or math.inf, r.number))
        if r.state != "running"
    ]
    assert list(run.regrets) == sorted(run.regrets, reverse=True)
    best = max(e.metrics["val_accuracy"] for r in run.records for e in r.epochs)
    assert run.regret_at(1.0) == pytest.approx(table.regret(best))
    assert math.isnan(run.regret_at(0.0))


def test_stopped_trials_make_room(table: CurveTable) -> None:
    whole = simulate(table, Scripted(table), Conditions(), seed=0)
    halved = simulate(table, Scripted(table, stop_at=6), Conditions(), seed=0)
    assert len(halved.records) > 1.6 * len(whole.records)
    assert {r.reason for r in halved.records if r.state == "stopped"} == {"told"}


def test_failures_and_stragglers_come_as_often_as_asked(table: CurveTable) -> None:
    conditions = Conditions(workers=50, failed_frac=0.3)
    run = simulate(table, Scripted(table), conditions, seed=1)
    lost = [r for r in run.records if r.reason == "worker_lost"]
    assert 0.2 < len(lost) / len(run.records) < 0.4
    slow = simulate(table, Scripted(table), Conditions(workers=50, slow_frac=1.0), seed=1)
    fast = simulate(table, Scripted(table), Conditions(workers=50), seed=1)
    epochs = [sum(len(r.epochs) for r in run.records) for run in (slow, fast)]
    assert epochs[0] == pytest.approx(epochs[1] / 5.0, rel=0.15)


@pytest.mark.parametrize(
    ("sampler", "stopping"),
    [("gp", "asha"), ("tpe", "asha"), ("random", "none"), ("optuna", "ray-asha")],
)
def test_a_search_is_the_same_again(table: CurveTable, sampler: str, stopping: str) -> None:
    conditions = Conditions(workers=2, trainings=3.0)
    runs = [
        simulate(table, make_policy(table, sampler, stopping, seed), conditions, seed)
        for seed in (3, 3, 4)
    ]
    params = [[dict(r.params) for r in run.records] for run in runs]
    assert params[0] == params[1]
    assert params[0] != params[2]
    assert len(params[0]) >= 6


def test_the_default_beats_random_search_here(table: CurveTable) -> None:
    conditions = Conditions(workers=4)
    regrets = {
        sampler: [
            simulate(table, make_policy(table, sampler, "asha", s), conditions, s).regret_at(1.0)
            for s in range(3)
        ]
        for sampler in ("gp", "random")
    }
    assert sum(regrets["gp"]) < sum(regrets["random"])


def test_stock_trials_that_are_stopped_are_complete_with_their_last_value(
    table: CurveTable,
) -> None:
    policy: Any = make_policy(table, "optuna", "ray-asha", 0)
    run = simulate(table, policy, Conditions(workers=2), seed=0)
    told = {t.number: t for t in policy._search._ot_study.trials if t.state.is_finished()}
    stopped = [r for r in run.records if r.state == "stopped"]
    assert stopped
    for record in stopped:
        assert told[record.number].state.name == "COMPLETE"
        assert told[record.number].value == record.last["val_accuracy"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hp": None}, "must hold the array hp, but has"),
        ({"metrics": np.array(["time_s", "loss"])}, "metrics must hold val_accuracy, but are"),
        ({"hp": np.ones((ROWS, 3))}, "a column for each of 2 names"),
        ({"hp": np.ones((ROWS - 1, 2))}, "curves must have 59 rows"),
        ({"hp": np.full((ROWS, 2), math.inf)}, "must be finite"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    content = {k: v for k, v in (arrays() | change).items() if v is not None}
    with pytest.raises(InputError, match=message):
        load_tables(written(tmp_path, content))


def test_no_table_at_all(tmp_path: Path) -> None:
    path = tmp_path / "text.npz"
    path.write_text("no zip")
    with pytest.raises(InputError, match=r"must be an \.npz file"):
        load_tables(path)
    with pytest.raises(InputError, match="tasks must be of made, but got other"):
        load_tables(written(tmp_path, arrays()), ("other",))


@pytest.mark.parametrize(
    ("sampler", "stopping", "message"),
    [
        ("best", "asha", "sampler must be one of"),
        ("gp", "never", "stopping must be one of"),
        ("gp", "ray-asha", "ours with all but ray-asha"),
        ("optuna", "asha", "optuna goes with ray-asha"),
    ],
)
def test_unknown_methods_are_refused(
    table: CurveTable, sampler: str, stopping: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_policy(table, sampler, stopping, 0)


def test_the_command_prints_a_table_json_and_a_picture(tmp_path: Path) -> None:
    path, picture = written(tmp_path, arrays()), tmp_path / "regret.png"
    asked = ["simulate", str(path), "--sampler", "random", "--seeds", "2", "--workers", "2"]
    text = CliRunner().invoke(main, [*asked, "--plot", str(picture)])
    assert text.exit_code == 0, text.output
    assert "random + asha" in text.output
    assert "made" in text.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    row = json.loads(CliRunner().invoke(main, [*asked, "--format", "json"]).output)
    assert row["runs"] == 2
    assert set(row["regret"]) == {"0.25", "0.5", "1"}
    assert len(row["by_task"]["made"]) == 2
    wrong = CliRunner().invoke(main, ["simulate", str(path), "--sampler", "best"])
    assert wrong.exit_code == 2
    assert "must be one of" in wrong.output


@pytest.mark.parametrize("name", ["curves_lcbench", "curves_taskset"])
def test_published_tables_are_read(name: str) -> None:
    folder = SHARED / name
    if not folder.exists():
        pytest.skip(f"{folder} is absent: it holds real data that are not shipped")
    for path in sorted(folder.glob("*.npz")):
        for table in load_tables(path):
            curve = table.curve(table.space().sample(np.random.default_rng(0)))
            assert (np.diff(curve.times_s) >= 0).all()
            assert np.isfinite(curve.values[0])


def test_the_cost_of_a_simulated_trial_is_its_tables(tmp_path: Path) -> None:
    content = arrays()
    # Wide is slow, and no better.
    rate = np.log10(content["hp"][:, :1])
    content["y"][0, ..., 1] = 90.0 - 5.0 * (rate + 2.0) ** 2
    (table,) = load_tables(written(tmp_path, content))
    num_trials = {False: 0, True: 0}
    for aware, seed in itertools.product(num_trials, range(3)):
        policy = make_policy(table, "gp", "none", seed, cost_aware=aware)
        num_trials[aware] += len(simulate(table, policy, Conditions(), seed).records)
    assert num_trials[True] > 1.03 * num_trials[False]
    with pytest.raises(InputError, match="only gp"):
        make_policy(table, "tpe", "none", 3, cost_aware=True)


@pytest.mark.parametrize(
    ("sampler", "stopping"),
    [("gp", "mo_asha"), ("nsga2", "none"), ("optuna", "none"), ("optuna-nsga2", "none")],
)
def test_time_can_be_an_objective(table: CurveTable, sampler: str, stopping: str) -> None:
    policy = make_policy(table, sampler, stopping, 1, by_time=True)
    run = simulate(table, policy, Conditions(workers=4, trainings=3.0), 1)
    budget_s = 3.0 * table.full_training_s
    areas = [volume(run, table, share * budget_s) for share in (0.0, 0.25, 0.5, 1.0)]
    assert areas == sorted(areas)
    assert areas[0] == 0.0
    seen = [
        table.coverage(e.metrics["val_accuracy"], e.metrics["epoch_s"])
        for r in run.records
        for e in r.epochs
    ]
    assert all(good <= 1.0 and 0.0 <= saved <= 1.0 for good, saved in seen)
    ticks = (np.arange(200) + 0.5) / 200
    covered = np.zeros((200, 200), dtype=bool)
    for good, saved in seen:
        covered |= (ticks[:, None] < good) & (ticks[None, :] < saved)
    assert areas[-1] == pytest.approx(covered.mean(), abs=0.01)


def test_an_epochs_seconds_are_the_tables(table: CurveTable) -> None:
    run = simulate(table, Scripted(table), Conditions(workers=2, trainings=2.0), 0)
    for record in run.records:
        for epoch in record.epochs:
            assert epoch.metrics["epoch_s"] == pytest.approx(record.params["width"] / 16, rel=1e-6)
    quick, slow = map(float, table.domains["width"].ends())
    assert table.coverage(0.0, quick / 16)[1] == pytest.approx(1.0)
    assert table.coverage(0.0, slow / 16)[1] == pytest.approx(0.0)


def test_the_command_shows_the_hypervolume(tmp_path: Path) -> None:
    path = written(tmp_path, arrays())
    asked = ["simulate", str(path), "--sampler", "random", "--seeds", "2", "--by-time"]
    assert "Hypervolume of value and seconds" in CliRunner().invoke(main, asked).output
    row = json.loads(CliRunner().invoke(main, [*asked, "--format", "json"]).output)
    assert len(row["hypervolume_by_task"]["made"]) == 2
