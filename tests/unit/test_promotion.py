"""Successive halving that pauses: who goes on, and when."""

import random
from dataclasses import replace

import numpy as np
import pytest
from records import record

from search.promotion import AshaPromotion
from search.records import TrialRecord
from search.rules import SelfCheck, make_rule
from search.stopping import GO_ON, Course, Decision, Pausing, promotion
from search.wording import check_text
from spaces.constraints import OutcomeConstraint, compile_constraint

COURSE = Course("val_top1", "max", full_epochs=27, grace_epochs=1)
RULE = AshaPromotion(COURSE, recent=0)


def waiting(number: int, *values: float) -> TrialRecord:
    return record(number, list(values), state="paused")


def promoted(records: list[TrialRecord], rule: AshaPromotion = RULE) -> list[int]:
    """Numbers in the order in which free workers take them up, nothing else happening."""
    records, found = list(records), []
    while (number := rule.promotion(records)) is not None:
        found.append(number)
        records[number] = replace(records[number], state="running")
    return found


def test_nobody_goes_on_before_there_is_a_whole_round() -> None:
    assert promoted([waiting(0, 9.0), waiting(1, 5.0)]) == []
    assert promoted([waiting(0, 5.0), waiting(1, 9.0), waiting(2, 7.0)]) == [1]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_third_goes_on_best_first(mode: str) -> None:
    values = list(range(30))
    random.Random(3).shuffle(values)
    rule = AshaPromotion(replace(COURSE, mode="max" if mode == "max" else "min"), recent=0)
    found = promoted([waiting(i, float(v)) for i, v in enumerate(values)], rule)
    best = range(29, 19, -1) if mode == "max" else range(10)
    assert [values[n] for n in found] == list(best)


def test_the_highest_rung_comes_first() -> None:
    high = [waiting(i, 0.0, 0.0, float(i)) for i in range(3)]
    low = [waiting(i, 10.0 + i) for i in range(3, 9)]
    assert promoted([*high, *low]) == [2, 8, 7, 6]


def test_late_joiners_make_an_earlier_one_promotable() -> None:
    first = [waiting(0, 9.0), waiting(1, 8.0), waiting(2, 1.0)]
    went_on = replace(record(0, [9.0, 9.0]), state="running")
    known = [went_on, *first[1:]]
    assert promoted(known) == []
    late = [*known, waiting(3, 2.0), waiting(4, 3.0)]
    assert promoted(late) == []
    assert promoted([*late, waiting(5, 0.0)]) == [1]


def test_a_promoted_trial_keeps_its_place_and_is_not_promoted_again() -> None:
    trials = [waiting(i, float(i)) for i in range(6)]
    for ended in ("running", "finished", "failed", "stopped"):
        gone = record(5, [5.0, 0.0], state=ended)
        assert promoted([*trials[:5], gone]) == [4]
        at_rung = record(5, [5.0], state=ended)
        assert promoted([*trials[:5], at_rung]) == [4]


def test_ties_are_for_earlier_numbers() -> None:
    assert promoted([waiting(i, 10.0) for i in range(9)]) == [0, 1, 2]


def test_a_trial_waits_at_a_rung_unless_its_worker_would_take_it_up_at_once() -> None:
    trials = [waiting(0, 5.0), waiting(1, 6.0)]
    pause = Decision(stop=False, reason="asha@1", pause=True)
    assert RULE.decide([*trials, poor := record(2, [1.0])], poor) == pause
    assert RULE.decide([*trials, good := record(2, [9.0])], good) == GO_ON
    assert RULE.decide([only := record(0, [9.0])], only) == pause
    assert RULE.decide([*trials, between := record(2, [9.0, 1.0])], between) == GO_ON
    # So is one that waits at the same rung and is better.
    low = [waiting(0, 8.0), *(waiting(i, 1.0) for i in range(1, 5)), record(5, [7.0])]
    assert RULE.decide(low, low[-1]) == pause
    # One that waits higher up is served first by the worker that becomes free.
    high = [waiting(i, 0.0, 0.0, float(i)) for i in range(3)]
    low = [waiting(3, 5.0), waiting(4, 6.0), record(5, [9.0])]
    assert RULE.decide([*high, *low], low[-1]) == pause


def test_at_the_end_the_best_of_each_rung_goes_on_however_few_there_are() -> None:
    trials = [waiting(0, 5.0), waiting(1, 6.0)]
    assert RULE.promotion(trials) is None
    assert RULE.promotion(trials, last=True) == 1
    higher = waiting(1, 0.0, 0.0, 3.0)
    assert RULE.promotion([trials[0], higher], last=True) == 1
    done = record(1, [6.0] * 27, state="finished")
    assert RULE.promotion([trials[0], done], last=True) is None
    failed = record(1, [6.0, 6.0], state="failed")
    assert RULE.promotion([trials[0], failed], last=True) == 0


def test_one_that_breaks_a_constraint_is_behind_those_that_do_not() -> None:
    bound = compile_constraint("sops_g <= 12")
    assert isinstance(bound, OutcomeConstraint)
    rule = AshaPromotion(replace(COURSE, constraints=(bound,)), recent=0)
    small = [record(i, [float(i)], state="paused", extra_metrics={"sops_g": 3.0}) for i in range(5)]
    large = record(5, [99.0], state="paused", extra_metrics={"sops_g": 30.0})
    assert promoted([*small, large], rule) == [4, 3]


def test_a_sampler_that_gets_better_does_not_have_every_trial_promoted() -> None:
    """Each newcomer is among the best of all so far; of the last 12 about a third goes on."""
    noise = random.Random(0)
    values = [float(i) + noise.uniform(0.0, 60.0) for i in range(120)]
    shares = {}
    for recent in (0, None):
        rule, trials, num = AshaPromotion(COURSE, recent), list[TrialRecord](), 0
        for i, value in enumerate(values):
            arrived = record(i, [value])
            decision = rule.decide([*trials, arrived], arrived)
            trials.append(replace(arrived, state="paused") if decision.pause else arrived)
            num += i >= 60 and not decision.pause
            while (number := rule.promotion(trials)) is not None:
                trials[number] = replace(trials[number], state="running")
                num += number >= 60
        shares[recent] = num / 60
    assert shares[0] > 0.6
    assert 0.25 <= shares[None] <= 0.55


def test_a_rung_that_says_nothing_pauses_nobody_any_more() -> None:
    rng = np.random.default_rng(1)
    rule = AshaPromotion(replace(COURSE, adaptive=True))
    noise = [record(i, list(rng.normal(size=3)), state="finished") for i in range(40)]
    worst = record(40, [-99.0])
    assert rule.decide([*noise, worst], worst) == GO_ON
    worse = record(40, [-99.0, 0.0, -99.0])
    assert rule.decide([*noise, worse], worse).pause
    assert rule.decide([*noise[:11], poor := record(11, [-99.0])], poor).pause
    left = waiting(40, -99.0)
    assert rule.promotion([*noise, left]) is None, "what waits there goes on by its rank"


def test_a_share_of_what_would_wait_runs_on_as_a_check() -> None:
    rule = make_rule("asha_promotion", replace(COURSE, seed=3), check_share=0.5)
    assert isinstance(rule, SelfCheck)
    assert isinstance(rule, Pausing)
    said = [rule.decide([*[record(i, []) for i in range(n)], t], t) for n, t in _newcomers(40)]
    spared = [d for d in said if d.spared]
    assert 10 <= len(spared) <= 30
    assert {(d.stop, d.pause, d.spared) for d in spared} == {(False, False, "paused@1")}
    assert all(d.pause for d in said if not d.spared)
    trials = [waiting(0, 5.0), waiting(1, 6.0), waiting(2, 7.0)]
    assert promotion(rule, trials) == 2
    assert promotion(make_rule("asha", COURSE, check_share=0.5), trials) is None
    assert promotion(make_rule("asha", COURSE), trials) is None
    checked = record(0, [1.0, 9.0], state="finished", spared={1: "paused@1"})
    text = check_text([checked, record(1, [5.0, 8.0], state="finished")], "val_top1", "max")
    assert text.startswith("1 trial that was to be paused ran on as a check")


def test_a_check_holds_no_worker_of_the_others_back() -> None:
    """A trial that runs on keeps its place at the rung and takes none at later ones."""
    spared = record(0, [9.0, 9.0, 99.0], state="finished", spared={1: "paused@1"})
    low = [spared, *(waiting(i, float(i)) for i in range(1, 6))]
    assert promoted(low) == [5]
    high = [waiting(i, 0.0, 0.0, float(i)) for i in range(1, 3)]
    assert promoted([spared, *high]) == []


def _newcomers(num: int) -> list[tuple[int, TrialRecord]]:
    return [(i, record(i, [0.0])) for i in range(num)]
