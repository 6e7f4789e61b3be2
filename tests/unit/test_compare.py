"""`spiketune compare`: the numbers, by hand-made searches, and what a person sees of them."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from ledgers import SPACE, add_trial, made_search, made_spec
from rich.console import Console

from search.cli import main
from search.compare import Entry, covered, fronts, matched, shared_objectives, steps
from search.compare_page import comparison_page
from search.compare_settings import best_trials, differences, settings, warnings
from search.compare_tables import compare, comparison_tree, print_comparison
from search.folder import SearchFolder
from search.recorded import create_ledger
from search.records import EpochRecord, Outcome, TrialRecord
from spaces.schema import Objective, SearchSpec
from trainables.errors import InputError

OBJECTIVES = (
    Objective(metric="val_top1", mode="max"),
    Objective(metric="energy_mj", mode="min"),
)


def trial(
    number: int,
    points: list[tuple[float, float]],
    start_s: float,
    *,
    epoch_s: float | None = 2.0,
    **fields: Any,
) -> TrialRecord:
    """A trial that reported these accuracies and energies, an epoch each 10 s."""
    timed = {} if epoch_s is None else {"epoch_s": epoch_s}
    epochs = tuple(
        EpochRecord(e, {"val_top1": y, "energy_mj": x, **timed}, start_s + 10.0 * e)
        for e, (y, x) in enumerate(points, start=1)
    )
    params = fields.pop("params", {"model.width": 16, "train.lr": 0.01})
    known = TrialRecord(number, params, {}, "ab", "finished", "", 1, epochs, start_s)
    return replace(known, **fields)


def entry(letter: str, spec: SearchSpec, records: Sequence[TrialRecord], **fields: Any) -> Entry:
    folder = SearchFolder(Path("runs"), f"search-{letter}")
    known = Entry(letter, folder.name, folder, letter, spec, records, {"torch": "1"}, False)
    return replace(known, **fields)


@pytest.fixture
def spec(tmp_path: Path) -> SearchSpec:
    return made_spec(tmp_path)


def two(spec: SearchSpec, **fields: Any) -> list[Entry]:
    a = [trial(0, [(50.0, 4.0), (80.0, 4.0)], 0.0), trial(1, [(60.0, 2.0)], 5.0)]
    b = [trial(0, [(70.0, 3.0)], 0.0), trial(1, [(90.0, 5.0)], 20.0), trial(2, [(60.0, 3.0)], 40.0)]
    return [entry("A", spec, a), entry("B", spec, b, **fields)]


def test_fronts_have_one_reference_point(spec: SearchSpec) -> None:
    found = fronts(two(spec), OBJECTIVES)
    assert found.numbers == ((0, 1), (1, 0))
    assert found.reference == (60.0, 5.0)
    # A: (80, 4) takes 20 x 1, (60, 2) nothing; B: (70, 3) takes 10 x 2, (90, 5) nothing.
    assert found.hypervolumes == (20.0, 20.0)
    assert found.of_all == 10.0 * 2.0 + 10.0 * 1.0
    assert found.coverage == ((None, 0.0), (0.0, None))


def test_coverage_counts_what_is_beaten() -> None:
    one = [trial(0, [(80.0, 2.0)], 0.0)]
    other = [trial(0, [(80.0, 2.0)], 0.0), trial(1, [(80.0, 3.0)], 0.0), trial(2, [(90.0, 3)], 0)]
    assert covered(one, other, OBJECTIVES) == pytest.approx(1 / 3)  # an equal one is not beaten
    assert covered(other, one, OBJECTIVES) == 0.0
    assert covered(one, [], OBJECTIVES) is None


def test_the_best_after_equal_effort(spec: SearchSpec) -> None:
    entries = two(spec)
    found = fronts(entries, OBJECTIVES)
    courses = [steps(one, found.reference, OBJECTIVES) for one in entries]
    # A's epochs came at 10 (trial 0), 15 (trial 1, its last), 20 s (trial 0, its last).
    assert [(s.epochs, s.trials, s.best, s.seconds) for s in courses[0]] == [
        (2, 1, 1, 4.0), (3, 2, 0, 6.0),
    ]  # fmt: skip
    assert [s.values for s in courses[1]] == [(70.0, 3.0), (90.0, 5.0), (90.0, 5.0)]
    assert [s.hypervolume for s in courses[1]] == [20.0, 20.0, 20.0]
    by_epochs, by_seconds = matched(entries, courses)
    assert (by_epochs.unit, by_epochs.budget) == ("epochs", 3)
    assert [step and step.best for step in by_epochs.steps] == [0, 1]
    assert (by_seconds.unit, by_seconds.budget) == ("seconds", 6.0)


def test_the_one_with_less_effort_sets_it(spec: SearchSpec) -> None:
    few = entry("A", spec, [trial(0, [(70.0, 3.0)], 0.0)])
    many = entry("B", spec, [trial(n, [(60.0 + n, 3.0)], 20.0 * n) for n in range(9)])
    long = entry("C", spec, [trial(0, [(60.0, 3.0), (99.0, 3.0)], 0.0)])
    courses = [steps(one, (0.0, 9.0), OBJECTIVES) for one in (few, many, long)]
    by_epochs = matched([few, many, long], courses)[0]
    assert by_epochs.budget == 1
    assert [step and step.values[0] for step in by_epochs.steps] == [70.0, 60.0, None]


def test_seconds_are_left_out_where_they_are_not_known(spec: SearchSpec) -> None:
    bare = entry("A", spec, [trial(0, [(70.0, 3.0)], 0.0, epoch_s=None)])
    known = entry("B", spec, [trial(0, [(70.0, 3.0)], 0.0)])
    courses = [steps(one, (0.0, 9.0), OBJECTIVES) for one in (bare, known)]
    assert [one.unit for one in matched([bare, known], courses)] == ["epochs"]


def test_failed_trials_cost_but_do_not_count(spec: SearchSpec) -> None:
    records = [trial(0, [(99.0, 1.0)], 0.0, state="failed"), trial(1, [(50.0, 1.0)], 20.0)]
    course = steps(entry("A", spec, records), (0.0, 9.0), OBJECTIVES)
    assert [(s.epochs, s.trials, s.values[0]) for s in course] == [(2, 1, 50.0)]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8),
)
def test_coverage_is_the_definitions(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    first = [trial(n, [(float(y), float(x))], 0.0) for n, (y, x) in enumerate(one)]
    second = [trial(n, [(float(y), float(x))], 0.0) for n, (y, x) in enumerate(other)]
    share = covered(first, second, OBJECTIVES)
    if not other:
        assert share is None
        return
    beaten = sum(any(a >= y and b <= x and (a, b) != (y, x) for a, b in one) for y, x in other)
    assert share == beaten / len(other)


def test_settings_say_what_moved(tmp_path: Path, spec: SearchSpec) -> None:
    other = made_spec(
        tmp_path,
        "space.train.lr={float: [1.0e-3, 2.0e-2], log: true}",
        text=SPACE.replace("  model.timesteps: {choice: [1, 2, 4]}\n", ""),
    )

    def records(width: int, lr: float, **more: int) -> list[TrialRecord]:
        params = {"model.width": width, "train.lr": lr, **more}
        return [trial(n, [(50.0 + n, 1.0 + n)], 0.0, params=params) for n in range(4)]

    a = entry("A", spec, records(16, 0.002, **{"model.timesteps": 2}))
    b = entry("B", other, records(32, 0.019))
    found = {one.key: one for one in settings([a, b], OBJECTIVES)}
    assert list(found) == ["model.width", "train.lr", "model.timesteps"]
    lr, width, timesteps = (found[k] for k in ("train.lr", "model.width", "model.timesteps"))
    assert (lr.shared, lr.differs, lr.moved) == (True, True, True)
    assert [one.median for one in lr.chosen] == [0.002, 0.019]
    assert (width.shared, width.differs, width.moved) == (True, False, True)
    assert width.chosen[0].shares == {"16": 1.0}
    assert (timesteps.shared, timesteps.differs, timesteps.moved) == (False, True, False)
    assert timesteps.chosen[1].domain == f"fixed at {other.base_config.model.timesteps}"
    same = entry("B", spec, records(16, 0.0021, **{"model.timesteps": 2}))
    assert not any(one.differs or one.moved for one in settings([a, same], OBJECTIVES))


def test_the_best_trials_are_the_front_or_the_best_quarter(spec: SearchSpec) -> None:
    records = [trial(n, [(50.0 + n, 1.0 + n)], 0.0) for n in range(16)]
    own = entry("A", spec, records)
    assert len(best_trials(own, OBJECTIVES)) == 16
    assert [r.number for r in best_trials(own, OBJECTIVES[:1])] == [15, 14, 13, 12]
    flat = entry("A", spec, [trial(n, [(50.0 - n, 1.0 + n)], 0.0) for n in range(9)])
    assert [r.number for r in best_trials(flat, OBJECTIVES)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trial.data.split_seed=7", "another validation split: data.split_seed is 0 in A, 7 in B"),
        ("trial.data.val_frac=0.3", "another validation split: data.val_frac"),
        ("trial.train.epochs=6", "another length of a full training: epochs are 4 in A, 6 in B"),
        ("trial.energy.first_conv_once=true", "is false in A, true in B"),
        ("objectives=[{metric: val_top1, mode: max}]", "Only val_top1 is compared"),
    ],
)
def test_what_is_not_comparable_is_said(
    tmp_path: Path, spec: SearchSpec, override: str, said: str
) -> None:
    other = made_spec(tmp_path, override)
    entries = [entry("A", spec, two(spec)[0].records), entry("B", other, two(spec)[1].records)]
    told = warnings(entries, shared_objectives(entries))
    assert len(told) == 1
    assert said in told[0]
    assert warnings([entries[0], replace(entries[0], letter="B")], OBJECTIVES) == []


def test_another_data_set_is_said(spec: SearchSpec, tmp_path: Path) -> None:
    text = SPACE.replace("recipe: digits", "recipe: digits_dvs")
    other = made_spec(tmp_path, text=text.replace("[1, 2, 4]", "[8, 16]"))
    told = warnings([entry("A", spec, []), entry("B", other, [])], OBJECTIVES)
    assert "another data set: data.name is digits in A, digits_dvs in B" in told[0]


def test_differences_name_what_was_told_otherwise(tmp_path: Path, spec: SearchSpec) -> None:
    other = made_spec(tmp_path, "sampler.seed=9", "trial.train.weight_decay=0.5")
    entries = [entry("A", spec, []), entry("B", other, [], versions={"torch": "2"})]
    found = {one.key: one.values for one in differences(entries)}
    assert found.pop("train.weight_decay")[1] == "0.5"
    assert found == {"sampler.seed": ("4", "9"), "version of torch": ("1", "2")}


def test_no_shared_objective_is_refused(tmp_path: Path, spec: SearchSpec) -> None:
    other = made_spec(tmp_path, "objectives=[{metric: val_loss, mode: min}]")
    with pytest.raises(InputError, match=r"share an objective.*search-A: val_top1 max.*val_loss"):
        compare([entry("A", spec, []), entry("B", other, [])])


def test_searches_without_results_are_compared(spec: SearchSpec) -> None:
    found = compare([entry("A", spec, []), entry("B", spec, [])])
    assert found.fronts.hypervolumes == (0.0, 0.0)
    assert json.loads(json.dumps(comparison_tree(found), allow_nan=False))["coverage"]
    assert "has nothing" in comparison_page(found)
    print_comparison(Console(width=60), found)


def test_tables_fit_sixty_columns(spec: SearchSpec, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [replace(one, label="x" * 64) for one in two(spec)]
    entries += [replace(entries[0], letter=letter, search_id=letter) for letter in "CDEF"]
    print_comparison(Console(width=60), compare(entries))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 60
    assert "\x1b" not in shown
    assert "may be luck" in " ".join(shown.split())
    assert sum(line.count("x") for line in shown.splitlines()) >= 6 * 64


def searches(runs: Path) -> None:
    for name, seed, widths in (("one", 4, (16, 32, 24)), ("two", 5, (24, 16))):
        spec = made_spec(runs, f"name={name}", f"sampler.seed={seed}")
        ledger = create_ledger(spec, SearchFolder(runs, name), SPACE)
        for width in widths:
            add_trial(spec, ledger, width, 4, "finished")
        ledger.close()


def run(*words: object, code: int = 0, env: dict[str, str] | None = None) -> str:
    done = CliRunner(env=env).invoke(main, ["compare", *map(str, words)])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.output


def test_the_command_prints_writes_and_takes_paths(tmp_path: Path) -> None:
    searches(tmp_path)
    option = ("--runs", tmp_path)
    text = run("one", "two", *option)
    assert "The best after 8 epochs each" in text
    assert re.search(r"sampler\.seed +A +4\s+B +5", text)
    tree = json.loads(run("one", tmp_path / "two", *option, "--format", "json"))
    assert tree["searches"]["A"]["values"] == [50.0 + 32 + 4 / 3, 32 / 7]
    assert tree["searches"]["B"]["epochs"] == 8
    assert tree["reference"] == [50.0 + 16 + 4 / 3, 32 / 7]
    assert tree["matched"][0]["searches"]["B"]["best"] == 0
    file = tmp_path / "page.html"
    assert run("one", "two", *option, "--format", "html", "-o", file).strip() == str(file)
    page = file.read_text()
    assert page.startswith("<!doctype html>")
    assert "After 8 epochs each, A has" in page
    assert not re.search(r'(src|href)="(?!#)', page)
    run("one", "two", *option, "-o", tmp_path / "text")
    assert "The best after 8 epochs each" in (tmp_path / "text").read_text()


def test_equal_names_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for part in ("a", "b"):
        spec, _, ledger = made_search(tmp_path / part)
        add_trial(spec, ledger, 16, 4, "finished")
        ledger.close()
    tree = json.loads(run(tmp_path / "a/made", tmp_path / "b/made", "--format", "json"))
    assert tree["searches"]["B"]["path"] == str(tmp_path / "b" / "made")
    assert str(tmp_path / "a" / "made") in run(tmp_path / "a/made", tmp_path / "b/made")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["one"], "2 to 6 searches can be compared, but got 1"),
        ([], "Missing argument"),
        (["one", "two"] * 4, "2 to 6 searches can be compared, but got 8"),
        (["one", "one"], "searches must be different ones"),
        (["one", "./one"], "searches must be different ones"),
        (["one", "three"], "no search named 'three'"),
        (["one", "../.."], "a search's name must have"),
        (["one", "nowhere/two"], "No such file or directory"),
        (["one", "a\0b"], "a search's name must have"),
        (["one", "two", "--format", "html"], "give -o FILE.html"),
        (["one", "two", "-o", "nowhere/x"], "a folder that exists"),
        (["one", "two", "-o", "one"], "is a directory"),
    ],
)
def test_bad_input_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    searches(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(p for p in tmp_path.rglob("*"))
    assert said in run(*words, "--runs", ".", code=2).replace("\n", " ")
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_colours_are_a_terminals_only(tmp_path: Path) -> None:
    searches(tmp_path)
    assert "\x1b" not in run("one", "two", "--runs", tmp_path)
    shown = run("one", "two", "--runs", tmp_path, env={"NO_COLOR": "1", "TTY_COMPATIBLE": "1"})
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown)


def test_markup_in_values_stays_text(tmp_path: Path) -> None:
    evil = "[bold]<img src=x onerror=alert(1)></script>"
    spec = made_spec(tmp_path)
    runs = two(spec)
    odd = replace(runs[0].records[0], params={"model.width": evil, "train.lr": 0.01})
    found = compare([replace(runs[0], records=[odd], label=evil), runs[1]])
    page = comparison_page(found)
    assert "<img" not in page
    assert page.count("</script>") == 3
    console = Console(width=200, record=True)
    print_comparison(console, found)
    assert "[bold]" in console.export_text()


def test_a_running_search_is_not_disturbed(tmp_path: Path) -> None:
    searches(tmp_path)
    spec, _, ledger = made_search(tmp_path)
    number = add_trial(spec, ledger, 16, 3)
    tree = json.loads(run("one", "made", "--runs", tmp_path, "--format", "json"))
    assert tree["warnings"] == ["Still running: B; its numbers are those so far."]
    assert ledger.report(
        number, 4, {"val_top1": 1.0, "energy_mj": 1.0}, None, Outcome("finished", "x")
    )
    assert not ledger.lost
    ledger.close()


def test_numbers_are_finite_json(spec: SearchSpec) -> None:
    found = compare(two(spec))
    tree = json.loads(json.dumps(comparison_tree(found), allow_nan=False))
    assert tree["coverage"]["A"] == {"A": None, "B": 0.0}
    assert math.isclose(tree["hypervolume"]["all"], 30.0)
    assert set(tree["course"]) == {"A", "B"}


@pytest.mark.parametrize("count", [1, 3])
def test_one_objective_and_three_are_compared(tmp_path: Path, count: int) -> None:
    names = ["{metric: val_top1, mode: max}", "{metric: energy_mj, mode: min}"]
    names.append("{metric: epoch_s, mode: min}")
    spec = made_spec(tmp_path, f"objectives=[{', '.join(names[:count])}]")
    found = compare(two(spec))
    page = comparison_page(found)
    plots = set(re.findall(r'data-plot="(\w+)"', page))
    assert plots == {"course"} | ({"fronts", "volume", "settings"} if count > 1 else set())
    tree = json.loads(json.dumps(comparison_tree(found), allow_nan=False))
    assert tree["searches"]["B"]["best"] == 1
    assert (tree["hypervolume"]["all"] is None) == (count == 1)
    console = Console(width=60, record=True)
    print_comparison(console, found)
    assert ("Pareto fronts" in console.export_text()) == (count > 1)
