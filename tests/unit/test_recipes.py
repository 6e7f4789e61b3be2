from pathlib import Path

import pytest
import yaml

import trainables
from trainables.config import TrialConfig, flatten
from trainables.cost import parameter_count
from trainables.data_cards import CARDS

RECIPES = sorted((Path(trainables.__file__).parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_whole_and_fits_its_data(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    config = TrialConfig.model_validate(tree)
    assert flatten(tree).keys() == flatten(config.model_dump()).keys()  # every key is written
    assert config.recipe == path.stem
    card = CARDS[config.data.name]
    assert config.model.num_classes == card.classes
    assert config.model.in_channels == card.sample_shape[0]
    assert config.model.event_data == card.is_event


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cifar10", 2_567_082),
        ("cifar10_2_512", 10_233_546),
        ("cifar100_2_512", 10_279_716),
        ("cifar10_dvs", 2_566_794),
        ("ncaltech101", 2_590_181),
        ("dvs_gesture", 2_567_051),
    ],
)
def test_recipe_has_the_papers_parameters(name: str, count: int) -> None:
    path = next(path for path in RECIPES if path.stem == name)
    assert (
        parameter_count(TrialConfig.model_validate(yaml.safe_load(path.read_text())).model) == count
    )
