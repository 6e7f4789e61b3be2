"""The other stopping rules, the growing grace period and the check of them all."""

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from records import record
from scipy.stats import spearmanr

from search.fronts import best_of
from search.halving import Asha, Hyperband, MultiObjectiveAsha, rank_correlation
from search.records import TrialRecord
from search.results import hypervolume, stopping_check
from search.rules import RULES, MedianRule, Plateau, SelfCheck, is_checked, make_rule
from search.stopping import Course
from search.wording import check_text
from spaces.constraints import OutcomeConstraint, compile_constraint

COURSE = Course("val_top1", "max", full_epochs=27, grace_epochs=1, patience_epochs=3)
TWO: Any = (
    SimpleNamespace(metric="val_top1", mode="max"),
    SimpleNamespace(metric="energy_mj", mode="min"),
)


def reported(number: int, *epochs: dict[str, float]) -> TrialRecord:
    known = record(number, [0.0] * len(epochs))
    entries = (replace(e, metrics=m) for e, m in zip(known.epochs, epochs, strict=True))
    return replace(known, epochs=tuple(entries))


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_lets_a_single_trial_run_its_budget(name: str) -> None:
    rule = make_rule(name, replace(COURSE, objectives=TWO))
    for num in range(1, 27):
        trial = record(0, [float(i) for i in range(num)])
        assert not rule.decide([trial], trial).stop


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_says_the_same_of_the_same_records_whatever_it_saw_before(name: str) -> None:
    course = replace(COURSE, objectives=TWO, adaptive=True)
    values = np.random.default_rng(0).normal(size=(24, 9)).cumsum(axis=1)
    used = make_rule(name, course, 0.3)
    for num in range(1, 25):
        for depth in (1, 3, 9):
            records = [record(i, list(values[i, :depth])) for i in range(num)]
            for trial in records[-2:]:
                said = used.decide(records, trial)
                assert said == make_rule(name, course, 0.3).decide(records, trial)


def test_an_unknown_rule_is_named_with_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"asha.*median.*but got 'halving'"):
        make_rule("halving", COURSE)


@pytest.mark.parametrize("name", ["asha", "mo_asha", "hyperband"])
def test_a_trial_that_breaks_a_constraint_ranks_behind_those_that_do_not(name: str) -> None:
    bound = compile_constraint("sops_g <= 12")
    assert isinstance(bound, OutcomeConstraint)
    course = replace(COURSE, objectives=TWO, constraints=(bound,))
    rule: Any = Hyperband(course) if name == "hyperband" else make_rule(name, course)
    numbers = [n for n in range(60) if name != "hyperband" or rule.bracket(n) == 0][:6]
    small = {"val_top1": 50.0, "energy_mj": 2.0, "sops_g": 3.0}
    trials = [reported(n, small | {"val_top1": 50.0 + n}) for n in numbers[:5]]
    large = {"val_top1": 99.0, "energy_mj": 1.0, "sops_g": 30.0}
    trials.append(reported(numbers[5], large))
    assert rule.decide(trials, trials[5]).stop
    assert not rule.decide(trials, trials[4]).stop


def test_the_median_rule_compares_the_best_so_far_with_others_averages() -> None:
    rule = MedianRule(COURSE)
    others = [record(i, [float(i), float(i) + 2.0]) for i in range(5)]  # averages 1 to 5
    assert not rule.decide([*others, low := record(5, [3.0, 0.0])], low).stop
    decision = rule.decide([*others, low := record(5, [2.9, 2.9])], low)
    assert decision.reason == "median@2"
    few = [*others[-3:], low]
    assert not rule.decide(few, low).stop


def test_a_plateau_ends_a_trial_by_itself() -> None:
    rule = Plateau(COURSE)
    assert not rule.decide([], record(0, [1.0, 5.0, 4.0, 5.0])).stop
    assert rule.decide([], record(0, [1.0, 5.0, 4.0, 5.0, 5.0])).reason == "plateau@5"
    assert not rule.decide([], record(0, [1.0, 5.0, 4.0, 5.0, 5.1])).stop


def test_hyperbands_brackets_get_fewer_trials_the_longer_their_grace() -> None:
    rule = Hyperband(COURSE)
    counts = np.bincount([rule.bracket(n) for n in range(4000)], minlength=4)
    expected = np.array([1 / 4, 1 / 9, 1 / 18, 1 / 27])
    assert counts / 4000 == pytest.approx(expected / expected.sum(), abs=0.03)
    last = next(n for n in range(1000) if rule.bracket(n) == 3)
    worst = record(last, [0.0])
    others = [record(n, [9.0]) for n in range(1000) if n != last]
    assert not rule.decide([*others, worst], worst).stop


def test_hyperband_compares_a_trial_with_its_own_bracket_only() -> None:
    rule = Hyperband(COURSE)
    first = [n for n in range(200) if rule.bracket(n) == 0]
    own = [record(n, [float(i)]) for i, n in enumerate(first[:9])]
    others = [record(n, [99.0]) for n in range(200) if rule.bracket(n) == 1]
    kept = [r.number for r in own if not rule.decide([*own, *others], r).stop]
    assert kept == first[6:9]


def test_multi_objective_halving_keeps_what_nobody_beats() -> None:
    rule = MultiObjectiveAsha(replace(COURSE, objectives=TWO))
    metrics = [(90.0, 9.0), (80.0, 3.0), (70.0, 1.0)] + [(60.0 - i, 9.5 + i) for i in range(6)]
    trials = [reported(i, {"val_top1": a, "energy_mj": e}) for i, (a, e) in enumerate(metrics)]
    assert [t.number for t in trials if not rule.decide(trials, t).stop] == [0, 1, 2]


def test_within_a_front_those_that_add_most_volume_are_best() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        x = np.sort(rng.random(6))
        front = np.column_stack([x, np.sort(rng.random(6))[::-1]])
        losses = np.column_stack([np.zeros(6), front])
        low, high = front.min(0), front.max(0)
        scaled = (front - low) / (high - low)
        whole = hypervolume(scaled.tolist(), [1.1, 1.1], ["min", "min"])
        added = [
            whole - hypervolume(np.delete(scaled, i, 0).tolist(), [1.1, 1.1], ["min", "min"])
            for i in range(6)
        ]
        assert best_of(losses, 2) == sorted(range(6), key=lambda i: -added[i])[:2]
        worse, broken = np.array([0.0, 1.0, 1.0]), np.array([1.0, -5.0, -5.0])
        dominated = np.vstack([losses, losses + worse, losses + broken])
        assert sorted(best_of(dominated, 6)) == list(range(6))


def test_a_first_rung_that_says_nothing_stops_nobody_any_more() -> None:
    rng = np.random.default_rng(1)
    rule = Asha(replace(COURSE, adaptive=True))
    noise = [record(i, list(rng.normal(size=3))) for i in range(40)]
    assert rule.grace(noise) == 3
    assert rule.grace(noise[:11]) == 1
    worst = record(40, [-99.0])
    assert not rule.decide([*noise, worst], worst).stop
    telling = [record(i, [float(i), 0.0, i + 9.0 * rng.normal()]) for i in range(40)]
    assert rule.grace(telling) == 1
    assert rule.decide([*telling, worst], worst).stop
    assert Asha(COURSE).grace(noise) == 1


@pytest.mark.parametrize("num", [42, 120])
def test_a_rung_chosen_by_a_telling_one_does_not_look_as_if_it_said_nothing(num: int) -> None:
    """Those that went on are alike, which makes the ranks among them noisy."""
    false_alarms = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        early = rng.normal(size=num)
        late = 0.7 * early + 0.5 * rng.normal(size=num)
        passed = early > np.quantile(early, 2 / 3)
        trials = [
            record(i, [e, 0.0, x] if p else [e])
            for i, (e, x, p) in enumerate(zip(early, late, passed, strict=True))
        ]
        false_alarms += Asha(replace(COURSE, adaptive=True)).grace(trials) > 1
    assert false_alarms <= 2


def test_ranks_that_are_all_the_same_say_nothing() -> None:
    same, rising = np.zeros(12), np.arange(12.0)
    assert rank_correlation(same, rising) == 0.0
    assert rank_correlation(rising, same) is None
    assert rank_correlation(rising, rising**3) == pytest.approx(1.0)
    assert rank_correlation(rising[:5], rising[:5]) is None
    tied = np.floor(rising / 3.0)
    expected = spearmanr(tied, -rising % 7).statistic
    assert rank_correlation(tied, -rising % 7) == pytest.approx(expected, abs=1e-12)


def test_a_share_of_what_would_be_stopped_runs_on_and_changes_nothing_for_the_others() -> None:
    rng = random.Random(0)
    values = [[rng.random() for _ in range(27)] for _ in range(300)]
    ended: dict[float, dict[int, tuple[int, str]]] = {}
    for share in (0.0, 0.2):
        rule = SelfCheck(Asha(COURSE), share, seed=3)
        records: list[TrialRecord] = []
        ended[share] = {}
        for number, curve in enumerate(values):
            trial = record(number, [])
            records.append(trial)
            spared: dict[int, str] = {}
            for epoch in range(1, 28):
                trial = records[number] = record(number, curve[:epoch], spared=spared)
                decision = rule.decide(records, trial)
                if decision.spared:
                    spared[epoch] = decision.spared
                    records[number] = record(number, curve[:epoch], spared=spared)
                if decision.stop:
                    break
            first = next(iter(spared.items()), None)
            ended[share][number] = first or (epoch, decision.reason)
            assert not spared or (len(spared) == 1 and epoch == 27)
    assert ended[0.0] == ended[0.2]
    checked = [n for n in range(300) if is_checked(3, n, 0.2)]
    assert 40 <= len(checked) <= 80


def test_the_account_of_the_check_says_what_was_missed() -> None:
    trials = [
        record(0, [5.0, 8.0], state="finished"),
        record(1, [1.0, 9.5], state="finished", spared={1: "asha@1"}),
        record(2, [1.0, 3.0], state="finished", spared={1: "asha@1"}),
        record(3, [1.0], state="stopped"),
        record(4, [1.0, 2.0], spared={1: "asha@1"}),
    ]
    found = stopping_check(trials, "val_top1", "max")
    assert found is not None
    assert (found.checked, found.missed, found.epochs, found.num_stopped) == (2, 1, 3, 1)
    assert found.loss == pytest.approx(1.5)
    lower = stopping_check(trials, "val_top1", "min")
    assert lower is not None
    assert (lower.missed, lower.loss) == (1, 5.0)
    assert stopping_check(trials[:1], "val_top1", "max") is None
    said = check_text(trials, "val_top1", "max")
    assert said.startswith("2 trials that were to be stopped ran on as a check (3 epochs more)")
    assert said.endswith("1 ended better than the best of the others, by up to val_top1 1.50 %.")
    assert check_text([*trials[:1], trials[2]], "val_top1", "max").endswith("best of the others.")
    assert check_text(trials[:1], "val_top1", "max") == ""
