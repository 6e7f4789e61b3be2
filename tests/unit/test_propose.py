"""Proposals: valid, distinct, a pure function of seed and results."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import record

from search.propose import PROPOSERS, Params, make_proposer
from search.records import TrialRecord
from spaces import SearchSpec, load_search_space
from trainables.cost import predict_epoch_s
from trainables.samples import training_images

TEN_PERCENT_VALID = """
name: sparse
recipe: digits
space:
  model.timesteps: {int: [1, 16]}
  model.depth: {int: [1, 4]}
  model.width: {choice: [8, 16, 24, 32, 40, 48, 56, 64]}
  model.heads: {choice: [1, 2, 4, 8]}
  model.attention: {choice: [statten, sdt, ssa]}
  model.block_size: {int: [1, 8], when: {model.attention: statten}}
constraints: ["model.timesteps * model.depth <= 6", "model.width >= 8 * model.depth"]
sampler: {name: tpe, seed: 5}
budget: {trials: 60}
"""
TINY = """
name: tiny
recipe: digits
space:
  model.timesteps: {choice: [2, 4]}
  model.width: {choice: [16, 32, 64]}
sampler: {name: tpe, seed: 1}
budget: {trials: 60}
"""

# What a trial costs says nothing of how good it is.
DEAR = """
name: dear
recipe: digits
space:
  model.timesteps: {choice: [1, 2, 4, 8, 16]}
  model.depth: {int: [1, 6]}
  train.lr: {float: [1.0e-4, 1.0e-1], log: true}
sampler: {name: gp, seed: 5}
budget: {trials: 60}
"""


def load(tmp_path: Path, text: str, *overrides: str) -> SearchSpec:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return load_search_space(path, overrides)


def quality(params: Mapping[str, Any]) -> float:
    """Any deterministic function of the parameters with a clear best."""
    return float(params["model.width"] - 10.0 * abs(params["model.timesteps"] - 4))


def propose_all(
    spec: SearchSpec, trials: int, score: Callable[[Params], float] = quality
) -> list[TrialRecord]:
    """Run a search one trial at a time; every trial reports its score at once."""
    proposer = make_proposer(spec, (2,))
    records: list[TrialRecord] = []
    for number in range(trials):
        params = proposer.propose(records)
        if params is None:
            break
        values = [score(params)] * 8
        records.append(record(number, values, state="finished", params=params))
    return records


@pytest.mark.parametrize("sampler", sorted(PROPOSERS))
def test_every_sampler_proposes_valid_distinct_points_of_a_sparse_space(
    tmp_path: Path, sampler: str
) -> None:
    spec = load(tmp_path, TEN_PERCENT_VALID, f"sampler.name={sampler}")
    space = spec.search_space
    assert space.valid_share(np.random.default_rng(0)) < 0.2
    records = propose_all(spec, 60)
    assert len(records) == 60
    assert len({space.key(r.params) for r in records}) == 60
    for known in records:
        assert not space.problems(known.params)
        spec.trial_config(known.params)  # pydantic's own opinion


@pytest.mark.parametrize("sampler", sorted(PROPOSERS))
def test_every_sampler_ends_when_the_space_is_exhausted(tmp_path: Path, sampler: str) -> None:
    spec = load(tmp_path, TINY, f"sampler.name={sampler}")
    records = propose_all(spec, 60)
    assert len(records) == 6
    assert len({spec.search_space.key(r.params) for r in records}) == 6


@pytest.mark.parametrize("sampler", sorted(PROPOSERS))
def test_the_same_seed_proposes_the_same_wherever_it_is_interrupted(
    tmp_path: Path, sampler: str
) -> None:
    spec = load(tmp_path, TEN_PERCENT_VALID, f"sampler.name={sampler}")
    history = propose_all(spec, 30)
    for cut in (1, 7, 19, 29):
        fresh = make_proposer(spec, (2,))  # as a new process would build it
        assert fresh.propose(history[:cut]) == history[cut].params
    other = load(tmp_path, TEN_PERCENT_VALID, f"sampler.name={sampler}", "sampler.seed=6")
    assert [r.params for r in propose_all(other, 10)] != [r.params for r in history[:10]]


@pytest.mark.parametrize("sampler", sorted(PROPOSERS))
def test_what_a_sampler_remembers_changes_nothing(tmp_path: Path, sampler: str) -> None:
    """One that has seen other records, more of them or later states, proposes as a fresh one."""
    spec = load(tmp_path, TEN_PERCENT_VALID, f"sampler.name={sampler}")
    history = propose_all(spec, 30)
    warm = make_proposer(spec, (2,))
    warm.propose(history)
    running = [replace(r, state="running", epochs=r.epochs[:2]) for r in history[:20]]
    moved = [replace(r, params=history[-1 - r.number].params) for r in history]
    for records in (history[:12], running, moved, history, []):
        assert warm.propose(records) == make_proposer(spec, (2,)).propose(records)


@pytest.mark.parametrize("name", ["gp", "tpe", "nsga2"])
def test_models_prefer_what_did_well(tmp_path: Path, name: str) -> None:
    means = {}
    for name_ in (name, "random"):
        spec = load(tmp_path, TEN_PERCENT_VALID, f"sampler.name={name_}")
        late: list[float] = []
        for seed in range(4):
            seeded: Any = spec.model_copy(
                update={"sampler": spec.sampler.model_copy(update={"seed": seed})}
            )
            late += [quality(r.params) for r in propose_all(seeded, 45)[25:]]
        means[name_] = sum(late) / len(late)
    assert means[name] > means["random"] + 5.0


def test_the_better_of_two_has_children(tmp_path: Path) -> None:
    """Of 15 parents that differ in width alone, the best third has more than its share."""
    text = TEN_PERCENT_VALID[: TEN_PERCENT_VALID.index("space:")] + (
        "space:\n  model.width: {int: [8, 2000], step: 8}\nbudget: {trials: 60}\n"
    )
    spec = load(tmp_path, text, "sampler.name=nsga2")
    records = [
        record(i, [float(i)] * 2, state="finished", params={"model.width": 8 + 136 * i})
        for i in range(15)
    ]
    near = 0
    for seed in range(60):
        seeded = load(tmp_path, text, "sampler.name=nsga2", f"sampler.seed={seed}")
        params = make_proposer(seeded, (2,)).propose(records)
        assert params is not None
        near += params["model.width"] > 8 + 136 * 9.5
    assert spec.search_space.cardinality() == 250
    assert near > 60 / 3 + 8


def test_tpe_models_one_rung_and_ignores_lower_ones(tmp_path: Path) -> None:
    spec = load(tmp_path, TEN_PERCENT_VALID)
    proposer = make_proposer(spec, (2,))
    ended = propose_all(spec, 15)
    young = [
        record(15 + i, [1000.0], params={**r.params, "model.depth": 1}) for i, r in enumerate(ended)
    ]
    changed = [
        record(15 + i, [-1000.0], params={**r.params, "model.depth": 1})
        for i, r in enumerate(ended)
    ]
    assert proposer.propose([*ended, *young]) == proposer.propose([*ended, *changed])


@pytest.mark.parametrize("name", ["gp", "tpe"])
def test_models_keep_away_from_failures(tmp_path: Path, name: str) -> None:
    """Wide networks fail; without telling the sampler so, it would like them as any other."""
    share = {}
    for told in (True, False):
        wide = 0
        for seed in range(4):
            spec = load(tmp_path, TEN_PERCENT_VALID, f"sampler.seed={seed}", f"sampler.name={name}")
            proposer = make_proposer(spec, (2,))
            records: list[TrialRecord] = []
            for number in range(40):
                params = proposer.propose(records)
                assert params is not None
                fails = params["model.width"] >= 40
                wide += fails and number >= 15
                if fails:
                    hidden = record(number, [], state="failed", params=params)
                    records.append(hidden if told else replace(hidden, state="running"))
                else:
                    records.append(record(number, [50.0] * 8, state="finished", params=params))
        share[told] = wide
    assert share[True] < share[False]


TWO_OBJECTIVES = TEN_PERCENT_VALID.replace(
    "sampler:",
    "objectives: [{metric: val_top1, mode: max}, {metric: energy_mj, mode: min}]\nsampler:",
)


def test_gp_spreads_over_the_trade_off_of_two_objectives(tmp_path: Path) -> None:
    """Width buys accuracy and costs energy, timesteps cost energy only."""
    spec = load(tmp_path, TWO_OBJECTIVES, "sampler.name=gp")
    proposer = make_proposer(spec, (2,))
    records: list[TrialRecord] = []
    for number in range(50):
        params = proposer.propose(records)
        assert params is not None
        width, steps = params["model.width"], params["model.timesteps"]
        energy = {"energy_mj": width * (1.0 + steps)}
        values = [float(width)] * 8
        records.append(
            record(number, values, state="finished", params=params, extra_metrics=energy)
        )
    late = [r.params for r in records[20:]]
    assert sum(p["model.timesteps"] == 1 for p in late) > len(late) / 2
    assert len({p["model.width"] for p in late if p["model.timesteps"] == 1}) >= 4


def test_gp_counts_broken_outcome_constraints_as_bad(tmp_path: Path) -> None:
    """The widest networks are the best but take too much energy."""
    wide = {}
    for bound in ("energy_mj <= 32", "energy_mj <= 1000"):
        text = TEN_PERCENT_VALID.replace('"model.width >=', f'"{bound}", "model.width >=')
        proposer = make_proposer(load(tmp_path, text, "sampler.name=gp"), (2,))
        records: list[TrialRecord] = []
        for number in range(45):
            params = proposer.propose(records)
            assert params is not None
            width = float(params["model.width"])
            records.append(
                record(
                    number,
                    [width] * 8,
                    state="finished",
                    params=params,
                    extra_metrics={"energy_mj": width},
                )
            )
        wide[bound] = sum(r.params["model.width"] > 32 for r in records[20:])
    assert wide["energy_mj <= 32"] < wide["energy_mj <= 1000"] / 2


def test_gp_learns_from_running_trials_and_does_not_repeat_them(tmp_path: Path) -> None:
    spec = load(tmp_path, TEN_PERCENT_VALID, "sampler.name=gp")
    proposer = make_proposer(spec, (2,))
    records = [replace(r, state="running", epochs=r.epochs[:2]) for r in propose_all(spec, 20)]
    late: list[float] = []
    for number in range(20, 40):
        params = proposer.propose(records)
        assert params is not None
        late.append(quality(params))
        records.append(record(number, [], params=params))  # reports nothing yet
    early = [quality(r.params) for r in records[:10]]
    assert sum(late) / 20 > sum(early) / 10
    assert len({spec.search_space.key(r.params) for r in records}) == 40


def test_what_may_gain_is_weighed_against_what_it_costs(tmp_path: Path) -> None:
    spent = {}
    for aware in ("false", "true"):
        spec = load(tmp_path, DEAR, f"sampler.cost_aware={aware}")
        records = propose_all(spec, 30, lambda params: -abs(np.log(params["train.lr"]) + 6.0))
        space = spec.search_space
        assert not any(space.problems(dict(r.params)) for r in records)
        assert len({space.key(r.params) for r in records}) == len(records)
        configs = [spec.trial_config(dict(r.params)) for r in records[12:]]
        spent[aware] = sum(predict_epoch_s(c, training_images(c.data)) for c in configs)
    assert spent["true"] < 0.7 * spent["false"]
