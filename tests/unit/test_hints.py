"""What to search next."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learning import by_chance, by_peak, kinds, learnt, made, search
from records import record

from search import hints
from search.effects import Importance, basis_of
from search.hints import Hint, chance


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
    said: list[Hint] = []
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
