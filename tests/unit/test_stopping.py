"""Stopping rules as pure functions of records."""

import math
import random
from dataclasses import replace

import pytest
from records import record

from search.halving import Asha
from search.results import Mode
from search.stopping import Course, NeverStop, grace_of, health

COURSE = Course("val_top1", "max", full_epochs=27, grace_epochs=1)
RULE = Asha(COURSE, recent=0)


def test_rungs_lie_below_the_full_budget() -> None:
    assert RULE.rungs == (1, 3, 9)
    assert Course("val_top1", "max", 8, 2, factor=2).rungs == (2, 4)
    assert Course("val_top1", "max", 8, 8, factor=2).rungs == ()


def test_between_rungs_every_trial_goes_on() -> None:
    poor, good = record(0, [1.0, 1.0]), record(1, [90.0, 90.0])
    assert not RULE.decide([poor, good], poor).stop


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_third_goes_on_whatever_the_order(mode: Mode) -> None:
    rule = Asha(replace(COURSE, mode=mode), recent=0)
    values = list(range(30))
    random.Random(3).shuffle(values)
    records = [record(i, [float(v)]) for i, v in enumerate(values)]
    kept = {values[r.number] for r in records if not rule.decide(records, r).stop}
    assert kept == (set(range(20, 30)) if mode == "max" else set(range(10)))


def test_ties_do_not_keep_each_other_alive() -> None:
    dead = [record(i, [10.0]) for i in range(9)]
    assert [r.number for r in dead if not RULE.decide(dead, r).stop] == [0, 1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_ranks_last_and_none_is_never_kept_for_it(value: float) -> None:
    records = [record(0, [value]), record(1, [5.0]), record(2, [4.0])]
    assert RULE.decide(records, records[0]).stop
    assert not RULE.decide(records, records[1]).stop


def test_decisions_do_not_depend_on_trials_that_have_not_come_so_far() -> None:
    behind = [record(i, [99.0, 99.0]) for i in range(10, 20)]
    at_rung = [record(i, [10.0, 20.0, float(i)]) for i in range(3)]
    assert not RULE.decide([*at_rung, *behind], at_rung[2]).stop


def test_a_sampler_that_gets_better_does_not_end_early_stopping() -> None:
    """Every trial is among the best of all so far; of the last 12 a third goes on."""
    plain, recent = Asha(COURSE, recent=0), Asha(COURSE)
    kept = {plain: 0, recent: 0}
    noise = random.Random(0)
    values = [float(i) + noise.uniform(0.0, 60.0) for i in range(120)]
    for i in range(60, 120):
        records = [record(k, [v]) for k, v in enumerate(values[: i + 1])]
        for rule in kept:
            kept[rule] += not rule.decide(records, records[i]).stop
    assert kept[plain] > 40
    assert 15 <= kept[recent] <= 35


def test_what_came_after_a_trial_is_not_recent_to_it() -> None:
    rule = Asha(COURSE, recent=3)
    records = [record(i, [float(v)]) for i, v in enumerate([5, 1, 2, 9, 9, 9, 0, 0, 0, 0, 0, 0])]
    assert not rule.decide(records, records[0]).stop


def test_automatic_grace_is_a_tenth_of_the_full_budget() -> None:
    assert [grace_of("auto", full) for full in (3, 8, 52, 300)] == [1, 1, 5, 30]
    assert grace_of(7, 300) == 7


def test_never_stop_never_stops() -> None:
    trial = record(0, [0.0])
    assert not NeverStop(COURSE).decide([trial], trial).stop


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"val_top1": math.nan}, "nan_val_top1"),
        ({"val_top1": 5.0, "train_loss": math.inf}, "nan_train_loss"),
        ({"train_loss": 1.0}, "missing_val_top1"),
    ],
)
def test_what_leads_nowhere_fails(metrics: dict[str, float], reason: str) -> None:
    trial = record(0, [0.0], extra_metrics=metrics, drop_default="val_top1" not in metrics)
    decision = health(trial, "val_top1", 1000)
    assert decision.stop
    assert decision.failed
    assert decision.reason == reason


@pytest.mark.parametrize(
    ("rates", "fired", "num_steps", "reason"),
    [
        ({"a": 0.0, "b": 0.0}, 0.0, 100, "silent_network"),
        ({"a": 0.0, "b": 0.0}, 0.0, 99, ""),
        ({"a": 0.0, "b": 0.0}, 0.1, 8, "silent_network"),
        ({"a": 1.0, "b": 1.0}, 1.0, 8, "saturated_network"),
        ({"a": 0.0, "b": 0.3}, 0.1, 500, ""),
    ],
)
def test_dead_networks_end(
    rates: dict[str, float], fired: float, num_steps: int, reason: str
) -> None:
    trial = record(0, [10.0] * 2, layer_rates=rates, extra_metrics={"firing_rate": fired})
    assert health(trial, "val_top1", num_steps).reason == reason
