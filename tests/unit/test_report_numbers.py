"""The report's numbers are the ledger's, to the last digit, on the page and beside it."""

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ledgers import add_trial, fill, made_search
from test_report import ACCURACY, ACCURACY_ENERGY, page_data, seen, some_trials, trial

from search import report_plots as plots
from search.cli_search import report_command
from search.records import Attempt, EpochRecord, TrialRecord
from search.report import write_report
from search.report_choice import headline, picks_of, within_a_point
from search.report_data import epochs_by_state, history, report_tree, spans
from search.report_effort import epochs_reached, timeline
from search.report_figures import learning_curves, trade_off
from search.report_page import script_json
from search.report_parallel import parallel
from search.results import hypervolume, pareto, saved_epochs, worst
from search.svg import log_ticks

Tree = dict[str, Any]


def odd_trials(count: int = 24) -> list[TrialRecord]:
    """Values with every digit that a float has."""
    return [
        replace(
            trial(
                n,
                ("finished", "stopped", "paused", "failed", "finished", "running")[n % 6],
                70.0 + 25 * math.sin(n) ** 2,
                0.1 + math.cos(n) ** 2 / 7,
                {
                    "model.depth": n % 3,
                    "train.lr": 10 ** (-1 - n / 9),
                    "model.attention": "ab"[n % 2],
                },
                num_epochs=1 + n % 5,
            ),
            extra={"layer_rates": {"head_lif": math.pi / (n + 4)}},
            config={"train": {"seed": 40 + n}},
            attempts=(
                Attempt(float(n), 0, "worker_lost", n + 9.5, charged=True),
                Attempt(n + 10.0),
            ),
        )
        for n in range(count)
    ]


def written(folder: Path, records: list[TrialRecord], **more: Any) -> tuple[str, Tree]:
    path = folder / "report.html"
    arguments: Tree = {"full_epochs": 5, "runs_option": " --runs there"} | more
    write_report(path, "tiny", {"seed": "0"}, records, ACCURACY_ENERGY, **arguments)
    numbers = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return path.read_text(encoding="utf-8"), dict(numbers)


def test_the_json_holds_the_ledgers_numbers(tmp_path: Path) -> None:
    records = odd_trials()
    _, tree = written(tmp_path, records)
    front = pareto(records, ACCURACY_ENERGY)
    assert [row["number"] for row in tree["pareto"]] == [r.number for r in front]
    by_number = {row["number"]: row for row in tree["trials"]}
    assert sorted(by_number) == list(range(len(records)))
    for record in records:
        row = by_number[record.number]
        assert row["metrics"] == record.last
        assert row["params"] == record.params
        assert [a["started_s"] for a in row["attempts"]] == [a.started_s for a in record.attempts]
    spent, full = saved_epochs(records, 5)
    assert tree["savings"] == {"trained": spent, "without_stopping": full, "left_out": full - spent}
    assert sum(tree["epochs"].values()) == sum(len(r.epochs) for r in records)
    assert tree["pareto"][0]["layer_rates"] == front[0].extra["layer_rates"]
    number = front[0].number
    assert tree["pareto"][0]["command"] == f"spiketune train --from tiny:{number} --runs there"
    assert tree["pareto"][0]["config"] == front[0].config


def test_the_page_holds_them_too(tmp_path: Path) -> None:
    records = odd_trials()
    text, _ = written(tmp_path, records)
    plots = page_data(text)["plots"]
    front = pareto(records, ACCURACY_ENERGY)
    shown = {
        (x, y, n)
        for trace in plots["front"]["data"]
        for x, y, n in zip(trace["x"], trace["y"], trace["customdata"], strict=True)
    }
    assert shown == {
        (r.last["energy_mj"], r.last["val_top1"], r.number) for r in records if r.counts
    }
    line = plots["front"]["data"][-1]
    assert set(line["customdata"]) == {r.number for r in front}
    for record in records:
        row = text[text.index(f'<tr id="t{record.name}"') :]
        row = row[: row.index("</tr>")]
        for value in (record.last["val_top1"], record.last["energy_mj"], record.params["train.lr"]):
            assert f'data-v="{value!r}"' in row or f">{value!r}<" in row
    curves = {
        (x, y, n)
        for trace in plots["curves"]["data"]
        for x, y, n in zip(trace["x"], trace["y"], trace["customdata"], strict=True)
        if n is not None
    }
    assert curves == {(e.epoch, e.metrics["val_top1"], r.number) for r in records for e in r.epochs}
    rates = {trace["name"]: trace["x"] for trace in plots["rates"]["data"]}
    assert rates[front[0].name] == [front[0].extra["layer_rates"]["head_lif"]]


def test_every_section_has_data(tmp_path: Path) -> None:
    text, _ = written(tmp_path, odd_trials())
    plots = page_data(text)["plots"]
    assert set(plots) == {
        "front", "curves", "best", "volume", "parallel", "epochs", "timeline", "rates",
    }  # fmt: skip
    assert set(re.findall(r'data-plot="([^"]*)"', seen(text))) == set(plots)
    for name, plot in plots.items():
        assert sum(len(trace["x"]) for trace in plot["data"]) > 0, name
    assert "spiketune train --from tiny:" in text
    top = pareto(odd_trials(), ACCURACY_ENERGY)[0]
    assert f"<dt>train.seed</dt><dd>{40 + top.number}</dd>" in text


def test_without_a_script_drawings_and_tables_remain(tmp_path: Path) -> None:
    text = seen(written(tmp_path, odd_trials())[0])
    stills = re.findall(r'<div class="still">(.*?)</div><div class="live"', text, re.DOTALL)
    assert len(stills) == text.count('class="live"')
    assert all(re.search(r"<svg|<table|<p>", still) for still in stills)


def test_best_and_hypervolume_over_time_end_at_the_whole_searchs() -> None:
    records = [r for r in odd_trials() if r.state in ("finished", "stopped")]
    moments = history(records, ACCURACY_ENERGY)
    assert [m.time_s for m in moments] == sorted(m.time_s for m in moments)
    assert len(moments) == len(records)
    front = pareto(records, ACCURACY_ENERGY)
    points = [(r.last["val_top1"], r.last["energy_mj"]) for r in front]
    reference = worst(records, ACCURACY_ENERGY)
    assert moments[-1].hypervolume == pytest.approx(hypervolume(points, reference, ["max", "min"]))
    volumes = [m.hypervolume or 0.0 for m in moments]
    assert volumes == sorted(volumes)
    assert moments[-1].best == front[0].last["val_top1"]
    assert all(m.hypervolume is None for m in history(records, ACCURACY))
    assert history([], ACCURACY_ENERGY) == ()


def test_attempts_that_run_at_once_get_lanes_of_their_own() -> None:
    records = odd_trials()
    bars = spans(records)
    assert len(bars) == 2 * len(records)
    for lane in {bar.lane for bar in bars}:
        own = sorted((b for b in bars if b.lane == lane), key=lambda b: b.start_s)
        assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(own))
    events = [(b.start_s, 1) for b in bars] + [(b.end_s, -1) for b in bars]
    running = most = 0
    for _, change in sorted(events):
        running += change
        most = max(most, running)
    assert max(bar.lane for bar in bars) + 1 == most
    assert {b.fate for b in bars if b.attempt == 1} == {"failed"}
    assert [b.end_s for b in bars if b.trial == 0] == [9.5, 60.0]
    plain = spans([trial(0), trial(1, "running")])
    assert [(b.trial, b.of) for b in plain] == [(0, 1), (1, 1)]
    assert len(timeline(bars)["data"]) >= 3


def test_epochs_by_fate_and_what_was_left_out_add_up() -> None:
    records = odd_trials()
    tree = epochs_reached(records, 5)
    drawn = {trace["name"]: sum(trace["y"]) for trace in tree["data"]}
    spent, full = saved_epochs(records, 5)
    assert drawn.pop("left out") == full - spent
    assert sum(drawn.values()) == sum(epochs_by_state(records).values())


def test_the_headline_names_what_costs_least_within_a_point() -> None:
    records = [trial(0, top1=97.0, energy=1.0), trial(1, top1=96.5, energy=0.5),
               trial(2, top1=96.0, energy=0.4), trial(3, top1=95.9, energy=0.1)]  # fmt: skip
    near = within_a_point(pareto(records, ACCURACY_ENERGY), ACCURACY_ENERGY)
    assert near is records[2]
    alone = [records[0], records[3]]
    front = pareto(alone, ACCURACY_ENERGY)
    assert within_a_point(front, ACCURACY_ENERGY) is None
    text = headline(picks_of(front, ACCURACY_ENERGY), front, ACCURACY_ENERGY)
    assert text.endswith("; no network within a point of it needs less energy.")


def test_parallel_lines_go_from_parameters_to_objectives() -> None:
    records = odd_trials()
    tree = parallel(records, ACCURACY_ENERGY)
    assert tree is not None
    assert tree["layout"]["xaxis"]["ticktext"] == [
        "depth", "lr", "attention", "Validation accuracy (%)", "Energy (mJ)",
    ]  # fmt: skip
    heights = [y for trace in tree["data"] for y in trace["y"] if y is not None]
    assert min(heights) == 0.0
    assert max(heights) == 1.0
    numbers = {n for trace in tree["data"] for n in trace["customdata"] if n is not None}
    assert numbers == {r.number for r in records if r.counts}
    assert parallel(records[:1], ACCURACY_ENERGY) is None


def test_hundreds_of_long_curves_are_thinned_but_keep_their_ends() -> None:
    records = [trial(n, num_epochs=300, top1=50 + n / 7) for n in range(500)]
    tree = learning_curves(records, ACCURACY, 499)
    assert sum(len(trace["x"]) for trace in tree["data"]) < 6000
    ends = {(x, y) for t in tree["data"] for x, y in zip(t["x"], t["y"], strict=True)}
    assert {(300, r.last["val_top1"]) for r in records} <= ends
    few = learning_curves(records[:3], ACCURACY, 0)
    assert len(few["data"][0]["x"]) == 3 * 300 + 2


def test_five_hundred_trials_fit_three_megabytes(tmp_path: Path) -> None:
    records = [
        replace(r, epochs=tuple(
            EpochRecord(e, {k: v * (1 + math.sin(e + r.number) / 9) for k, v in r.last.items()}, e)
            for e in range(1, 101)
        ))
        for r in odd_trials(500)
    ]  # fmt: skip
    written(tmp_path, records, full_epochs=100)
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


def test_texts_cannot_end_the_data(tmp_path: Path) -> None:
    for text in ("</script>", "<!--<script>", "\u2028"):
        held = script_json({text: [text]})
        assert "<" not in held
        assert "\u2028" not in held
        assert json.loads(held) == {text: [text]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json(math.nan)


def test_values_that_are_no_numbers_do_not_break_the_page(tmp_path: Path) -> None:
    records = [
        replace(trial(0), config={"train": {"clip": math.inf}}),
        trial(1, top1=math.nan),
        trial(2, top1=math.inf),
        trial(3, energy=math.nan),
    ]
    text, tree = written(tmp_path, records)
    assert len(page_data(text)["trials"]) == 4
    assert tree["trials"][-1]["metrics"]["energy_mj"] is None
    assert tree["pareto"][0]["config"] == {"train": {"clip": None}}


def test_only_a_running_search_says_that_more_may_come(tmp_path: Path) -> None:
    records = some_trials()
    text, tree = written(tmp_path, records)
    assert "still running" not in seen(text)
    assert tree["running"] is False
    text, tree = written(tmp_path, records, running=True)
    assert "spiketune report tiny --runs there" in seen(text)
    assert tree["running"] is True


@pytest.mark.parametrize(("low", "high"), [(6e-5, 1.5e-3), (0.04, 0.4), (1.0, 1e9), (3.0, 30.0)])
def test_logarithmic_axes_have_few_round_ticks(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 5
    assert all(f"{tick:e}"[1:8] == ".000000" for tick in ticks)


def test_points_without_values_are_not_drawn() -> None:
    tree = trade_off(
        [trial(0), trial(1, energy=math.nan), trial(2, "failed")], ACCURACY_ENERGY, [0]
    )
    assert [n for trace in tree["data"] for n in trace["customdata"]] == [0]


def test_the_command_prints_what_it_would_write(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path)
    fill(spec, ledger)
    add_trial(spec, ledger, 32, 4, "finished")
    runs = ["--runs", str(tmp_path)]
    during = CliRunner().invoke(report_command, ["made", *runs, "--format", "json"])
    assert json.loads(during.output)["running"] is True
    assert not folder.report.exists()
    ledger.close()
    done = CliRunner().invoke(report_command, ["made", *runs])
    assert done.output.strip() == str(folder.report)
    printed = CliRunner().invoke(report_command, ["made", *runs, "--format", "json"]).output
    assert json.loads(printed) == json.loads(folder.report_numbers.read_text())
    tree = report_tree("made", {}, ledger.records, spec.objectives)
    assert json.loads(printed)["trials"] == tree["trials"]
    assert json.loads(printed)["running"] is False


@pytest.mark.parametrize("log", [False, True])
def test_small_energies_are_labelled_as_they_are_told(*, log: bool) -> None:
    energies = [0.0004, 0.02 if log else 0.0006]
    records = [trial(n, top1=90.0 + n, energy=energy) for n, energy in enumerate(energies)]
    tree = trade_off(records, ACCURACY_ENERGY, [0])
    across = tree["layout"]["xaxis"]
    assert across["title"]["text"] == "Energy (µJ)"
    assert [float(text) for text in across["ticktext"]] == pytest.approx(
        [1e3 * place for place in across["tickvals"]]
    )
    assert sorted(x for trace in tree["data"] for x in trace["x"]) == energies  # the ledger's mJ
    still = plots.trade_off(records, ACCURACY_ENERGY, [0])
    assert "Energy (µJ)" in still
    assert across["ticktext"][-2] in still
    large = trade_off([*records, trial(2, top1=99.0, energy=3.0)], ACCURACY_ENERGY, [])
    assert large["layout"]["xaxis"]["title"]["text"] == "Energy (mJ)"
