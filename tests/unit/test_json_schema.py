"""The JSON Schema of search space files: it takes what the loader takes, and no more."""

import json
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from ledgers import SPACE

import spaces
from search.cli import main
from spaces.fields import searchable_keys, trial_keys
from spaces.json_schema import SCHEMA_PATH, json_schema, json_schema_text
from spaces.schema import SearchSpec
from trainables.config import Attention

SHIPPED = sorted(Path(spaces.__file__).parent.glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


def tree() -> dict[str, Any]:
    read = yaml.safe_load(SPACE)
    assert isinstance(read, dict)
    return read


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_is_valid_and_names_the_schema(validator: Any, path: Path) -> None:
    text = path.read_text()
    first = text.partition("\n")[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA_PATH.name}"
    assert (path.parent / SCHEMA_PATH.name).is_file()
    validator.validate(yaml.safe_load(text))


def test_the_file_is_what_the_command_prints() -> None:
    done = CliRunner().invoke(main, ["schema"])
    assert done.exit_code == 0
    assert done.output == json_schema_text() == SCHEMA_PATH.read_text()
    assert json.loads(done.output) == json_schema()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("nmae",), "x"),
        (("recipe",), "cifar11"),
        (("name",), "../x"),
        (("trial", "train.epohcs"), 4),
        (("trial", "train.epochs"), "four"),
        (("trial", "train.optimizer"), "sgd"),
        (("space", "model.wdith"), {"choice": [8]}),
        (("space", "data.name"), {"choice": ["digits"]}),
        (("space", "model.width"), {"choice": ["wide"]}),
        (("space", "model.width"), {"float": [8.0, 16.0]}),
        (("space", "model.width"), {"int": [8, 16], "choice": [8]}),
        (("space", "model.width"), {"int": [8]}),
        (("space", "model.attention"), {"choice": ["statten", "full"]}),
        (("space", "model.attention"), {"int": [0, 1]}),
        (("space", "model.depth"), {"int": [1, 2], "when": {"model.attention": "full"}}),
        (("space",), {}),
        (("objectives",), []),
        (("objectives",), [{"metric": "val_top2", "mode": "max"}]),
        (("sampler", "name"), "bo"),
        (("sampler", "points"), [{"model.wdith": 8}]),
        (("stopping", "grace_epochs"), "soon"),
        (("budget", "trials"), 0),
        (("resources",), {"gpus": "all"}),
        (("constraints",), [3]),
    ],
    ids=str,
)
def test_what_the_loader_refuses_fails(validator: Any, path: tuple[str, ...], value: Any) -> None:
    broken = tree()
    below = broken
    for key in path[:-1]:
        below = below[key]
    below[path[-1]] = value
    with pytest.raises(ValueError, match=r"\w"):
        SearchSpec.model_validate(broken)
    assert not validator.is_valid(broken)


def test_what_the_loader_takes_passes(validator: Any) -> None:
    good = tree() | {
        "screen": {"candidates": 4},
        "resources": {"gpus": 0.5, "cpus": 2, "processes": "auto"},
        "stopping": {"name": "plateau", "patience_epochs": "auto", "trial_timeout_s": None},
        "constraints": ["params_m <= 3", "energy_mj <= 1"],
    }
    good["space"] |= {
        "model.attention": {"choice": ["statten", "sdt"]},
        "model.block_size": {"choice": [1, 2], "when": {"model.attention": ["statten"]}},
        "train.weight_decay": {"int": [0, 1]},
    }
    good["sampler"]["points"] = [{"model.width": 16}]
    SearchSpec.model_validate(good)
    validator.validate(good)


def test_every_key_is_known_and_the_axes_are_described() -> None:
    schema = json_schema()
    properties = schema["properties"]
    assert properties["trial"]["properties"].keys() == set(trial_keys())
    assert properties["space"]["properties"].keys() == set(searchable_keys())
    assert schema["$defs"]["model.attention"]["enum"] == list(get_args(Attention))
    for name in ("timesteps", "depth", "width", "block_size", "attention"):
        assert f"`{name}`" in properties["space"]["properties"][f"model.{name}"]["description"]
    told = [name for name, part in properties.items() if "description" not in part]
    assert all("$ref" in properties[name] or "anyOf" in properties[name] for name in told)
