"""Proposals after hundreds of trials: models are shared, points stay valid and distinct."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import record
from test_propose import load
from test_spaces_space import HUGE, build

from search.fronts import _dominated
from search.problem import Problem
from search.propose import make_proposer, proposer_for
from search.records import TrialRecord, TrialState
from spaces.schema import Objective

COUPLED = (
    "params_m <= 12",
    "train.warmup_epochs < train.epochs",
    "train.cooldown_epochs < train.epochs // 10",
    "train.batch_size == model.timesteps * model.width",
    "train.min_lr <= train.lr / 10",
)
OBJECTIVES = (
    Objective(metric="val_top1", mode="max"),
    Objective(metric="energy_mj", mode="min"),
)
CONTINUOUS = """
name: long
recipe: digits
space:
  model.timesteps: {choice: [1, 2, 4, 8]}
  train.lr: {float: [1.0e-4, 1.0e-1], log: true}
  train.weight_decay: {float: [0.0, 0.2]}
sampler: {name: gp, seed: 5}
budget: {trials: 400}
"""


def reported(number: int, params: dict[str, object], rng: np.random.Generator) -> TrialRecord:
    epochs = int(rng.choice([1, 3, 9], p=[0.6, 0.25, 0.15]))
    state: TrialState = "finished" if epochs == 9 else "stopped"
    return record(number, [float(rng.random())] * epochs, state=state, params=params)


@pytest.mark.parametrize(("sampler", "objectives"), [("gp", 1), ("nsga2", 2), ("qmc", 1)])
def test_hundreds_of_points_of_a_huge_coupled_space_are_valid_and_distinct(
    sampler: str, objectives: int
) -> None:
    space = build(HUGE, *COUPLED)
    problem = Problem(space, OBJECTIVES[:objectives], (), (1, 3, 9), 0)
    proposer, rng = proposer_for(sampler, problem), np.random.default_rng(1)
    records: list[TrialRecord] = []
    for number in range(300):
        params = proposer.propose(records)
        assert params is not None
        assert not space.problems(params)
        records.append(reported(number, params, rng))
    assert len({space.key(known.params) for known in records}) == 300


@pytest.mark.parametrize("sampler", ["gp", "nsga2"])
def test_a_search_resumed_between_two_models_proposes_the_same(
    tmp_path: Path, sampler: str
) -> None:
    spec = load(tmp_path, CONTINUOUS, f"sampler.name={sampler}")
    proposer, rng = make_proposer(spec, (1, 3)), np.random.default_rng(1)
    records: list[TrialRecord] = []
    for number in range(262):
        params = proposer.propose(records)
        assert params is not None
        if number in {127, 128, 129, 131, 255, 257, 259, 261}:
            assert make_proposer(spec, (1, 3)).propose(records) == params
        records.append(reported(number, params, rng))


def test_models_are_shared_by_more_proposals_the_more_trials_there_are(tmp_path: Path) -> None:
    spec = load(tmp_path, CONTINUOUS)
    proposer = make_proposer(spec, (1, 3))
    made: list[int] = []
    shared = proposer._shared  # type: ignore[attr-defined]  # of model-based proposers only
    make: Callable[..., object] = shared._make

    def counted(records: list[TrialRecord], rng: np.random.Generator) -> object:
        made.append(len(records))
        return make(records, rng)

    shared._make = counted
    rng = np.random.default_rng(1)
    records: list[TrialRecord] = []
    for number in range(264):
        params = proposer.propose(records)
        assert params is not None
        records.append(reported(number, params, rng))
    assert made == [*range(128), *range(128, 256, 2), 256, 260]


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1), st.integers(1, 3))
def test_dominated_rows_are_those_that_another_row_beats(rows: list[list[int]], width: int) -> None:
    losses = np.array(rows, dtype=float)[:, :width]
    for index, beaten in enumerate(_dominated(losses)):
        better = [np.all(row <= losses[index]) and np.any(row < losses[index]) for row in losses]
        assert beaten == any(better)


def test_what_an_equation_determines_is_mended_alone() -> None:
    space = build(HUGE, *COUPLED)
    rng = np.random.default_rng(3)
    for _ in range(20):
        params = space.sample(rng)
        broken = params | {"train.batch_size": params["train.batch_size"] - 1}
        if broken["train.batch_size"] < 1 or space.allows(broken):
            continue
        mended = space.repair(broken, rng)
        assert space.allows(mended)
        changed = {key for key in mended if mended[key] != params[key]}
        assert len(changed - {"train.batch_size"}) <= 1


def test_what_is_allowed_has_no_problem() -> None:
    space = build(HUGE, *COUPLED[1:3])
    rng = np.random.default_rng(2)
    verdicts = set()
    for _ in range(300):
        params = space.raw(rng) if rng.random() < 0.5 else space.sample(rng)
        if rng.random() < 0.3:
            params.pop(str(rng.choice(sorted(params))))
        if rng.random() < 0.3:
            params["model.depth"] = int(rng.choice([-1, 0, 1, 2000]))
        verdicts.add(space.allows(params))
        assert space.allows(params) == (not space.problems(params))
    assert verdicts == {True, False}
