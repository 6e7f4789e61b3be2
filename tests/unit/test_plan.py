"""What a search is said to take."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from ledgers import add_trial, made_search

from search.cli import main
from search.folder import SearchFolder
from search.plan import START_S, TRIAL_S, Pace, epoch_s, learnt_pace, make_plan, pace_of
from spaces import SearchSpec, load_search_space

SPACE = """
name: planned
recipe: digits
trial:
  train.epochs: 9
objectives:
  - {metric: val_top1, mode: max}
space:
  train.lr: {float: [2.0e-3, 2.0e-2], log: true}
sampler: {name: random, seed: 4}
stopping: {name: asha, grace_epochs: 1, reduction_factor: 3}
budget: {trials: 30}
resources: {cpus: 1, gpus: 0}
"""
SURE = Pace(1.0, 0.0, "a test")


def spec_of(folder: Path, *overrides: str) -> SearchSpec:
    path = folder / "planned.yaml"
    path.write_text(SPACE)
    return load_search_space(path, overrides)


def test_without_early_stopping_every_epoch_is_trained(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "stopping.name=none")
    an_epoch = epoch_s(spec.base_config, None)
    alone = make_plan(spec, 1, SURE, None)
    assert (alone.trials.low, alone.trials.high) == (30, 30)
    assert (alone.epochs.low, alone.epochs.high, alone.full_epochs) == (270, 270, 270)
    assert alone.work_s.mid == pytest.approx(270 * an_epoch)
    assert alone.wall_s.mid == pytest.approx(270 * an_epoch + 30 * TRIAL_S + START_S)
    five = make_plan(spec, 5, SURE, None)
    assert five.work_s.mid == pytest.approx(270 * an_epoch)
    assert five.wall_s.mid == pytest.approx((270 * an_epoch + 30 * TRIAL_S) / 5 + START_S)


def test_stopping_saves_what_the_rule_saves(tmp_path: Path) -> None:
    plan = make_plan(spec_of(tmp_path), 4, SURE, None)
    # Of 30 trials a third goes on at either rung, and the first of each always.
    assert 30 + 2 * 10 + 6 * 3 <= plan.epochs.mid <= 30 + 2 * 20 + 6 * 10
    assert plan.epochs.low < plan.epochs.mid < plan.epochs.high
    gentler = make_plan(spec_of(tmp_path, "stopping.grace_epochs=3"), 4, SURE, None)
    assert gentler.epochs.mid > plan.epochs.mid


def test_trials_that_are_paused_go_on_in_a_plan_too(tmp_path: Path) -> None:
    plan = make_plan(spec_of(tmp_path, "stopping.name=asha_promotion"), 4, SURE, None)
    assert 30 + 2 * 8 + 6 * 1 <= plan.epochs.mid <= 30 + 2 * 20 + 6 * 10


def test_hours_end_it(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "stopping.name=none", "budget.hours=0.01")
    plan = make_plan(spec, 2, Pace(100.0, 0.0, "slow"), None)
    assert plan.wall_s.high == pytest.approx(36 + START_S)
    assert plan.trials.mid < 30


def test_doubt_about_seconds_widens_times_and_leaves_epochs(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    sure, rough = (
        make_plan(spec, 2, SURE, None),
        make_plan(spec, 2, pace_of(None, on_gpu=False), None),
    )
    assert rough.epochs == sure.epochs
    assert rough.wall_s.mid == sure.wall_s.mid
    assert rough.wall_s.high / rough.wall_s.low > 2 * sure.wall_s.high / sure.wall_s.low


def test_a_small_space_ends_before_its_budget(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "space={'model.depth': {'int': [1, 2]}}")
    assert make_plan(spec, 2, SURE, None).trials.high == 2


def test_the_setting_that_decides_is_named(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path, "space={'model.timesteps': {'choice': [2, 8]}, 'train.lr': {'float': [0.1, 0.2]}}"
    )
    first = make_plan(spec, 2, SURE, None).settings[0]
    assert (first.key, first.dearest) == ("model.timesteps", "8")
    assert first.ratio > 2


def test_an_earlier_search_tells_how_long_epochs_take(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path / "runs")
    for width in (16, 24, 32):
        add_trial(spec, ledger, width, 2, "stopped")
    records = ledger.records
    assert learnt_pace(spec, records, None, "made") is None  # it has reported no seconds
    timed = []
    for record in records:
        seconds = 3.0 * epoch_s(spec.trial_config(dict(record.params)), None)
        entries = [replace(e, metrics={**e.metrics, "epoch_s": seconds}) for e in record.epochs]
        timed.append(replace(record, epochs=tuple(entries)))
    ledger.close()
    pace = learnt_pace(spec, timed, None, "made")
    assert pace is not None
    assert pace.factor == pytest.approx(3.0, rel=0.1)
    assert folder.exists


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    spec_of(tmp_path)
    return tmp_path / "planned.yaml"


def test_the_command_prints_a_plan(planned: Path) -> None:
    done = CliRunner().invoke(main, ["plan", str(planned), "--cpus", "4"])
    assert done.exit_code == 0, done.output
    assert "4 trials at once" in done.output
    for word in ("trials", "epochs", "training", "wall-clock", "early stopping saves"):
        assert word in done.output
    assert "GPU" not in done.output


def test_gpus_are_paid_for_by_the_hour(planned: Path) -> None:
    arguments = ["plan", str(planned), "--gpus", "4", "--gpu-hour", "2.5", "--format", "json"]
    arguments += ["--set", "resources.gpus=1"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    plan = json.loads(done.output)
    assert plan["workers"] == 4
    assert plan["gpu_hours"]["mid"] == pytest.approx(4 * plan["wall_s"]["mid"] / 3600)
    assert plan["cost"]["high"] == pytest.approx(2.5 * plan["gpu_hours"]["high"])


def test_a_search_that_is_not_there_is_said_so(planned: Path, tmp_path: Path) -> None:
    arguments = ["plan", str(planned), "--like", "nobody", "--runs", str(tmp_path / "runs")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code != 0
    assert "nobody" in done.output
    assert "Traceback" not in done.output
    assert SearchFolder(tmp_path / "runs", "nobody").exists is False
