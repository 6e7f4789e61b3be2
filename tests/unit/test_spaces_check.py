import json
import random
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import spaces
from search.cli_check import check_command
from spaces import SpaceError, load_search_space

DIGITS = Path(spaces.__file__).parent / "digits.yaml"
FRAGMENTS = [
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        ": ",
        "- ",
        "? ",
        "&a ",
        "*a",
        "!!x ",
        "|",
        ">",
        "\n",
        "\t",
        "#",
        "'",
    ),
    *('"', "\\", "%YAML 1.1\n", "---\n", "...\n", "<<: ", "  ", "\u2028", "\ufeff", "é", "\0"),
    *("1e-4", "1e400", ".inf", "010", "0x1f", "no", "null", "~", "9" * 30, "1000000000000", "-1"),
    *("when", "choice", "int", "float", "model.", "train.", "==", "%", "/", "**", "(", ")", "sdt"),
]


TEXT = """
name: example
recipe: digits
objectives: [{metric: val_top1, mode: max}, {metric: energy_mj, mode: min}]
space:
  model.timesteps: {choice: [1, 2, 4, 8]}
  model.depth: {int: [1, 2]}
  model.width: {choice: [16, 32, 64, 96, 128]}
  model.attention: {choice: [statten, sdt, ssa]}
  model.block_size: {choice: [1, 2, 4, 8], when: {model.attention: statten}}
  train.lr: {float: [2.0e-3, 1.0e-2], log: true}
constraints: ["params_m <= 0.5", "energy_mj <= 1"]
budget: {trials: 20}
"""


@pytest.fixture(autouse=True)
def _in_folder_with_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "example.yaml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(check_command, ["example.yaml", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_table_is_plain_and_complete() -> None:
    text = run()
    assert "\x1b" not in text
    for part in (
        "val_top1 max",
        "20 trials",
        "model.block_size",
        "params_m <= 0.5",
        "CPU time",
        "note",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_terminal_without_colour_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[3" not in run()


@pytest.mark.parametrize("columns", [60, 120])
def test_it_fits_the_width(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert max(map(len, run().splitlines())) <= columns


def test_json_is_stable_and_complete() -> None:
    arguments = ("--format", "json", "--set", "space.train.lr={choice: [0.01, 0.02]}")
    summary = json.loads(run(*arguments))
    assert summary == json.loads(run(*arguments))
    assert list(summary) == [
        "name",
        "recipe",
        "objectives",
        "parameters",
        "size",
        "rejections",
        "constraints",
        "budget",
        "examples",
        "notes",
        "resolved",
        "memory",
    ]
    size = summary["size"]
    assert size["combinations"] == 4 * 2 * 5 * (4 + 2) * 2
    assert size["is_exact"]
    assert size["valid_points"] == round(size["valid_share"] * size["combinations"])
    assert len(summary["examples"]) == 3
    assert all(0 < example["params_m"] <= 0.5 for example in summary["examples"])


def test_notes_warn_of_a_budget_that_cannot_be_spent() -> None:
    space = "space={model.depth: {int: [1, 2]}}"
    text = run("--set", space, "--set", "stopping.grace_epochs=50", "--set", "constraints=[]")
    assert "only 2 valid points for 20 trials" in text
    assert "no trial will be stopped early" in text


@pytest.mark.parametrize("name", ["asha", "asha_promotion"])
def test_a_grace_period_of_the_whole_training_is_noticed(name: str) -> None:
    long = run("--set", f"stopping={{name: {name}, grace_epochs: 50}}")
    assert "no trial will be stopped early: grace_epochs 50 covers all" in long
    short = run("--set", f"stopping={{name: {name}, grace_epochs: 1}}")
    assert "no trial will be stopped early" not in short


def test_a_screen_is_said_to_know_of_accuracy_only() -> None:
    two = "objectives=[{metric: val_top1, mode: max}, {metric: energy_mj, mode: min}]"
    one = "objectives=[{metric: val_top1, mode: max}]"
    assert "knows nothing of energy_mj" in run("--set", two, "--set", "screen.candidates=4")
    assert "knows nothing" not in run("--set", one, "--set", "screen.candidates=4")
    assert "knows nothing" not in run("--set", two)


def mutate(source: str, rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(200))
    if rng.random() < 0.1:
        return "".join(rng.choices(FRAGMENTS, k=rng.randrange(60))).encode()
    text = source
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, kind = rng.randrange(len(text) + 1), rng.randrange(4)
        if kind == 0:
            text = text[:at] + rng.choice(FRAGMENTS) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + rng.randrange(1, 20) :]
        elif kind == 2:
            lines = text.split("\n")
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
            text = "\n".join(lines)
        else:
            words = list(re.finditer(r"[0-9][0-9.e-]*|[a-z_]+", text))
            word = rng.choice(words)
            text = text[: word.start()] + rng.choice(FRAGMENTS) + text[word.end() :]
    return text.encode()


def refusal(path: Path) -> SpaceError | None:
    try:
        load_search_space(path)
    except SpaceError as error:
        return error
    return None


def test_mutated_files_load_or_are_refused(tmp_path: Path) -> None:
    source, rng = DIGITS.read_text(), random.Random(0)
    path = tmp_path / "mutated.yaml"
    num_loaded = 0
    for _ in range(600):
        path.write_bytes(mutate(source, rng))
        error = refusal(path)
        num_loaded += error is None
        assert len(str(error).splitlines()) <= 24
        assert all(p.line >= 1 and p.column >= 1 for p in (error.problems if error else ()))
    assert 0 < num_loaded < 600
