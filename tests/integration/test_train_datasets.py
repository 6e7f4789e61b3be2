"""Each data set trains two epochs through the command line, from its recipe."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from data_sets import CASES
from tiny_search import program

import trainables
from search.cli import main
from trainables import checkpoint as checkpoints
from trainables.data_cards import CARDS

EPOCHS = 2
RECIPES = Path(trainables.__file__).parent / "recipes"
RECIPE_OF = {"imagenet": "imagenet_8_512"}
REPORTED = {"train_loss", "val_loss", "val_top1", "energy_mj", "firing_rate", "images_per_s"}

# A fast network of each recipe's kind: every set keeps its input's shape, attention and loss.
TINY = {
    "model.depth": 1,
    "model.width": 8,
    "model.heads": 2,
    "train.epochs": EPOCHS,
    "train.warmup_epochs": 0,
    "train.cooldown_epochs": 0,
    "train.lr": 5.0e-3,
    "train.batch_size": 16,
    "train.eval_batch_size": 64,
    "train.device": "cpu",
    "data.val_frac": 0.2,
}
SOME = {"train.batch_size": 32, "data.val_frac": 0.1, "data.test_frac": 0.7}
OF_SET: dict[str, dict[str, object]] = {
    "digits": {**SOME, "model.timesteps": 2},
    "digits_dvs": {**SOME, "model.timesteps": 4, "model.block_size": 2},
    "cifar10": {"model.timesteps": 2},
    "cifar100": {"model.timesteps": 2},
    # columns of the whole image, in one block, as the recipes have them
    "seq_cifar10": {"train.batch_size": 32},
    "seq_cifar100": {"train.batch_size": 50},
    "imagenet": {"model.timesteps": 2, "model.image_size": 32},
    "cifar10_dvs": {"model.timesteps": 4, "model.block_size": 4, "model.image_size": 32},
    "ncaltech101": {"model.timesteps": 4, "model.block_size": 2, "model.image_size": 32},
    "dvs_gesture": {"model.timesteps": 3, "model.block_size": 3},
    "nmnist": {"model.timesteps": 4, "model.block_size": 2},
}
EVALUATED = ("cifar10", "seq_cifar10", "nmnist")  # an image, a sequence, a recording

every_set = pytest.mark.parametrize("name", [case.name for case in CASES])


@dataclass(frozen=True)
class Trained:
    """What training on a data set left and said."""

    folder: Path
    output: str

    @property
    def epochs(self) -> list[checkpoints.Checkpoint]:
        return [checkpoints.load(path) for path in sorted(self.folder.glob("epoch-*"))]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # Networks this small only wait for each other on several threads.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Trains on a data set the first time it is asked for."""
    done: dict[str, Trained] = {}

    def once(name: str) -> Trained:
        if name not in done:
            (case,) = (case for case in CASES if case.name == name)
            root = case.lay_out_few(tmp_path_factory.mktemp(name))
            folder = root / "trained"
            result = CliRunner().invoke(main, command(name, root, folder))
            assert result.exit_code == 0, result.output
            done[name] = Trained(folder, result.output)
        return done[name]

    return once


def command(name: str, root: Path, folder: Path) -> list[str]:
    settings: Mapping[str, object] = TINY | OF_SET[name]
    if not CARDS[name].is_embedded:
        settings = {**settings, "data.root": json.dumps(str(root))}
    recipe = RECIPES / f"{RECIPE_OF.get(name, name)}.yaml"
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["train", str(recipe), "--out", str(folder), *sets]


@every_set
def test_two_epochs_leave_two_checkpoints(name: str, train: Callable[[str], Trained]) -> None:
    trained = train(name)
    assert [epoch.epoch for epoch in trained.epochs] == [1, 2]
    assert (trained.folder / "best.safetensors").is_file()
    assert f"spiketune evaluate {trained.folder / 'epoch-0002'}" in trained.output


@every_set
def test_metrics_are_finite_and_sane(name: str, train: Callable[[str], Trained]) -> None:
    trained = train(name)
    chance = math.log(trained.epochs[-1].config.model.num_classes)
    for epoch in trained.epochs:
        assert epoch.metrics.keys() >= REPORTED
        assert all(math.isfinite(value) for value in epoch.metrics.values())
        assert 0.0 < epoch.metrics["train_loss"] < chance + 1.0
        assert 0.0 <= epoch.metrics["val_top1"] <= epoch.metrics["val_top5"] <= 100.0
        assert epoch.metrics["energy_mj"] > 0.0
        assert 0.0 <= epoch.metrics["firing_rate"] < 1.0


@every_set
def test_the_loss_falls(name: str, train: Callable[[str], Trained]) -> None:
    trained = train(name)
    first, last = (epoch.metrics["train_loss"] for epoch in trained.epochs)
    assert last < first


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluate_takes_the_last_checkpoint(name: str, train: Callable[[str], Trained]) -> None:
    trained = train(name)
    last = trained.folder / "epoch-0002.safetensors"
    result = CliRunner().invoke(
        main, ["evaluate", str(last), "--timesteps", "1", "--format", "json"]
    )
    assert result.exit_code == 0, result.output
    tree = json.loads(result.stdout)
    assert (tree["epoch"], tree["split"]) == (EPOCHS, "test")
    assert tree["samples"] > 0
    assert math.isfinite(tree["test_loss"])
    assert 0.0 <= tree["test_top1"] <= 100.0
    assert tree["energy_mj"] == pytest.approx(sum(tree["layer_mj"].values()))
    config = trained.epochs[-1].config
    assert [row["timesteps"] for row in tree["timesteps"]] == [1, config.model.timesteps]


def test_a_process_of_its_own_trains_the_same(
    tmp_path: Path, train: Callable[[str], Trained]
) -> None:
    program(tmp_path, *command("digits", tmp_path, tmp_path / "there"))
    here = train("digits").epochs[-1]
    there = checkpoints.load(tmp_path / "there" / "epoch-0002.safetensors")
    assert here.config == there.config
    assert there.metrics["train_loss"] == pytest.approx(here.metrics["train_loss"], rel=1e-3)
