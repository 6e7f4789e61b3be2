"""What `spiketune check` says of the combinations that a rule leaves out."""

import json
from itertools import product
from pathlib import Path

from click.testing import CliRunner
from ledgers import made_spec

from search.cli import main
from spaces.rejections import rejections

SPACE = """
name: made
recipe: digits
space:
  model.timesteps: {choice: [1, 2, 3, 4]}
  model.block_size: {choice: [1, 2, 3]}
  model.width: {choice: [32, 36, 64]}
constraints: ["model.timesteps + model.block_size <= 6", "params_m <= 0.1"]
budget: {trials: 12}
"""
BLOCKS = [(t, b) for t, b in product([1, 2, 3, 4], [1, 2, 3]) if t % b]


def test_each_rule_is_counted_with_an_example(tmp_path: Path) -> None:
    found = rejections(made_spec(tmp_path, text=SPACE).search_space, 0)
    assert (found["checked"], found["is_exact"]) == (36, True)
    counts = {entry["rule"]: entry["rejected"] for entry in found["rules"]}
    assert counts == {
        "network rule on attention, timesteps, block_size": 3 * len(BLOCKS),
        "network rule on width": 12,
        "network rule on width, heads": 12,
        "model.timesteps + model.block_size <= 6": 3,
        "params_m <= 0.1": 12,
    }
    assert [e["share"] for e in found["rules"]] == [e["rejected"] / 36 for e in found["rules"]]
    blocks, *_ = found["rules"]
    assert blocks["example"] == {"model.timesteps": 1, "model.block_size": 2}
    assert blocks["why"] == (
        "`timesteps % block_size == 0` must hold for attention=statten, "
        "but got timesteps=1, block_size=2"
    )
    (large,) = [entry for entry in found["rules"] if entry["rule"] == "params_m <= 0.1"]
    assert large["example"]["model.width"] == 64
    assert large["why"].startswith("`params_m <= 0.1` must hold, but got params_m=0.1")


def test_an_endless_space_is_sampled_and_the_same_each_time(tmp_path: Path) -> None:
    text = SPACE.replace("constraints", "  train.lr: {float: [1.0e-3, 1.0e-2]}\nconstraints")
    space = made_spec(tmp_path, text=text).search_space
    found = rejections(space, 0)
    assert not found["is_exact"]
    assert found == rejections(space, 0)
    share = found["rules"][0]["share"]
    assert abs(share - 3 * len(BLOCKS) / 36) < 0.06


def test_check_prints_them_and_has_them_in_its_json(tmp_path: Path) -> None:
    made_spec(tmp_path, text=SPACE)
    path = str(tmp_path / "made.yaml")
    text = " ".join(CliRunner().invoke(main, ["check", path]).output.split())
    assert "What the rules leave out" in text
    assert "network rule on width: 12 of 36, 33.3 % of the combinations" in text
    assert "such as model.width=36: `width % 8 == 0` must hold" in text
    tree = json.loads(CliRunner().invoke(main, ["check", path, "--format", "json"]).output)
    assert tree["rejections"]["rules"][0]["rejected"] == 3 * len(BLOCKS)


def test_a_space_without_invalid_combinations_has_none(tmp_path: Path) -> None:
    text = (
        SPACE.replace("32, 36, 64", "32")
        .replace("[1, 2, 3]}", "[1]}")
        .replace('"params_m <= 0.1"', "")
    )
    spec = made_spec(tmp_path, text=text)
    assert rejections(spec.search_space, 0)["rules"] == []
    shown = CliRunner().invoke(main, ["check", str(tmp_path / "made.yaml")]).output
    assert "leave out" not in shown
