"""The Pareto set against the recipe: measured where a trial has trained it, else computed."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ledgers import made_spec
from records import record
from rich.console import Console

from search.against import against_recipe
from search.cli_search import best_tree
from search.records import TrialRecord, TrialState
from search.tables import print_against
from spaces.reading import recipe
from spaces.schema import SearchSpec
from trainables.cost import parameter_count, total_macs

SPACE = """
name: made
recipe: cifar10
trial: {train.epochs: 4, train.warmup_epochs: 0, train.cooldown_epochs: 0}
objectives:
  - {metric: val_top1, mode: max}
  - {metric: energy_mj, mode: min}
space:
  model.timesteps: {choice: [2, 4]}
  model.width: {choice: [128, 256, 512]}
  model.attention: {choice: [statten, sdt]}
  model.block_size: {choice: [1, 2], when: {model.attention: statten}}
  train.lr: {float: [1.0e-4, 1.0e-2], log: true}
budget: {trials: 12}
"""
PAPER = {
    "model.timesteps": 4,
    "model.width": 256,
    "model.attention": "statten",
    "model.block_size": 2,
    "train.lr": 3.0e-4,
}
SMALL = {"model.timesteps": 2, "model.width": 128, "model.attention": "sdt", "train.lr": 1.0e-3}


@pytest.fixture
def spec(tmp_path: Path) -> SearchSpec:
    return made_spec(tmp_path, text=SPACE)


def trial(
    spec: SearchSpec,
    number: int,
    params: dict[str, Any],
    top1: float,
    energy: float,
    state: TrialState = "finished",
) -> TrialRecord:
    made = record(number, [top1], state=state, params=params, extra_metrics={"energy_mj": energy})
    return replace(made, config=spec.trial_config(params).model_dump(mode="json"))


def test_a_trial_of_the_recipe_gives_measured_differences(spec: SearchSpec) -> None:
    records = [trial(spec, 0, SMALL, 90.0, 0.5), trial(spec, 1, PAPER, 92.5, 2.0)]
    found = against_recipe(spec, records)
    assert found is not None
    assert (found.recipe, found.trial) == ("cifar10", records[1])
    same, small = found.members
    assert same.record is records[1]
    assert (same.points, same.ratios) == ({"val_top1": 0.0}, {"energy_mj": 1.0})
    assert (same.params_ratio, same.macs_ratio, same.differences) == (1.0, 1.0, ())
    assert (small.points, small.ratios) == ({"val_top1": -2.5}, {"energy_mj": 0.25})
    paper = recipe("cifar10").model
    model = paper.model_copy(update={"timesteps": 2, "width": 128, "attention": "sdt"})
    assert small.params_ratio == parameter_count(model) / parameter_count(paper)
    assert small.macs_ratio == total_macs(model) / total_macs(paper)
    assert {d.key: (d.value, d.reference) for d in small.differences} == {
        "model.timesteps": (2, 4),
        "model.width": (128, 256),
        "model.attention": ("sdt", "statten"),
        "train.lr": (1.0e-3, 3.0e-4),
    }


@pytest.mark.parametrize(
    "changed",
    [{"model.width": 128}, {"train.lr": 2.9e-4}, {"model.block_size": 1}],
    ids=["network", "rate", "block size"],
)
def test_a_trial_that_differs_in_one_setting_is_not_the_recipe(
    spec: SearchSpec, changed: dict[str, Any]
) -> None:
    found = against_recipe(spec, [trial(spec, 0, PAPER | changed, 90.0, 1.0)])
    assert found is not None
    assert found.trial is None
    assert (found.members[0].points, found.members[0].ratios) == ({}, {})
    assert [(d.key, d.value) for d in found.members[0].differences] == list(changed.items())


def test_a_recipe_that_failed_or_still_runs_is_no_reference(spec: SearchSpec) -> None:
    states: tuple[TrialState, ...] = ("failed", "running")
    for state in states:
        records = [trial(spec, 0, SMALL, 90.0, 0.5), trial(spec, 1, PAPER, 92.5, 2.0, state)]
        found = against_recipe(spec, records)
        assert found is not None
        assert found.trial is None


def test_another_published_network_that_was_trained_is_one(spec: SearchSpec) -> None:
    records = [
        trial(spec, 0, SMALL, 90.0, 0.5),
        trial(spec, 1, PAPER | {"model.width": 512}, 93, 9),
    ]
    found = against_recipe(spec, records)
    assert found is not None
    assert (found.recipe, found.trial) == ("cifar10_2_512", records[1])


def test_the_block_size_of_other_attention_is_no_difference(spec: SearchSpec) -> None:
    small = trial(spec, 0, SMALL, 90.0, 0.5)
    model = {**small.config["model"], "block_size": 1}
    found = against_recipe(spec, [replace(small, config={**small.config, "model": model})])
    assert found is not None
    assert "model.block_size" not in {d.key for d in found.members[0].differences}


def test_without_a_result_there_is_nothing_to_compare(spec: SearchSpec) -> None:
    assert against_recipe(spec, []) is None


def test_best_prints_it_and_has_it_in_its_json(spec: SearchSpec) -> None:
    records = [trial(spec, 0, SMALL, 90.0, 0.5), trial(spec, 1, PAPER, 92.5, 2.0)]
    console = Console(file=io.StringIO(), width=160)
    with console.capture() as shown:
        print_against(console, spec, against_recipe(spec, records))
    lines = [" ".join(line.split()) for line in shown.get().splitlines()]
    assert (
        "Compared with trial 00001, the network and rates of the recipe cifar10 (1 of 4 epochs)."
        in lines
    )
    assert "00001 +0.00 points ×1 ×1 ×1 nothing" in lines
    (small,) = [line for line in lines if line.startswith("00000")]
    assert small.startswith("00000 -2.50 points ×0.25 ×0.2")
    assert "timesteps 2 instead of 4, width 128 instead of 256, attention sdt instead of" in small
    tree = json.loads(json.dumps(best_tree(spec, "made", records)))["against_recipe"]
    assert (tree["recipe"], tree["trial"]) == ("cifar10", 1)
    assert tree["members"][1]["points"] == {"val_top1": -2.5}
    assert tree["members"][1]["differences"][0] == {
        "key": "model.timesteps", "value": 2, "reference": 4,
    }  # fmt: skip
