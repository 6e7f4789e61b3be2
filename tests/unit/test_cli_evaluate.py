import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from search.cli import main
from trainables import checkpoint as checkpoints
from trainables.config import TrialConfig, with_overrides
from trainables.model import build_model

DIGITS = {
    "model.timesteps": 3,
    "model.block_size": 3,
    "model.width": 16,
    "model.heads": 2,
    "model.depth": 1,
    "model.image_size": 8,
    "model.in_channels": 1,
    "model.pooling": "0010",
    "train.eval_batch_size": 90,
    "train.device": "cpu",
}
DIGITS_CONFIG = TrialConfig.model_validate(
    with_overrides(TrialConfig().model_dump(mode="json"), DIGITS)
)


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    state = build_model(DIGITS_CONFIG.model).state_dict()
    checkpoints.save(path, checkpoints.Checkpoint(DIGITS_CONFIG, 2, state, None, {}, {}))
    return path


def test_json_has_every_timestep_layer_and_latency(checkpoint: Path, tmp_path: Path) -> None:
    plot = tmp_path / "sweep.svg"
    result = run("evaluate", checkpoint, "--format", "json", "--plot", plot)
    assert result.exit_code == 0, result.output
    tree = json.loads(result.stdout)
    assert [row["timesteps"] for row in tree["timesteps"]] == [1, 2, 3]
    assert [row["block_size"] for row in tree["timesteps"]] == [1, 2, 3]
    assert [bool(row["note"]) for row in tree["timesteps"]] == [True, True, False]
    assert tree["timesteps"][-1]["test_top1"] == tree["test_top1"]
    assert tree["samples"] in (359, 360)
    assert (tree["split"], tree["epoch"]) == ("test", 2)
    assert [entry["batch_size"] for entry in tree["latency"]] == [1, 90]
    assert tree["energy_convention"] == "45 nm, first conv T times"
    assert tree["energy_mj"] == pytest.approx(sum(tree["layer_mj"].values()))
    assert tree["layer_rates"].keys() >= {"block.0.attn.attn_lif", "head_lif"}
    drawn = plot.read_text()
    assert "Test accuracy (%)" in drawn
    assert "first conv T times" in drawn


def test_table_is_for_people(checkpoint: Path, tmp_path: Path) -> None:
    plot = tmp_path / "sweep.png"
    words = ["--split", "val", "--timesteps", "1", "--image-size", "12", "--plot", plot]
    result = run("evaluate", checkpoint, *words, "--set", "energy.first_conv_once=true")
    assert result.exit_code == 0, result.output
    assert "samples (val split)" in result.output
    assert "blocks of 1, trained with 3 (same scale 1/H)" in result.output
    assert "first conv once" in result.output
    assert "ms an image" in result.output
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--timesteps", "1,9"], "must be numbers from 1 to 3"),
        (["--timesteps", "one"], "must be numbers from 1 to 3"),
        (["--plot", "a.gif"], "must end in .png or .svg"),
        (["--set", "model.width=20"], "width % 8 == 0"),
    ],
)
def test_bad_options_are_input_errors(checkpoint: Path, words: list[str], message: str) -> None:
    result = run("evaluate", checkpoint, *words)
    assert result.exit_code == 2
    assert message in result.output


def test_another_network_is_refused(checkpoint: Path) -> None:
    result = run("evaluate", checkpoint, "--set", "model.width=32")
    assert result.exit_code == 1
    assert "the weights must fit the configured network" in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_imagenet_at_288_is_resized_to_320() -> None:
    from search.cli_evaluate import _configured

    tree = with_overrides(
        TrialConfig().model_dump(mode="json"),
        {
            "model.image_size": 224,
            "model.num_classes": 1000,
            "data.name": "imagenet",
            "data.crop_pct": 0.95,
        },
    )
    config = TrialConfig.model_validate(tree)
    larger = _configured(config, (), 288, "x")
    assert (larger.model.image_size, larger.data.crop_pct) == (288, 0.9)
    chosen = _configured(config, ("data.crop_pct=1.0",), 288, "x")
    assert chosen.data.crop_pct == 1.0
    assert _configured(config, (), None, "x") == config


def test_convert_there_and_back(checkpoint: Path, tmp_path: Path) -> None:
    theirs, back = tmp_path / "r.pth.tar", tmp_path / "back.safetensors"
    assert run("convert", checkpoint, theirs).exit_code == 0
    lost = run("convert", theirs, back)
    assert lost.exit_code == 1
    assert "does not tell data.name: give them with --config FILE" in lost.output
    result = run("convert", theirs, back, "--set", "data.name=digits")
    assert result.exit_code == 0, result.output
    assert f"spiketune evaluate {back}" in result.output
    again, first = checkpoints.load(back), checkpoints.load(checkpoint)
    assert again.config.model == first.config.model
    assert all((again.model[name] == x).all() for name, x in first.model.items())
    taken = run("convert", theirs, back, "--set", "data.name=digits")
    assert taken.exit_code == 2
    assert "must not exist yet" in taken.output


def test_convert_takes_a_configuration(checkpoint: Path, tmp_path: Path) -> None:
    theirs, back = tmp_path / "r.pth", tmp_path / "back.safetensors"
    run("convert", checkpoint, theirs)
    file = tmp_path / "trial.yaml"
    file.write_text(yaml.safe_dump(DIGITS_CONFIG.model_dump(mode="json")))
    assert run("convert", theirs, back, "--config", file).exit_code == 0
    assert checkpoints.load(back).config == DIGITS_CONFIG


@pytest.mark.parametrize(
    ("source", "destination", "words", "message"),
    [
        ("a.pth", "b.pt", [], "one of SRC and DST must end in .safetensors"),
        ("a.safetensors", "b.txt", [], "DST must end in .pth, .pt, .tar"),
        ("a.safetensors", "b.pth", ["--ema"], "for SRC of the reference only"),
        ("a.pth", "none/b.safetensors", [], "must be a folder that exists"),
    ],
)
def test_convert_needs_one_file_of_each_kind(
    tmp_path: Path, source: str, destination: str, words: list[str], message: str
) -> None:
    result = run("convert", tmp_path / source, tmp_path / destination, *words)
    assert result.exit_code == 2
    assert message in result.output
