"""Every kind of broken file: one screen, exit code 2, the right place, nothing written."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from search.cli_check import check_command
from spaces import SpaceError, load_search_space

HEAD = "name: x\nrecipe: digits\nbudget: {trials: 4}\n"
SPACE = "space: {model.depth: {int: [1, 4]}}\n"

Case = tuple[str, str | bytes, int, int, str]


def spaces(text: str) -> str:
    return f"{HEAD}space:\n  {text}\n"


def full(text: str) -> str:
    return f"{HEAD}{SPACE}{text}\n"


# name, text, line, column, part of the message
CASES: list[Case] = [
    ("empty", "", 1, 1, "is empty"),
    ("only comments", "# nothing\n\n", 1, 1, "is empty"),
    ("a list", "- 1\n- 2\n", 1, 1, "must hold a YAML mapping"),
    ("a scalar", "hello", 1, 1, "must hold a YAML mapping"),
    ("null byte", b"name: a\n  \0", 2, 3, "0x00"),
    ("invalid UTF-8", b"name: \xc3\xa9\xff", 1, 8, "0xff"),
    ("utf-16", "name: x".encode("utf-16"), 1, 1, "must be UTF-8"),
    ("control character", "name: a\x07b", 1, 8, "U+0007"),
    ("line separator", "name: x\n# a\u2028b", 2, 4, "U+2028"),
    ("too large", b"#" * 300_000, 1, 1, "at most 256 KiB"),
    ("too many nodes", "a: [" + "1, " * 20_000 + "1]", 1, 30_000 - 6 + 2, "at most 10,000"),
    ("deep flow", "a: " + "[" * 2000 + "]" * 2000, 1, 35, "at most 32 deep"),
    ("deep block", "".join(" " * i + "a:\n" for i in range(100)), 33, 33, "at most 32 deep"),
    ("unclosed flow", "a: [1, 2\n", 2, 1, "must be valid YAML"),
    ("unclosed quote", "a: 'x\n", 2, 1, "must be valid YAML"),
    ("tab", "a:\n\tb: 1\n", 2, 1, "got a tab"),
    ("escape out of range", 'a: "\\U00110000"', 1, 7, "out of range"),
    ("surrogate", full('tracking: {experiment: "\\ud800"}'), 5, 24, "surrogate"),
    ("two documents", "a: 1\n---\nb: 2\n", 2, 1, "single document"),
    ("anchor", full("tracking: &x {experiment: a}"), 5, 11, "anchors (&x)"),
    ("alias", full("tracking: *x"), 5, 11, "aliases (*x)"),
    ("alias bomb", "a: &a [1, 1]\nb: [*a, *a, *a, *a]\n", 2, 5, "aliases (*a)"),
    ("cyclic anchor", "a: &a [*a]\n", 1, 8, "aliases (*a)"),
    ("merge key", full("<<: {name: y}"), 5, 1, "merge keys"),
    ("tag", full("tracking: !!python/object:os.system {}"), 5, 11, "tags are not supported"),
    ("own tag", full("tracking: {experiment: !x y}"), 5, 24, "tags are not supported"),
    ("collection as key", full("? [a, b]\n: 1"), 5, 3, "keys must be plain text"),
    ("duplicate key", full("name: y"), 5, 1, "already set at line 1, column 1"),
    (
        "point of another parameter",
        full("sampler: {points: [{model.depth: 2}, {model.width: 8}]}"),
        5,
        39,
        "must be a key of `space`, but got 'model.width'",
    ),
    (
        "point outside its domain",
        full("sampler: {points: [{model.depth: 9}]}"),
        5,
        34,
        "must be in int 1 … 4, but got 9",
    ),
    (
        "point that rules forbid",
        HEAD
        + "space: {model.width: {choice: [8, 24]}, model.heads: {choice: [1, 2, 16]}}\n"
        + "sampler:\n  points:\n    - {model.width: 8, model.heads: 16}\n",
        7,
        7,
        "no such one has these values",
    ),
    ("duplicate in flow", full("sampler: {seed: 1, seed: 2}"), 5, 20, "line 5, column 11"),
    ("leading zero", full("sampler: {seed: 010}"), 5, 17, "must not start with a zero"),
    ("unquoted pooling", full("trial: {model.pooling: 0011}"), 5, 24, "quote it ('0011')"),
    ("infinity", spaces("train.lr: {float: [0.1, .inf]}"), 5, 27, "finite"),
    ("nan", spaces("train.lr: {float: [.nan, 1.0]}"), 5, 22, "finite"),
    ("float overflow", spaces("train.lr: {float: [0.1, 1.0e+400]}"), 5, 27, "too large"),
    ("float underflow", spaces("train.lr: {float: [1e-400, 1]}"), 5, 22, "too small"),
    ("5,000 digits", full("sampler: {seed: " + "9" * 5000 + "}"), 5, 17, "at most 18 digits"),
    ("underscores", full("sampler: {seed: 1_000}"), 5, 17, "without quotes and underscores"),
    ("no is text", spaces("train.lr: {float: [0.1, 0.2], log: no}"), 5, 38, "true or false"),
    ("sexagesimal is text", full("budget: {trials: 1:30}"), 5, 1, "already set"),
    ("unknown top key", full("smapler: {seed: 1}"), 5, 1, "did you mean sampler?"),
    ("trial section on top", full("model: {depth: 1}"), 5, 1, "below trial (fixed) or space"),
    ("trial key on top", full("train.lr: 0.1"), 5, 1, "below trial (fixed) or space"),
    ("key like an inner name", full("<int>: 1"), 5, 1, "must be a known key"),
    ("unknown nested key", full("sampler: {sed: 1}"), 5, 11, "did you mean seed?"),
    ("unknown trial key", full("trial: {train.epoch: 1}"), 5, 9, "did you mean train.epochs?"),
    ("unknown space key", spaces("model.timestep: {int: [1, 2]}"), 5, 3, "model.timesteps?"),
    ("unknown domain key", spaces("model.depth: {int: [1, 2], stp: 1}"), 5, 30, "step?"),
    ("missing budget", "name: x\nrecipe: digits\n" + SPACE, 1, 1, "must be set"),
    ("missing trials", "name: x\nrecipe: digits\nbudget: {}\n" + SPACE, 3, 1, "must be set"),
    ("name with slash", "name: ../x\nrecipe: digits\nbudget: {trials: 1}\n" + SPACE, 1, 7, "match"),
    ("name of dots", "name: ..\nrecipe: digits\nbudget: {trials: 1}\n" + SPACE, 1, 7, "match"),
    ("long name", f"name: {'a' * 65}\nrecipe: digits\nbudget: {{trials: 1}}\n", 1, 7, "match"),
    ("unknown recipe", "name: x\nrecipe: digit\nbudget: {trials: 1}\n" + SPACE, 2, 9, "digits?"),
    ("recipe path", "name: x\nrecipe: ../digits\nbudget: {trials: 1}\n" + SPACE, 2, 9, "shipped"),
    ("zero trials", "name: x\nrecipe: digits\nbudget: {trials: 0}\n" + SPACE, 3, 18, ">= 1"),
    ("text trials", "name: x\nrecipe: digits\nbudget: {trials: ten}\n" + SPACE, 3, 18, "integer"),
    ("float trials", "name: x\nrecipe: digits\nbudget: {trials: 2.0}\n" + SPACE, 3, 18, "integer"),
    ("null hours", full("sampler:"), 5, 9, "a mapping"),
    ("unknown sampler", full("sampler: {name: tpee}"), 5, 17, "did you mean tpe?"),
    ("negative seed", full("sampler: {seed: -1}"), 5, 17, ">= 0"),
    ("unknown metric", full("objectives: [{metric: val_to, mode: max}]"), 5, 23, "one of"),
    ("unknown mode", full("objectives: [{metric: val_loss, mode: low}]"), 5, 39, "one of max"),
    ("accuracy min", full("objectives: [{metric: val_top1, mode: min}]"), 5, 39, "must be max"),
    (
        "objective twice",
        full("objectives:\n  - {metric: val_top1, mode: max}\n  - {metric: val_top1, mode: max}"),
        7,
        14,
        "must differ",
    ),
    ("no objectives", full("objectives: []"), 5, 13, "at least 1"),
    ("stopping mode", full("stopping: {metric: val_top1, mode: min}"), 5, 36, "as in objectives"),
    ("stopping direction", full("stopping: {metric: firing_rate}"), 5, 20, "mode: max"),
    ("cost", full("sampler: {name: tpe, cost_aware: true}"), 5, 34, "only gp can"),
    ("reduction factor", full("stopping: {reduction_factor: 1}"), 5, 30, ">= 2"),
    ("gpus", full("resources: {gpus: some}"), 5, 19, "`auto` or a number"),
    ("password", full("tracking: {uri: 'https://u:hunter2@h'}"), 5, 17, "password"),
    ("ledger password", full("storage: {ledger: 'postgresql://u:hunter2@h/d'}"), 5, 19, "password"),
    ("store password", full("storage: {checkpoints: 's3://k:hunter2@b/p'}"), 5, 24, "password"),
    ("store's kind", full("storage: {checkpoints: 'ftp://h/p'}"), 5, 24, "s3://BUCKET"),
    ("no bucket", full("storage: {checkpoints: 's3:///p'}"), 5, 24, "s3://BUCKET"),
    ("relative store", full("storage: {checkpoints: store}"), 5, 24, "absolute path"),
    ("store's host", full("storage: {checkpoints: 'file://h/p'}"), 5, 24, "absolute path"),
    ("store's variable", full("storage: {checkpoints: 'env:A B'}"), 5, 24, "env:NAME"),
    ("env name", full("tracking: {uri: 'env:A B'}"), 5, 17, "env:NAME"),
    ("empty space", HEAD + "space: {}\n", 4, 8, "at least one"),
    ("space is a list", HEAD + "space: [model.depth]\n", 4, 8, "must be a mapping"),
    ("low above high", spaces("model.depth: {int: [3, 1]}"), 5, 16, "low=3, high=1"),
    ("three bounds", spaces("model.depth: {int: [1, 2, 3]}"), 5, 22, "at most 2"),
    ("one bound", spaces("model.depth: {int: [1]}"), 5, 17, "must be set"),
    ("text bound", spaces("model.depth: {int: [1, two]}"), 5, 26, "integer"),
    ("step", spaces("model.depth: {int: [1, 4], step: 2}"), 5, 16, "must divide"),
    ("log of zero", spaces("train.weight_decay: {float: [0, 1], log: true}"), 5, 23, "low > 0"),
    ("two forms", spaces("model.depth: {int: [1, 2], choice: [1]}"), 5, 16, "exactly one"),
    ("no form", spaces("model.depth: {}"), 5, 16, "exactly one"),
    ("bare domain", spaces("model.depth: 3"), 5, 16, "exactly one"),
    ("no choices", spaces("model.depth: {choice: []}"), 5, 25, "at least 1"),
    ("choices repeat", spaces("model.depth: {choice: [1, 2, 1]}"), 5, 16, "1 twice"),
    ("equal floats", spaces("train.lr: {choice: [1, 0.5, 1.0]}"), 5, 31, "1.0 twice"),
    ("nested choice", spaces("model.depth: {choice: [1, [2]]}"), 5, 29, "must be a number"),
    ("bad choice", spaces("model.attention: {choice: [sdt, statn]}"), 5, 35, "statten?"),
    ("choice of no field type", spaces("model.depth: {choice: [1, x]}"), 5, 29, "integer"),
    ("zero timesteps", spaces("model.timesteps: {int: [0, 4]}"), 5, 27, ">= 1"),
    ("float on int", spaces("model.depth: {float: [1, 4]}"), 5, 25, "integer"),
    ("int on text", spaces("model.neuron: {int: [1, 4]}"), 5, 24, "one of lif"),
    ("huge bound", spaces("model.depth: {int: [1, 99999999999999999]}"), 5, 26, "<="),
    ("fixed key searched", spaces("model.num_classes: {int: [2, 4]}"), 5, 3, "comparable"),
    ("trial and space", full("trial: {model.depth: 2}"), 4, 9, "in both"),
    (
        "unknown parent",
        spaces("model.depth: {int: [1, 2], when: {model.widht: 64}}"),
        5,
        37,
        "model.width?",
    ),
    (
        "parent value",
        spaces("model.depth: {int: [1, 2], when: {model.width: wide}}"),
        5,
        50,
        "integer",
    ),
    (
        "never active",
        spaces("model.depth: {int: [1, 2], when: {model.width: [8, 16]}}"),
        5,
        50,
        "fixed at 64",
    ),
    (
        "parent cannot be",
        spaces(
            "model.width: {choice: [8, 16]}\n  model.depth: {int: [1, 2], when: {model.width: 32}}"
        ),
        6,
        50,
        "must be able to be 32",
    ),
    (
        "cycle",
        spaces(
            "model.width: {choice: [8, 16], when: {model.depth: 1}}\n"
            "  model.depth: {int: [1, 2], when: {model.width: 8}}"
        ),
        5,
        34,
        "cycle",
    ),
    ("own parent", spaces("model.depth: {int: [1, 2], when: {model.depth: 1}}"), 5, 37, "itself"),
    ("constraint type", full("constraints: [1]"), 5, 15, "must be text"),
    ("constraint text", full("constraints: model.depth > 1"), 5, 14, "a list"),
    (
        "constraint syntax",
        full('constraints: ["model.depth > > 1"]'),
        5,
        30,
        "must be an expression",
    ),
    ("constraint name", full('constraints: ["2 < modl.depth"]'), 5, 20, "model.depth?"),
    ("unquoted constraint", full("constraints:\n  - 1 < depht"), 6, 9, "model.depth?"),
    ("constraint call", full('constraints: ["open(1) == 1"]'), 5, 16, "may hold only"),
    ("constraint value", full('constraints: ["model.depth"]'), 5, 15, "must be a condition"),
    ("text as number", full("constraints: ['model.attention > 1']"), 5, 16, "must be a number"),
    ("outcome form", full("constraints: ['energy_mj == 1']"), 5, 15, "form `a <= b`"),
    ("outcome with key", full("constraints: ['val_loss < train.lr']"), 5, 15, "only metrics"),
    ("impossible", full("constraints: ['model.depth > 9']"), 5, 15, "rejects every point"),
    (
        "division by zero",
        full("constraints: ['1 / (model.depth * 0) > 1']"),
        5,
        15,
        "rejects every",
    ),
    (
        "impossible pair",
        full("constraints: ['model.depth > 3', 'model.depth < 3']"),
        5,
        15,
        "together reject every point",
    ),
    ("always false", full("constraints: ['model.width == 1']"), 5, 15, "must hold, but got"),
    (
        "network rule",
        spaces("model.timesteps: {choice: [3, 5]}"),
        4,
        1,
        "timesteps % block_size == 0",
    ),
    ("trial breaks the network", full("trial: {model.width: 12}"), 5, 1, "width % 8 == 0"),
]


@pytest.mark.parametrize(
    ("text", "line", "column", "part"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_broken_file(text: str | bytes, line: int, column: int, part: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(check_command, [str(file)])
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) <= 24
    place = f"{file}:{line}:{column}: "
    assert any(found.startswith(place) and part in found for found in lines), result.stderr
    assert "hunter2" not in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_broken_cases_are_distinct() -> None:
    assert len({str(case[1]) for case in CASES}) == len(CASES) >= 100


@pytest.mark.parametrize(
    ("override", "column", "part"),
    [
        ("budget.trials", 1, "key=value"),
        ("=3", 1, "key=value"),
        ("budget.trials=x", 15, "integer"),
        ("budget.trails=3", 1, "did you mean trials?"),
        ("model.depth=1", 1, "below trial (fixed) or space"),
        ("trial.train.lr=1e-4e", 16, "must be a number"),
        ("trial.train.epochs=010", 20, "must not start with a zero"),
        ("space.model.depth.step=2", 1, "must divide"),
        ("name.first=x", 1, "below a mapping"),
        ("sampler.seed=[1", 16, "valid YAML"),
        ("sampler.name=*x", 14, "aliases"),
        ("constraints=['model.depth > 1', 'nope < 1']", 34, "unknown name"),
    ],
)
def test_broken_override(override: str, column: int, part: str, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(HEAD + SPACE)
    result = CliRunner().invoke(check_command, [str(file), "--set", override])
    assert result.exit_code == 2
    expected = f"--set:1:{column}: "
    if "step" in override:
        expected = f"{file}:4:22: "  # the domain that no longer fits stands in the file
    assert any(e.startswith(expected) and part in e for e in result.stderr.splitlines()), (
        result.stderr
    )


def test_an_override_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(HEAD + SPACE)
    with pytest.raises(SpaceError, match="given twice"):
        load_search_space(file, ["sampler.seed=1", "sampler.seed=2"])


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "null"])
def test_not_a_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        import os

        os.mkfifo(path)
    elif kind == "null":
        path = Path(f"{path}\0")
    with pytest.raises(SpaceError) as raised:
        load_search_space(path)
    problem = raised.value.problems[0]
    assert (problem.line, problem.column) == (1, 1)
    assert raised.value.exit_code == 2


def test_everything_is_reported_at_once_and_sorted(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "name: a/b\n"
        "recipe: digts\n"
        "trial: {train.epochs: '3', model.pooling: 0011}\n"
        "space:\n"
        "  model.attention: {choice: [statten, foo]}\n"
        "  train.lr: {float: [1e-4, no], lgo: true}\n"
        "budget: {trials: 0}\n"
        "constraints: [modl.depth > 1]\n"
    )
    with pytest.raises(SpaceError) as raised:
        load_search_space(file)
    places = [(p.line, p.column) for p in raised.value.problems]
    assert places == [(1, 7), (2, 9), (3, 23), (3, 43), (5, 39), (6, 28), (6, 33), (7, 18), (8, 15)]


def test_a_flood_of_problems_fits_one_screen(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(HEAD + "space:\n" + "".join(f"  no.{i}: 1\n" for i in range(500)))
    with pytest.raises(SpaceError) as raised:
        load_search_space(file)
    assert len(raised.value.problems) >= 500
    lines = str(raised.value).splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("more")
    assert max(map(len, lines)) <= 320
