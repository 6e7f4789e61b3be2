"""What a search has learnt, as people and programs are shown it."""

import io
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from learning import made
from ledgers import add_trial, made_search
from records import record
from rich.console import Console

from search.cli_search import best_command, best_tree
from search.effects import Effect, Group, Importance
from search.hints import Hint
from search.insight import Finding, Insight
from search.report import write_report
from search.tables import print_insight, print_results

ODD = '[/red] [bold]</text><script>alert("x")</script> $x_{ 漢 😀 \x1b[31m'


def odd_insight() -> Insight:
    groups = tuple(Group(value, None, None, 1.0, 0.1, 4) for value in (ODD, "$x_{$", "漢", True, 3))
    ranges = (Group(None, 0.001, 0.01, 1.0, None, 4), Group(None, 0.02, 0.1, 2.0, 0.3, 4))
    uri = "http://me:canary@host/?token=canary"
    return Insight(
        3,
        12,
        20,
        (
            Finding(
                "val_top1",
                "max",
                (
                    Importance(ODD, 0.7, 1 / 40, 12),
                    Importance("train.lr", 0.3, 0.5, 12),
                    Importance(uri, None, None, 2),
                ),
                (
                    Effect(ODD, False, groups),
                    Effect("train.lr", True, ranges),
                    Effect(uri, False, (Group(uri, None, None, 1.0, None, 1),)),
                ),
            ),
        ),
        (Hint(ODD, "fix", f"{ODD}: said, {uri}", 3, 3, 4, 12, 0.01),),
    )


def test_best_prints_names_as_they_are() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=200, color_system=None)
    print_insight(console, odd_insight())
    print_insight(console, None)
    text = stream.getvalue()
    assert f"{ODD[:20]}" in text
    assert "█" * 14 + " " in text
    assert "█" * 15 not in text
    assert "70%" in text
    assert re.search(r"train\.lr +█{6} +30% +may be chance", text)
    assert "too few trials" in text
    assert "12 of 20 trials" in text
    assert "What to search next" in text


def test_a_leaderboard_prints_values_as_they_are(tmp_path: Path) -> None:
    stream = io.StringIO()
    odd = record(0, [50.0] * 9, state="finished", params={"model.attention": "[/red]"})
    print_results(Console(file=stream, width=200), made(tmp_path), [odd], 5)
    assert "attention=[/red]" in stream.getvalue()


def test_a_leaderboard_has_one_unit_a_column(tmp_path: Path) -> None:
    stream = io.StringIO()
    records = [
        record(n, [50.0 + n], state="finished", extra_metrics={"energy_mj": energy})
        for n, energy in enumerate((0.00203, 0.0275))
    ]
    both = "objectives=[{metric: val_top1, mode: max}, {metric: energy_mj, mode: min}]"
    print_results(Console(file=stream, width=200), made(tmp_path, both), records, 5)
    assert re.search(r"00001\* +51\.00 % +27\.5 µJ", stream.getvalue())


def test_hints_hold_no_control_characters(tmp_path: Path) -> None:
    from search.wording import printable

    assert printable("a\x1b[31m\n") == r"'a\x1b[31m\n'"
    assert printable("漢 [x]") == "漢 [x]"
    assert printable(0.00123456) == "0.00123"


def test_the_report_shows_it_and_survives_odd_names(tmp_path: Path) -> None:
    records = [record(0, [50.0] * 9, state="finished", params={"train.lr": 0.01})]
    objectives = made(tmp_path).objectives
    path = tmp_path / "report.html"
    write_report(path, "tiny", {}, records, objectives)
    before = path.read_text(encoding="utf-8")
    write_report(path, "tiny", {}, records, objectives, insight=odd_insight())
    text = path.read_text(encoding="utf-8")
    assert "What mattered" not in before
    assert text.count("<svg") == before.count("<svg") + 1 + 3
    assert "<script>alert" not in text
    assert text.count("<script") == text.count("</script>") == 3
    assert "canary" not in text
    assert "&lt;script&gt;" in text
    assert "What to search next" in text
    assert "70%" in text
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))


def test_best_tells_it_as_text_and_json(tmp_path: Path) -> None:
    spec, _, ledger = made_search(tmp_path)
    for number in range(7):
        add_trial(spec, ledger, (16, 24, 32)[number % 3], 4, "finished")
    few = best_tree(spec, "made", ledger.records)
    assert few["insight"] is None
    for number in range(7):
        add_trial(spec, ledger, (16, 24, 32)[number % 3], 4, "finished")
    ledger.close()
    arguments = ["made", "--runs", str(tmp_path)]
    text = CliRunner().invoke(best_command, arguments)
    assert text.exit_code == 0, text.output
    assert "What mattered for val_top1" in text.output
    assert "What mattered for energy_mj" in text.output
    assert text.output.index("Leaderboard") < text.output.index("What mattered")
    tree = json.loads(CliRunner().invoke(best_command, [*arguments, "--format", "json"]).output)
    assert tree["insight"]["trials"] == 14
    assert tree["insight"]["epoch"] == 4
    effects = tree["insight"]["objectives"][0]["effects"]
    width = next(e for e in effects if e["parameter"] == "model.width")
    assert [g["trials"] for g in width["groups"]] == [6, 4, 4]
    assert width["groups"][0]["mean"] == pytest.approx(50 + 16 + 4 / 3)
