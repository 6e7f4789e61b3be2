"""`spiketune new`: for every data set a file that `spiketune check` takes, each line explained."""

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator
from PIL import Image
from yaml import safe_load

from search.cli import main
from search.starter import DATASETS, FOLDER
from spaces import load_search_space
from spaces.json_schema import SCHEMA_PATH, json_schema
from trainables.config import DataConfig
from trainables.data_cards import CARDS, count_pictures
from trainables.samples import images_here


def new(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["new", *arguments])


@pytest.fixture(scope="module")
def validator() -> Any:
    return Draft202012Validator(json_schema())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        for name in ("cat", "dög", "eel"):
            (tmp_path / 'my "own" images' / part / name).mkdir(parents=True)
    return tmp_path / 'my "own" images'


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_file_is_valid_and_explained(
    tmp_path: Path, images: Path, validator: Any, dataset: str
) -> None:
    path = tmp_path / "new.yaml"
    root = ("--root", str(images)) if dataset == FOLDER else ()
    done = new("--dataset", dataset, "-o", str(path), *root)
    assert done.exit_code == 0, done.output
    spec = load_search_space(path)
    assert spec.name == dataset
    assert spec.base_config.data.name == ("imagenet" if dataset == FOLDER else dataset)
    text = path.read_text()
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMA_PATH}\n")
    assert SCHEMA_PATH.is_file()
    validator.validate(safe_load(text))
    for line in text.splitlines():
        assert "#" in line or not line, line
        assert len(line) <= 100 or "data.root" in line or "$schema" in line
    checked = CliRunner().invoke(main, ["check", str(path)])
    assert checked.exit_code == 0, checked.output
    assert not re.search(r"fewer than 1 %|no trial will be stopped|only \d+ valid", checked.output)


def test_a_folder_of_images_tells_its_classes(images: Path) -> None:
    tree = safe_load(new("--dataset", FOLDER, "--root", str(images), "--name", "mine").output)
    assert tree["name"] == "mine"
    assert tree["trial"]["model.num_classes"] == 3
    assert tree["trial"]["data.root"] == str(images)


@pytest.mark.parametrize("missing", ["root", "train", "val"])
def test_a_folder_without_two_classes_is_refused(tmp_path: Path, missing: str) -> None:
    for part in {"train", "val"} - {missing}:
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
    done = new("--dataset", FOLDER, *(() if missing == "root" else ("--root", str(tmp_path))))
    assert done.exit_code == 2
    assert "at least two classes" in done.output


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("kept")
    done = new("--dataset", "digits", "-o", str(path))
    assert (done.exit_code, path.read_text()) == (2, "kept")
    assert f"{path}: must not exist yet" in done.output
    nowhere = new("--dataset", "digits", "-o", str(tmp_path / "no" / "x.yaml"))
    assert nowhere.exit_code == 2
    assert "its folder must exist" in nowhere.output


@pytest.mark.parametrize("name", ["../x", "a b", "é"])
def test_a_name_that_no_search_may_have_is_refused(name: str) -> None:
    assert new("--dataset", "digits", "--name", name).exit_code == 2


def test_every_known_data_set_can_be_asked_for() -> None:
    assert set(DATASETS) == {*CARDS, FOLDER}
    assert new("--dataset", "mnist").exit_code == 2


@pytest.mark.parametrize(
    ("side", "size", "pooling"),
    [(28, 32, "0011"), (40, 32, "0011"), (41, 64, "0011"), (90, 128, "0111"), (600, 224, "1111")],
)
def test_small_pictures_get_a_small_network(
    images: Path, side: int, size: int, pooling: str
) -> None:
    for path in images.glob("train/*"):
        for number in range(3):
            Image.new("RGB", (side + 20 * number, side)).save(path / f"{number}.png")
        (path / "broken.png").write_text("no picture")
    tree = safe_load(new("--dataset", FOLDER, "--root", str(images)).output)
    assert tree["trial"]["model.image_size"] == size
    assert tree["trial"]["model.pooling"] == pooling
    assert max(tree["space"]["model.width"]["choice"]) < 256
    assert images_here(DataConfig(name="imagenet", root=str(images), val_frac=0.25)) == 9
    assert images_here(DataConfig(name="imagenet")) > 1_000_000


def test_folders_are_counted_by_a_part_of_them(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"{number:03d}").mkdir()
        for name in ("a.png", "b.JPG", "readme.txt"):
            (tmp_path / f"{number:03d}" / name).touch()
    assert count_pictures(tmp_path) == 120
