import ast
import itertools
import tracemalloc
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from spaces.domains import AnyDomain, Domain
from spaces.drawing import NoValidPointError
from spaces.space import SearchSpace
from trainables.config import TrialConfig, flatten, with_overrides
from trainables.cost import parameter_count, total_macs

DOMAINS: TypeAdapter[dict[str, AnyDomain]] = TypeAdapter(dict[str, Domain])
TREE = TrialConfig().model_dump()
BASE = flatten(TREE)


def build(domains: Mapping[str, Any], *constraints: str) -> SearchSpace:
    return SearchSpace(DOMAINS.validate_python(domains), BASE, constraints)


def is_valid(space: SearchSpace, params: Mapping[str, Any]) -> bool:
    """Judge by the configuration classes and plain Python alone."""
    try:
        config = TrialConfig.model_validate(with_overrides(TREE, params))
    except ValidationError:
        return False
    flat = flatten(config.model_dump())
    names: dict[str, Any] = {key.replace(".", "_"): value for key, value in flat.items()}
    names["params_m"] = parameter_count(config.model) / 1e6
    names["macs_g"] = total_macs(config.model) / 1e9
    for text in space.constraints:
        plain = text
        for key in flat:
            plain = plain.replace(key, key.replace(".", "_"))
        try:
            if not eval(compile(ast.parse(plain, mode="eval"), "", "eval"), {}, names):
                return False
        except ZeroDivisionError:
            return False
    return True


def brute_force(space: SearchSpace) -> list[dict[str, Any]]:
    """List all points by trying every subset-free combination and dropping inactive keys."""
    keys = list(space.keys)
    points = {}
    for values in itertools.product(*(list(space.domains[key].values()) for key in keys)):
        params = dict(zip(keys, values, strict=True))
        changed = True
        while changed:
            inactive = [
                key
                for key in params
                if any(
                    (params[p] if p in params else None if p in space.domains else BASE[p])
                    not in values_
                    for p, values_ in space.domains[key].when.items()
                )
            ]
            changed = bool(inactive)
            for key in inactive:
                del params[key]
        points[str(sorted(params.items()))] = params
    return list(points.values())


CONSTRAINTS = [
    "model.timesteps % model.block_size == 0",
    "model.depth < model.timesteps",
    "model.depth * model.timesteps <= 8",
    "params_m <= 1",
    "macs_g < 0.2 or model.depth == 1",
    "model.heads == model.depth * 2",
    "6 / (model.depth - 2) > 1",
    "model.attention in ['sdt', 'ssa'] or model.depth > 1",
    "train.warmup_epochs < train.epochs",
    "min(model.depth, 3) >= train.warmup_epochs",
]


@st.composite
def small_spaces(draw: st.DrawFn) -> SearchSpace:
    pool: dict[str, dict[str, Any]] = {
        "model.timesteps": {"int": [1, draw(st.integers(1, 6))]},
        "model.depth": {"int": [1, 3]},
        "model.width": {"choice": draw(st.sampled_from([[8, 12, 64], [64], [32, 256]]))},
        "model.heads": {"choice": [1, 2, 4, 6]},
        "model.attention": {"choice": ["statten", "sdt", "ssa"]},
        "model.block_size": {"int": [1, draw(st.integers(1, 4))]},
        "train.epochs": {"int": [2, 6], "step": 2},
        "train.warmup_epochs": {"int": [0, 3]},
    }
    keys = draw(st.lists(st.sampled_from(sorted(pool)), min_size=1, max_size=5, unique=True))
    domains = {key: pool[key] for key in keys}
    if "model.attention" in domains and "model.block_size" in domains and draw(st.booleans()):
        domains["model.block_size"]["when"] = {"model.attention": ["statten"]}
    if "model.depth" in domains and "model.heads" in domains and draw(st.booleans()):
        domains["model.heads"]["when"] = {"model.depth": [2, 3]}
    if "model.heads" in domains and "train.warmup_epochs" in domains and draw(st.booleans()):
        domains["train.warmup_epochs"]["when"] = {"model.heads": [1, 4], "model.neuron": "lif"}
    constraints = draw(st.lists(st.sampled_from(CONSTRAINTS), max_size=3, unique=True))
    return build(domains, *constraints)


@settings(deadline=None, max_examples=40)
@given(small_spaces(), st.integers(0, 2**32))
def test_listing_sampling_and_checking_agree_with_brute_force(
    space: SearchSpace, seed: int
) -> None:
    everything = brute_force(space)
    valid = {space.key(params) for params in everything if is_valid(space, params)}
    assert space.cardinality() == len(everything)
    listed = list(space.enumerate_valid())
    assert len(listed) == len(valid)
    assert {space.key(params) for params in listed} == valid
    for params in everything:
        assert (space.problems(params) == []) == (space.key(params) in valid)
    rng = np.random.default_rng(seed)
    assert space.valid_share(rng) == len(valid) / len(everything)
    if not valid:
        with pytest.raises(NoValidPointError):
            space.sample(rng)
        return
    for _ in range(20):
        assert space.key(space.sample(rng)) in valid
    broken = space.raw(rng)
    assert space.key(space.repair(broken, rng)) in valid


@settings(deadline=None, max_examples=30)
@given(small_spaces(), st.integers(0, 2**32))
def test_neighbours_are_valid_and_differ_in_one_parameter(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    try:
        params = space.sample(rng)
    except NoValidPointError:
        assume(False)
    switches = {parent for domain in space.domains.values() for parent in domain.when}
    for neighbour in itertools.islice(space.neighbours(params, rng), 20):
        assert space.problems(neighbour) == []
        changed = {k for k in params.keys() & neighbour.keys() if params[k] != neighbour[k]}
        assert len(changed) == 1
        if params.keys() != neighbour.keys():
            assert changed <= switches


def test_every_valid_point_is_drawn_about_equally_often() -> None:
    space = build({"model.timesteps": {"int": [1, 8]}, "model.block_size": {"int": [1, 8]}})
    rng = np.random.default_rng(0)
    counts: dict[str, int] = {}
    for _ in range(4000):
        key = space.key(space.sample(rng))
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 20
    assert 120 < min(counts.values()) <= max(counts.values()) < 290


def test_a_tenth_valid_gives_sixty_distinct_points() -> None:
    space = build(
        {"model.depth": {"int": [1, 30]}, "train.epochs": {"int": [1, 30]}},
        "model.depth * train.epochs <= 32",
    )
    rng = np.random.default_rng(1)
    assert 0.08 < space.valid_share(rng) < 0.15
    points = {space.key(space.sample(rng)) for _ in range(600)}
    assert len(points) >= 60


def test_rare_points_are_listed_and_drawn_evenly() -> None:
    space = build(
        {"model.depth": {"int": [1, 100]}, "train.epochs": {"int": [1, 100]}},
        "model.depth == 2 * train.epochs",
        "train.epochs <= 4",
    )
    rng = np.random.default_rng(1)
    assert {space.key(space.sample(rng)) for _ in range(100)} == {
        space.key(params) for params in space.enumerate_valid()
    }


HUGE = {
    "model.timesteps": {"int": [1, 64]},
    "model.block_size": {"int": [1, 64], "when": {"model.attention": "statten"}},
    "model.width": {"int": [8, 1024]},
    "model.heads": {"int": [1, 64]},
    "model.depth": {"int": [1, 1000]},
    "model.mlp_ratio": {"int": [1, 16]},
    "model.attention": {"choice": ["statten", "sdt"]},
    "train.epochs": {"int": [1, 10_000]},
    "train.warmup_epochs": {"int": [0, 10_000]},
    "train.cooldown_epochs": {"int": [0, 10_000]},
    "train.batch_size": {"int": [1, 100_000]},
    "train.seed": {"int": [0, 2**32 - 1]},
    "train.lr": {"float": [1e-5, 1e-1], "log": True},
    "train.min_lr": {"float": [0.0, 1e-1]},
}


def test_a_huge_coupled_space_works_in_little_memory() -> None:
    space = build(
        HUGE,
        "params_m <= 12",
        "train.warmup_epochs < train.epochs",
        "train.cooldown_epochs < train.epochs // 10",
        "train.batch_size == model.timesteps * model.width",
        "train.min_lr <= train.lr / 10",
    )
    finite = {
        key: domain for key, domain in HUGE.items() if "float" not in cast(dict[str, Any], domain)
    }
    assert build(finite).cardinality() > 10**30
    rng = np.random.default_rng(0)
    space.sample(rng)
    tracemalloc.start()
    points = [space.sample(rng) for _ in range(100)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20
    assert all(is_valid(space, params) for params in points)
    assert len({space.key(params) for params in points}) == 100
    assert next(build(finite).enumerate_valid(1))


def test_sampling_depends_on_the_generator_only() -> None:
    one, two = build(HUGE, "params_m <= 12"), build(HUGE, "params_m <= 12")
    two.sample(np.random.default_rng(5))
    first = [one.sample(np.random.default_rng(7)) for _ in range(3)]
    assert first == [two.sample(np.random.default_rng(7)) for _ in range(3)]


def test_domains_are_covered_to_both_ends() -> None:
    space = build(
        {
            "model.depth": {"int": [1, 8], "log": True},
            "train.epochs": {"int": [10, 50], "step": 20},
            "train.lr": {"float": [1e-4, 1e-2], "log": True},
        }
    )
    rng = np.random.default_rng(0)
    points = [space.sample(rng) for _ in range(400)]
    assert {p["model.depth"] for p in points} == set(range(1, 9))
    assert {p["train.epochs"] for p in points} == {10, 30, 50}
    rates = np.array([p["train.lr"] for p in points])
    assert rates.min() >= 1e-4
    assert rates.max() <= 1e-2
    assert 0.4 < (rates < 1e-3).mean() < 0.6


@pytest.mark.parametrize(
    ("params", "part"),
    [
        ({}, "must be set"),
        ({"model.attention": "sdt", "model.block_size": 2}, "must be absent"),
        ({"model.attention": "statten"}, "model.block_size must be set"),
        ({"model.attention": "ssa"}, "must be in choice statten, sdt"),
        ({"model.attention": "nope"}, "must be one of"),
        ({"model.attention": "sdt", "x": 1}, "unknown parameter 'x'"),
        ({"model.attention": "statten", "model.block_size": 3}, "timesteps % block_size"),
        ({"model.attention": "statten", "model.block_size": 1}, "`model.block_size > 1`"),
        ({"model.attention": "statten", "model.block_size": 2.0}, "integer"),
        ({"model.attention": "statten", "model.block_size": True}, "integer"),
    ],
)
def test_problems_say_what_is_wrong(params: dict[str, Any], part: str) -> None:
    space = build(
        {
            "model.attention": {"choice": ["statten", "sdt"]},
            "model.block_size": {"int": [1, 4], "when": {"model.attention": "statten"}},
        },
        "model.block_size > 1",
    )
    found = space.problems(params)
    assert any(part in problem for problem in found), found


def test_a_child_of_an_inactive_parameter_is_inactive() -> None:
    space = build(
        {
            "train.epochs": {"int": [1, 2], "when": {"model.depth": 2}},
            "model.depth": {"int": [1, 3], "when": {"model.neuron": "plif"}},
            "model.neuron": {"choice": ["lif", "plif"]},
        }
    )
    assert space.keys == ("model.neuron", "model.depth", "train.epochs")
    assert space.active_keys({"model.neuron": "lif", "model.depth": 2}) == {"model.neuron"}
    assert space.cardinality() == 1 + 2 + 2


def test_equal_configurations_have_equal_keys() -> None:
    space = build(
        {
            "train.lr": {"choice": [1.0, 0.5]},
            "model.attention": {"choice": ["statten", "sdt"]},
            "model.block_size": {"int": [1, 4], "when": {"model.attention": "statten"}},
        }
    )
    one = space.key({"train.lr": 1, "model.attention": "sdt"})
    assert one == space.key({"model.attention": "sdt", "train.lr": 1.0, "model.block_size": 3})
    assert one != space.key({"train.lr": 0.5, "model.attention": "sdt"})


def test_an_int_range_may_fill_a_float_field() -> None:
    space = build({"train.weight_decay": {"int": [0, 2]}})
    assert [p["train.weight_decay"] for p in space.enumerate_valid()] == [0.0, 1.0, 2.0]
    assert space.problems({"train.weight_decay": 1}) == []
    assert space.problems({"train.weight_decay": 1.5}) != []


def test_a_continuous_space_cannot_be_listed() -> None:
    space = build({"train.lr": {"float": [0.1, 0.2]}})
    assert space.cardinality() == float("inf")
    with pytest.raises(ValueError, match="finite"):
        space.enumerate_valid()
    assert build({"train.lr": {"float": [0.1, 0.1]}}).cardinality() == 1


def test_counting_understands_shared_parents() -> None:
    space = build(
        {
            "model.depth": {"int": [1, 1000]},
            "model.heads": {"int": [1, 10], "when": {"model.depth": [1, 2, 3]}},
            "train.epochs": {"int": [1, 7], "when": {"model.depth": [3, 4]}},
            "train.seed": {"int": [0, 99]},
        }
    )
    assert space.cardinality() == 100 * (2 * 10 + 1 * 10 * 7 + 1 * 7 + 996)


def test_outcome_constraints_are_no_part_of_a_space() -> None:
    with pytest.raises(ValueError, match="measured"):
        build({"model.depth": {"int": [1, 2]}}, "val_loss < 1")
