"""What a search has learnt: importances, effects and hints."""

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from ledgers import add_trial, made_search
from records import record
from rich.console import Console

from search import hints
from search.cli_search import best_command, best_tree
from search.effects import Effect, Group, Importance, basis_of, effect, same, unlike
from search.hints import Hint, chance
from search.insight import Finding, Insight, insight
from search.records import TrialRecord
from search.report import write_report
from search.results import Mode
from search.tables import print_insight, print_results
from spaces import SearchSpec, load_search_space

SPACE = """
name: made
recipe: digits
trial: {train.epochs: 9, train.warmup_epochs: 1, train.cooldown_epochs: 0}
objectives: [{metric: val_top1, mode: max}]
space:
  model.depth: {int: [1, 4]}
  model.attention: {choice: [statten, sdt, ssa]}
  model.block_size: {choice: [1, 2, 4], when: {model.attention: statten}}
  train.lr: {float: [1.0e-3, 1.0e-1], log: true}
  train.weight_decay: {float: [0.0, 0.2]}
sampler: {name: random}
stopping: {name: asha, grace_epochs: 1, reduction_factor: 3}
budget: {trials: 60}
"""
Score = Callable[[Mapping[str, Any], np.random.Generator], float]

OBJECTIVES = {
    "max": "objectives=[{metric: val_top1, mode: max}]",
    "min": "objectives=[{metric: val_loss, mode: min}]",
}


def made(folder: Path, *overrides: str, text: str = SPACE) -> SearchSpec:
    path = folder / "made.yaml"
    path.write_text(text)
    return load_search_space(path, overrides)


def rate(params: Mapping[str, Any]) -> float:
    """0 at the lowest learning rate, 1 at the highest."""
    return math.log10(params["train.lr"] / 1e-3) / 2


def search(
    spec: SearchSpec, score: Score, count: int = 60, seed: int = 0, epochs: int = 9
) -> list[TrialRecord]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        params = spec.search_space.sample(rng)
        value = score(params, rng)
        found.append(
            record(
                number,
                [value] * epochs,
                state="finished",
                params=params,
                extra_metrics={"val_loss": value},
            )
        )
    return found


def learnt(spec: SearchSpec, records: Sequence[TrialRecord]) -> Insight:
    found = insight(spec, records)
    assert found is not None
    return found


def kinds(found: Insight) -> dict[str, str]:
    return {hint.parameter: hint.kind for hint in found.hints}


def by_peak(params: Mapping[str, Any], rng: np.random.Generator) -> float:
    return 50 - 80 * (rate(params) - 0.4) ** 2 + 0.3 * rng.normal()


def by_chance(params: Mapping[str, Any], rng: np.random.Generator) -> float:
    return float(rng.normal())


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


def by_depth(params: Mapping[str, Any], rng: np.random.Generator) -> float:
    return float(params["model.depth"]) + 0.2 * rng.normal()


def test_a_bound_is_to_be_widened_only_where_that_is_valid(tmp_path: Path) -> None:
    spec = made(tmp_path)
    found = learnt(spec, search(spec, by_depth))
    assert kinds(found)["model.depth"] == "widen_high"
    shallow = learnt(spec, search(spec, lambda p, rng: -by_depth(p, rng)))
    assert kinds(shallow)["model.depth"] == "edge_low"  # no network has depth 0
    bounded = made(tmp_path, 'constraints=["model.depth <= 4"]')
    assert kinds(learnt(bounded, search(bounded, by_depth)))["model.depth"] == "edge_high"
    low = learnt(spec, search(spec, lambda p, _: -p["train.weight_decay"], 120))
    assert kinds(low)["train.weight_decay"] == "edge_low"  # it is 0 there


def test_numbers_in_a_choice_have_bounds_too(tmp_path: Path) -> None:
    spec = made(tmp_path, "space.model.depth={choice: [3, 1, 2]}")
    found = learnt(spec, search(spec, by_depth, 90))
    assert kinds(found)["model.depth"] == "widen_high"
    assert "have 3, the largest value searched" in next(
        h.text for h in found.hints if h.parameter == "model.depth"
    )


def test_a_value_that_the_good_trials_share_could_be_fixed(tmp_path: Path) -> None:
    spec = made(tmp_path)
    found = learnt(
        spec, search(spec, lambda p, rng: 5.0 * (p["model.attention"] == "sdt") + rng.normal())
    )
    hint = next(h for h in found.hints if h.parameter == "model.attention")
    assert (hint.kind, hint.good, hint.of_good) == ("fix", 12, 12)
    assert "have sdt" in hint.text


def test_trade_offs_are_good_by_all_objectives(tmp_path: Path) -> None:
    """sdt is best by accuracy, ssa by energy: neither could be fixed."""
    both = "objectives=[{metric: val_top1, mode: max}, {metric: energy_mj, mode: min}]"
    spec = made(tmp_path, both)
    rng = np.random.default_rng(0)
    records = []
    for number in range(60):
        params = spec.search_space.sample(rng)
        is_sdt, is_ssa = (float(params["model.attention"] == name) for name in ("sdt", "ssa"))
        records.append(
            record(
                number,
                [5 * is_sdt + rng.normal()] * 9,
                state="finished",
                params=params,
                extra_metrics={"energy_mj": 9 - 5 * is_ssa + rng.normal()},
            )
        )
    assert kinds(learnt(spec, records)).get("model.attention") != "fix"
    single = spec.model_copy(update={"objectives": spec.objectives[:1]})
    assert kinds(learnt(single, records))["model.attention"] == "fix"


def test_random_results_give_hardly_any_hint(tmp_path: Path) -> None:
    spec = made(tmp_path)
    none = [[Importance(key, None, None, 0) for key in spec.search_space.keys]]
    said = []
    for seed in range(20):
        basis = basis_of(spec, search(spec, by_chance, 60, seed, epochs=1))
        assert basis is not None
        said += hints.hints(spec, basis, none)
    assert len(said) <= 2, said


def test_ties_of_most_trials_say_nothing_of_bounds(tmp_path: Path) -> None:
    spec = made(tmp_path)
    found = learnt(spec, search(spec, lambda p, _: float(p["model.depth"] >= 2), 200))
    assert kinds(found).get("model.depth") is None


def test_two_good_trials_are_too_few() -> None:
    assert hints._convincing((2, 2, 2, 40), 1 / 3, 0.05) is None
    assert hints._convincing((3, 3, 3, 40), 1 / 3, 0.05) == pytest.approx(1 / 9880)


def test_what_hardly_matters_is_told_with_enough_trials(tmp_path: Path) -> None:
    spec = made(tmp_path)
    found = [kinds(learnt(spec, search(spec, by_peak, 80, seed))) for seed in range(3)]
    assert all(said.get("train.lr") != "little_effect" for said in found)
    assert any("little_effect" in said.values() for said in found)
    few = kinds(learnt(spec, search(spec, by_peak, 49)))
    assert "little_effect" not in few.values()


def test_chance_is_that_of_a_draw_without_return() -> None:
    assert chance(3, 3, 3, 10) == pytest.approx(1 / 120)
    assert chance(0, 3, 3, 10) == 1.0
    assert chance(2, 3, 5, 10) == pytest.approx(0.5)
    assert chance(4, 5, 4, 5) == 1.0


def test_groups_that_differ_are_found_unlike() -> None:
    column = [float(i) for i in range(20)]
    assert unlike([list(range(10)), list(range(10, 20))], column) <= 0.01
    assert unlike([list(range(0, 20, 2)), list(range(1, 20, 2))], column) > 0.3
    assert unlike([list(range(20)), []], column) == 1.0


ODD = '[/red] [bold]</text><script>alert("x")</script> $x_{ 漢 😀 \x1b[31m'


def odd_insight() -> Insight:
    groups = tuple(Group(value, None, None, 1.0, 0.1, 4) for value in (ODD, "$x_{$", "漢", True, 3))
    ranges = (Group(None, 0.001, 0.01, 1.0, None, 4), Group(None, 0.02, 0.1, 2.0, 0.3, 4))
    uri = "http://me:canary@host/?token=canary"
    return Insight(
        3,
        12,
        20,
        (
            Finding(
                "val_top1",
                "max",
                (
                    Importance(ODD, 0.7, 1 / 40, 12),
                    Importance("train.lr", 0.3, 0.5, 12),
                    Importance(uri, None, None, 2),
                ),
                (
                    Effect(ODD, False, groups),
                    Effect("train.lr", True, ranges),
                    Effect(uri, False, (Group(uri, None, None, 1.0, None, 1),)),
                ),
            ),
        ),
        (Hint(ODD, "fix", f"{ODD}: said, {uri}", 3, 3, 4, 12, 0.01),),
    )


def test_best_prints_names_as_they_are() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=200, color_system=None)
    print_insight(console, odd_insight())
    print_insight(console, None)
    text = stream.getvalue()
    assert f"{ODD[:20]}" in text
    assert "█" * 14 + " " in text
    assert "█" * 15 not in text
    assert "70%" in text
    assert re.search(r"train\.lr +█{6} +30% +may be chance", text)
    assert "too few trials" in text
    assert "12 of 20 trials" in text
    assert "What to search next" in text


def test_a_leaderboard_prints_values_as_they_are(tmp_path: Path) -> None:
    stream = io.StringIO()
    odd = record(0, [50.0] * 9, state="finished", params={"model.attention": "[/red]"})
    print_results(Console(file=stream, width=200), made(tmp_path), [odd], 5)
    assert "attention=[/red]" in stream.getvalue()


def test_hints_hold_no_control_characters(tmp_path: Path) -> None:
    from search.wording import printable

    assert printable("a\x1b[31m\n") == r"'a\x1b[31m\n'"
    assert printable("漢 [x]") == "漢 [x]"
    assert printable(0.00123456) == "0.00123"


def test_the_report_shows_it_and_survives_odd_names(tmp_path: Path) -> None:
    records = [record(0, [50.0] * 9, state="finished", params={"train.lr": 0.01})]
    objectives = made(tmp_path).objectives
    path = tmp_path / "report.html"
    write_report(path, "tiny", {}, records, objectives)
    before = path.read_text(encoding="utf-8")
    write_report(path, "tiny", {}, records, objectives, insight=odd_insight())
    text = path.read_text(encoding="utf-8")
    assert "What mattered" not in before
    assert text.count("<svg") == before.count("<svg") + 1 + 3
    assert "<script" not in text
    assert "canary" not in text
    assert "&lt;script&gt;" in text
    assert "What to search next" in text
    assert "70%" in text
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))


def test_best_tells_it_as_text_and_json(tmp_path: Path) -> None:
    spec, _, ledger = made_search(tmp_path)
    for number in range(7):
        add_trial(spec, ledger, (16, 24, 32)[number % 3], 4, "finished")
    few = best_tree(spec, "made", ledger.records)
    assert few["insight"] is None
    for number in range(7):
        add_trial(spec, ledger, (16, 24, 32)[number % 3], 4, "finished")
    ledger.close()
    arguments = ["made", "--runs", str(tmp_path)]
    text = CliRunner().invoke(best_command, arguments)
    assert text.exit_code == 0, text.output
    assert "What mattered for val_top1" in text.output
    assert "What mattered for energy_mj" in text.output
    assert text.output.index("Leaderboard") < text.output.index("What mattered")
    tree = json.loads(CliRunner().invoke(best_command, [*arguments, "--format", "json"]).output)
    assert tree["insight"]["trials"] == 14
    assert tree["insight"]["epoch"] == 4
    effects = tree["insight"]["objectives"][0]["effects"]
    width = next(e for e in effects if e["parameter"] == "model.width")
    assert [g["trials"] for g in width["groups"]] == [6, 4, 4]
    assert width["groups"][0]["mean"] == pytest.approx(50 + 16 + 4 / 3)


def test_an_effect_of_a_parameter_that_never_exists_is_empty(tmp_path: Path) -> None:
    spec = made(tmp_path)
    records = [
        replace(r, params={k: v for k, v in r.params.items() if k != "train.lr"})
        for r in search(spec, by_peak, 20)
    ]
    basis = basis_of(spec, records)
    assert basis is not None
    assert effect(spec.search_space.domains["train.lr"], "train.lr", basis, 0).groups == ()
