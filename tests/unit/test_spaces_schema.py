import json
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

import spaces
from spaces import SearchSpec, SpaceError, load_search_space, load_trial_config
from spaces.reading import recipe, recipe_names
from spaces.scalars import resolve
from trainables.config import flatten

SHIPPED = sorted(Path(spaces.__file__).parent.glob("*.yaml"))
DIGITS = Path(spaces.__file__).parent / "digits.yaml"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text("name: x\nrecipe: digits\nbudget: {trials: 3}\n" + text)
    return path


DEPTH = "space: {model.depth: {int: [1, 4]}}\n"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_spaces_load(path: Path) -> None:
    spec = load_search_space(path)
    assert spec.name == path.stem


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_say_everything_and_name_themselves(name: str) -> None:
    assert recipe(name).recipe == name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+3", 3),
        ("-0", 0),
        ("0x1F", 31),
        ("0o17", 15),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("TRUE", True),
        ("~", None),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("0b1", "0b1"),
        ("e5", "e5"),
        (".", "."),
        ("-", "-"),
        ("0e400", 0.0),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    resolved = resolve(text)
    assert resolved == value
    assert type(resolved) is type(value)


def test_defaults_and_trial_overrides(tmp_path: Path) -> None:
    spec = load_search_space(write(tmp_path, "trial: {train.epochs: 3, train.lr: 1}\n" + DEPTH))
    assert spec.base_config.train.epochs == 3
    assert spec.base_config.train.lr == 1.0
    assert spec.trial_config({"model.depth": 3}).model.depth == 3
    assert (spec.stopping_metric, spec.stopping_mode) == ("val_top1", "max")
    assert spec.resources.gpus == "auto"


def test_a_byte_order_mark_and_crlf_are_fine(tmp_path: Path) -> None:
    path = write(tmp_path, DEPTH)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_search_space(path).name == "x"


def test_overrides_replace_and_add(tmp_path: Path) -> None:
    path = write(tmp_path, DEPTH)
    spec = load_search_space(
        path,
        [
            "budget.trials=7",
            "trial.train.epochs=2",
            "stopping.name=none",
            "space.model.depth.int=[2, 3]",
            "space.train.lr={float: [1e-3, 1e-2], log: true}",
            "tracking.uri=env:MLFLOW_TRACKING_URI",
            "name=y",
        ],
    )
    assert (spec.name, spec.budget.trials, spec.stopping.name) == ("y", 7, "none")
    assert spec.base_config.train.epochs == 2
    assert set(spec.search_space.keys) == {"model.depth", "train.lr"}
    assert spec.search_space.domains["model.depth"].ends() == (2, 3)


def test_resolved_is_complete_json_and_reads_back() -> None:
    spec = load_search_space(DIGITS)
    tree = json.loads(json.dumps(spec.resolved()))
    assert flatten(tree["base_config"]) == flatten(spec.base_config.model_dump(mode="json"))
    again = SearchSpec.from_resolved(tree)
    assert again.resolved() == spec.resolved()


def test_a_spec_survives_pickling_after_use() -> None:
    spec = load_search_space(DIGITS)
    space = spec.search_space
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec
    assert again.search_space.keys == space.keys
    assert pickle.loads(pickle.dumps(space)).cardinality() == space.cardinality()


def test_a_spec_made_in_python_is_checked_too() -> None:
    with pytest.raises(ValidationError, match="rejects every point"):
        SearchSpec.model_validate(
            {
                "name": "x",
                "recipe": "digits",
                "space": {"model.depth": {"int": [1, 2]}},
                "constraints": ["model.depth > 2"],
                "budget": {"trials": 1},
            }
        )


def test_the_base_config_is_valid_even_if_recipe_and_trial_are_not(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "trial: {model.timesteps: 3}\nspace: {model.block_size: {choice: [1, 3]}}\n",
    )
    spec = load_search_space(path)
    assert spec.base_config.model.block_size in {1, 3}


def test_constraints_are_split_by_what_they_mention(tmp_path: Path) -> None:
    path = write(tmp_path, DEPTH + "constraints: [model.depth < 4, val_loss <= 2, params_m < 9]\n")
    spec = load_search_space(path)
    assert spec.input_constraints == ("model.depth < 4", "params_m < 9")
    assert [c.text for c in spec.outcome_constraints] == ["val_loss <= 2"]
    assert max(p["model.depth"] for p in spec.search_space.enumerate_valid()) == 3


def test_stopping_mode_follows_the_metric(tmp_path: Path) -> None:
    path = write(tmp_path, DEPTH + "stopping: {metric: val_loss}\n")
    assert load_search_space(path).stopping_mode == "min"
    path = write(tmp_path, DEPTH + "stopping: {metric: firing_rate, mode: min}\n")
    assert load_search_space(path).stopping_mode == "min"


def test_trial_configs_load_with_positions(tmp_path: Path) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text("recipe: digits\nmodel: {image_size: 16, in_channels: 1}\n")
    config = load_trial_config(path, ["train.epochs=2", "model.width=64"])
    assert (config.train.epochs, config.model.width) == (2, 64)
    path.write_text("recipe: digits\nmodel:\n  widht: 64\n  depth: 0\n")
    with pytest.raises(SpaceError) as raised:
        load_trial_config(path)
    assert [(p.line, p.column, p.key) for p in raised.value.problems] == [
        (3, 3, "model.widht"),
        (4, 10, "model.depth"),
    ]


def test_the_package_needs_no_heavy_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys, spaces, spaces.summary;"
        "print([m for m in ('torch', 'ray', 'optuna', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
