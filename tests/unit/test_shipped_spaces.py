from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import spaces
from search.cli_check import check_command
from spaces import load_search_space
from spaces.fields import convert
from spaces.reading import recipe, recipe_names
from spaces.rules import holds
from trainables.config import flatten
from trainables.data_cards import CARDS

SPACES = sorted(Path(spaces.__file__).parent.glob("*.yaml"))
AXES = {f"model.{name}" for name in ("timesteps", "depth", "width", "block_size", "attention")}

shipped = pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)


def test_every_data_set_has_a_space_and_a_recipe() -> None:
    found = {load_search_space(path).base_config.data.name for path in SPACES}
    assert found == CARDS.keys()
    assert {recipe(name).data.name for name in recipe_names()} == CARDS.keys()


@shipped
def test_a_file_is_named_after_what_it_searches(path: Path) -> None:
    spec = load_search_space(path)
    assert spec.name == spec.base_config.data.name == spec.tracking.experiment == path.stem


@shipped
def test_the_five_axes_vary(path: Path) -> None:
    spec = load_search_space(path)
    domains = spec.search_space.domains
    fixed = {"model.timesteps"} if CARDS[spec.base_config.data.name].is_sequence else set()
    assert AXES - domains.keys() == fixed
    assert all(domains[key].size > 1 for key in AXES - fixed)
    assert domains["model.block_size"].when == {"model.attention": ("statten",)}
    if fixed:
        assert spec.base_config.model.timesteps == spec.base_config.model.image_size


@shipped
def test_objectives_are_accuracy_and_energy(path: Path) -> None:
    spec = load_search_space(path)
    assert [(o.metric, o.mode) for o in spec.objectives] == [
        ("val_top1", "max"),
        ("energy_mj", "min"),
    ]


@shipped
def test_trials_can_be_stopped_early_but_not_in_warm_up(path: Path) -> None:
    spec = load_search_space(path)
    train = spec.base_config.train
    grace = spec.stopping.grace_epochs
    assert isinstance(grace, int)
    assert train.warmup_epochs < grace
    assert 2 * grace < train.total_epochs


@shipped
def test_every_recipe_of_the_data_set_is_a_point(path: Path) -> None:
    spec = load_search_space(path)
    space = spec.search_space
    assert space.problems(recipe_point(path, spec.recipe)) == []
    for name in recipe_names():
        config = recipe(name)
        if config.data.name == path.stem:
            point = space.point(flatten(config.model_dump()))
            broken = [rule.text for rule in space.rules if not holds(rule, point)]
            assert broken == [], name


def recipe_point(path: Path, name: str) -> dict[str, object]:
    space = load_search_space(path).search_space
    values = flatten(recipe(name).model_dump())
    active = space.active_keys(values)
    return {key: convert(key, values[key]) for key in space.keys if key in active}


@shipped
def test_samples_are_valid_and_differ(path: Path) -> None:
    spec = load_search_space(path)
    space, rng = spec.search_space, np.random.default_rng(1)
    drawn = [space.sample(rng) for _ in range(20)]
    assert len({space.key(params) for params in drawn}) >= 10
    for params in drawn:
        assert space.problems(params) == []
        spec.trial_config(params)


@shipped
def test_check_says_all_of_it_without_data(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPIKETUNE_DATA", raising=False)
    result = CliRunner().invoke(check_command, [str(path)])
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "narrow the domains" not in result.stdout
