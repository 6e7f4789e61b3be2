"""What mattered in a search: importances and effects."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learning import OBJECTIVES, by_peak, kinds, learnt, made, rate, search
from records import record

from search import effects
from search.effects import Importance, basis_of, effect, same, unlike
from search.insight import insight
from search.ped_anova import ped_anova
from search.results import Mode


@pytest.mark.parametrize("mode", ["max", "min"])
def test_what_matters_comes_first_and_what_does_not_is_near_nothing(
    tmp_path: Path, mode: Mode
) -> None:
    spec = made(tmp_path, OBJECTIVES[mode])
    sign = 1 if mode == "max" else -1
    found = learnt(spec, search(spec, lambda p, rng: sign * by_peak(p, rng)))
    rows = {row.parameter: row for row in found.objectives[0].importances}
    first = found.objectives[0].importances[0]
    assert first.parameter == "train.lr"
    assert first.share is not None
    assert first.share > 0.6
    assert first.p_value == 1 / 40
    assert (rows["train.weight_decay"].share or 0.0) < 0.1
    assert (rows["train.weight_decay"].p_value or 0.0) > 0.05
    assert sum(row.share or 0.0 for row in rows.values()) == pytest.approx(1.0)


def test_of_many_trials_a_sample_tells_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = made(tmp_path, OBJECTIVES["max"])
    records = search(spec, by_peak, 240)
    evaluated: list[int] = []

    def counted(params: Any, *rest: Any) -> list[dict[str, float]]:
        evaluated.append(len(params))
        return ped_anova(params, *rest)

    monkeypatch.setattr(effects, "ped_anova", counted)
    whole = learnt(spec, records).objectives[0].importances
    monkeypatch.setattr(effects, "MOST_RATED", 80)
    sampled = learnt(spec, records).objectives[0].importances
    assert set(evaluated) == {240, 80}
    assert sampled == learnt(spec, records).objectives[0].importances
    assert sampled[0].parameter == whole[0].parameter == "train.lr"
    assert {row.trials for row in sampled} == {row.trials for row in whole}


@pytest.mark.parametrize(("mode", "expected"), [("max", "train.lr"), ("min", "train.weight_decay")])
def test_the_better_trials_decide_what_matters(tmp_path: Path, mode: Mode, expected: str) -> None:
    """High values come from the learning rate, low ones from weight decay."""
    spec = made(tmp_path, OBJECTIVES[mode])

    def score(params: Mapping[str, Any], rng: np.random.Generator) -> float:
        high = 10 * rate(params) if rate(params) > 0.6 else 0.0
        return high if high else -10 * params["train.weight_decay"]

    found = learnt(spec, search(spec, score, 90))
    assert found.objectives[0].importances[0].parameter == expected


def test_one_is_not_true() -> None:
    assert same(1, 1.0)
    assert not same(1, True)


def test_each_objective_has_its_own_importances(tmp_path: Path) -> None:
    both = "objectives=[{metric: val_top1, mode: max}, {metric: energy_mj, mode: min}]"
    spec = made(tmp_path, both)
    records = [
        record(
            r.number,
            [r.last["val_top1"]] * 9,
            state="finished",
            params=dict(r.params),
            extra_metrics={"energy_mj": float(r.params["model.depth"])},
        )
        for r in search(spec, by_peak)
    ]
    found = learnt(spec, records)
    assert [f.metric for f in found.objectives] == ["val_top1", "energy_mj"]
    firsts = [f.importances[0].parameter for f in found.objectives]
    assert firsts == ["train.lr", "model.depth"]


def test_effects_are_the_plain_means(tmp_path: Path) -> None:
    spec = made(tmp_path)
    records = search(spec, by_peak)
    effects = {e.parameter: e for e in learnt(spec, records).objectives[0].effects}
    for key in ("model.depth", "model.attention", "model.block_size"):
        for group in effects[key].groups:
            own = [r.last["val_top1"] for r in records if r.params.get(key) == group.value]
            assert group.trials == len(own) > 1
            assert group.mean == pytest.approx(sum(own) / len(own))
            assert group.error == pytest.approx(np.std(own, ddof=1) / len(own) ** 0.5)
    assert [g.value for g in effects["model.depth"].groups] == [1, 2, 3, 4]
    for key in ("train.lr", "train.weight_decay"):
        groups = effects[key].groups
        assert len(groups) == 6
        assert [g.trials for g in groups] == [10] * 6
        last = -math.inf
        for group in groups:
            low, high = group.low, group.high
            assert low is not None
            assert high is not None
            assert last < low < high
            last = high
            own = [r.last["val_top1"] for r in records if low <= r.params[key] <= high]
            assert group.mean == pytest.approx(sum(own) / len(own))


def test_equal_values_share_a_range_and_unseen_values_are_told(tmp_path: Path) -> None:
    spec = made(tmp_path)
    records = [
        replace(r, params={**r.params, "model.depth": 1, "train.weight_decay": (0.0, 0.1)[i > 40]})
        for i, r in enumerate(search(spec, by_peak))
    ]
    effects = {e.parameter: e for e in learnt(spec, records).objectives[0].effects}
    assert [g.trials for g in effects["train.weight_decay"].groups] == [41, 19]
    assert [(g.trials, g.mean is None) for g in effects["model.depth"].groups] == [
        (60, False),
        (0, True),
        (0, True),
        (0, True),
    ]


def test_values_of_different_epochs_are_never_compared(tmp_path: Path) -> None:
    """By the last values depth would be good; at the epoch that all have reached it is bad."""
    spec = made(tmp_path)
    rng = np.random.default_rng(0)
    records = []
    for number in range(60):
        params = spec.search_space.sample(rng)
        depth = params["model.depth"]
        early = [50.0 - depth]
        goes_on = depth >= 3 and number % 2 == 0
        records.append(
            record(
                number,
                early + [80.0] * 8 if goes_on else early,
                state="finished" if goes_on else "stopped",
                params=params,
            )
        )
    found = learnt(spec, records)
    assert (found.epoch, found.trials, found.of) == (1, 60, 60)
    depth_effect = next(e for e in found.objectives[0].effects if e.parameter == "model.depth")
    assert [g.mean for g in depth_effect.groups] == [49.0, 48.0, 47.0, 46.0]
    assert kinds(found)["model.depth"].endswith("_low")


def test_the_highest_epoch_that_enough_trials_have_reached_is_taken(tmp_path: Path) -> None:
    spec = made(tmp_path)
    records = search(spec, by_peak, 40)

    def with_full(count: int) -> int:
        cut = [
            r if r.number < count else replace(r, state="stopped", epochs=r.epochs[:3])
            for r in records
        ]
        return learnt(spec, cut).epoch

    assert (with_full(20), with_full(19)) == (9, 3)
    assert (
        learnt(spec, [replace(r, state="running", epochs=r.epochs[:4]) for r in records]).epoch == 3
    )
    never = made(tmp_path, "stopping.name=none")
    assert insight(never, [replace(r, epochs=r.epochs[:3]) for r in records]) is None


def test_failures_non_finite_and_forbidden_values_are_left_out(tmp_path: Path) -> None:
    spec = made(tmp_path, 'constraints=["energy_mj <= 2"]')
    records = search(spec, by_peak)
    more = search(spec, lambda p, _: 1000.0 * p["train.weight_decay"], 40, seed=9)
    odd = []
    for i, r in enumerate(more):
        changed = replace(r, number=100 + i)
        if i % 4 == 0:
            changed = replace(changed, state="failed")
        elif i % 4 == 1:
            changed = replace(changed, feasible=False)
        else:
            name, value = ("val_top1", math.nan) if i % 4 == 2 else ("energy_mj", 3.0)
            epochs = tuple(replace(e, metrics={**e.metrics, name: value}) for e in changed.epochs)
            changed = replace(changed, epochs=epochs)
        odd.append(changed)
    clean, mixed = learnt(spec, records), learnt(spec, [*records, *odd])
    assert mixed.of == 100
    assert replace(mixed, of=60) == clean


def test_too_few_trials_say_nothing(tmp_path: Path) -> None:
    spec = made(tmp_path)
    records = search(spec, by_peak, 8)
    assert insight(spec, []) is None
    assert insight(spec, records[:7]) is None
    assert learnt(spec, records).trials == 8
    assert learnt(spec, records).hints == ()


def test_equal_values_have_no_importances(tmp_path: Path) -> None:
    spec = made(tmp_path)
    found = learnt(spec, search(spec, lambda *_: 5.0))
    assert {row.share for row in found.objectives[0].importances} == {None}
    assert found.hints == ()


def test_a_conditional_parameter_counts_where_it_exists(tmp_path: Path) -> None:
    spec = made(tmp_path)

    def score(params: Mapping[str, Any], rng: np.random.Generator) -> float:
        return 5.0 * (params.get("model.block_size") == 4) + 0.1 * rng.normal()

    records = search(spec, score, 90)
    having = [r for r in records if "model.block_size" in r.params]
    finding = learnt(spec, records).objectives[0]
    rows = {row.parameter: row for row in finding.importances}
    assert rows["model.block_size"].trials == len(having) < 40
    assert rows["model.block_size"].p_value == 1 / 40
    assert rows["train.lr"].trials == 90
    own = next(e for e in finding.effects if e.parameter == "model.block_size")
    assert sum(g.trials for g in own.groups) == len(having)
    few = [*having[:7], *(r for r in records if r not in having)]
    rows = {row.parameter: row for row in learnt(spec, few).objectives[0].importances}
    assert rows["model.block_size"] == Importance("model.block_size", None, None, 7)
    alone = next(r for r in records if r not in having)
    learnt(spec, [*having, alone])  # Optuna's warning of a single one without it is no error


def test_everything_is_json_and_the_same_again(tmp_path: Path) -> None:
    spec = made(tmp_path)
    records = search(spec, by_peak)
    found = learnt(spec, records)
    assert found == learnt(spec, records)
    tree = json.loads(json.dumps(found.tree(), allow_nan=False))
    assert tree["objectives"][0]["importances"][0]["parameter"] == "train.lr"
    assert set(tree) == {"epoch", "trials", "of", "objectives", "hints"}


@pytest.mark.parametrize(
    ("mode", "sign", "kind"),
    [("max", 1, "widen_high"), ("min", 1, "widen_low"), ("max", -1, "widen_low")],
)
def test_an_optimum_at_a_bound_is_told(tmp_path: Path, mode: Mode, sign: int, kind: str) -> None:
    spec = made(tmp_path, OBJECTIVES[mode])
    found = learnt(spec, search(spec, lambda p, rng: sign * rate(p) + 0.03 * rng.normal(), 120))
    hint = next(h for h in found.hints if h.parameter == "train.lr")
    assert hint.kind == kind
    assert (
        f"{hint.good} of the {hint.of_good} best trials by {spec.objectives[0].metric}" in hint.text
    )
    assert f"against {hint.usable} of all 120" in hint.text
    ends = "0.001 to 0.00158" if kind == "widen_low" else "0.0631 to 0.1"
    assert ends in hint.text
    assert hint.usable < hint.of_usable / 4  # log-aware: a tenth of the range has few


def test_groups_that_differ_are_found_unlike() -> None:
    column = [float(i) for i in range(20)]
    assert unlike([list(range(10)), list(range(10, 20))], column) <= 0.01
    assert unlike([list(range(0, 20, 2)), list(range(1, 20, 2))], column) > 0.3
    assert unlike([list(range(20)), []], column) == 1.0


def test_an_effect_of_a_parameter_that_never_exists_is_empty(tmp_path: Path) -> None:
    spec = made(tmp_path)
    records = [
        replace(r, params={k: v for k, v in r.params.items() if k != "train.lr"})
        for r in search(spec, by_peak, 20)
    ]
    basis = basis_of(spec, records)
    assert basis is not None
    assert effect(spec.search_space.domains["train.lr"], "train.lr", basis, 0).groups == ()
