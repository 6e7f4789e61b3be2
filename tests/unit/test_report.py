import json
import math
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import pytest

from search.records import EpochRecord, TrialRecord, TrialState
from search.report import write_report
from search.results import Mode


class Objective(NamedTuple):
    metric: str
    mode: Mode


ACCURACY = (Objective("val_top1", "max"),)
ACCURACY_ENERGY = (*ACCURACY, Objective("energy_mj", "min"))
STATES: tuple[TrialState, ...] = ("finished", "stopped", "failed", "running")


def trial(
    number: int,
    state: TrialState = "finished",
    top1: float = 90.0,
    energy: float = 1.0,
    params: Mapping[str, Any] | None = None,
    reason: str = "",
    num_epochs: int = 3,
) -> TrialRecord:
    epochs = tuple(
        EpochRecord(
            e, {"val_top1": top1 * e / num_epochs, "energy_mj": energy, "params_m": 1.5}, float(e)
        )
        for e in range(1, num_epochs + 1)
    )
    return TrialRecord(
        number=number,
        params=params or {"model.depth": 2},
        config={},
        config_hash="ab",
        state=state,
        reason=reason,
        attempt=1,
        epochs=epochs,
        started_s=float(number),
        ended_s=None if state == "running" else number + 60.0,
    )


def some_trials() -> list[TrialRecord]:
    return [trial(n, STATES[n % 4], 80.0 + n, 0.1 * (n + 1)) for n in range(10)]


class Tags(HTMLParser):
    """Balance of the tags and every attribute's value."""

    VOID = frozenset(("meta", "rect", "path", "use", "br", "input"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def written(folder: Path, records: list[TrialRecord], **changes: Any) -> str:
    path = folder / "report.html"
    arguments = {"title": "tiny", "info": {"seed": "0"}, "objectives": ACCURACY_ENERGY} | changes
    write_report(path, records=records, **arguments)
    assert sorted(p.name for p in folder.iterdir()) == ["report.html", "report.json"]
    return path.read_text(encoding="utf-8")


def seen(text: str) -> str:
    """The page without its scripts' texts."""
    return re.sub(r"(<script[^>]*>).*?(</script>)", r"\1\2", text, flags=re.DOTALL)


def page_data(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


@pytest.mark.parametrize(
    "objectives",
    [
        ACCURACY,
        ACCURACY_ENERGY,
        (*ACCURACY_ENERGY, Objective("params_m", "min")),
    ],
)
@pytest.mark.parametrize("count", [0, 1, 10])
def test_the_file_is_well_formed_and_needs_nothing_else(
    tmp_path: Path, objectives: tuple[Objective, ...], count: int
) -> None:
    before = dict(mpl.rcParams)
    whole = written(tmp_path, some_trials()[:count], objectives=objectives)
    assert dict(mpl.rcParams) == before
    text = seen(whole)
    tags = Tags(text)
    assert tags.open == []
    assert not tags.names & {"link", "img", "iframe", "object"}
    assert not re.search(r"<script[^>]* src", whole)
    addresses = [v or "" for k, v in tags.attributes if k.endswith(("href", "src"))]
    assert all(address.startswith("#") for address in addresses)
    assert "@import" not in text
    ids = [v for k, v in tags.attributes if k == "id"]
    assert len(ids) == len(set(ids))
    uses = {a[1:] for a in addresses} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert uses <= set(ids)
    assert text.count("<svg") == (3 if count else 0)
    assert not re.search(r"#0101|#ffffff[^;]*\"/>|nan", text)


def test_the_headline_says_which_trial_to_pick_and_what_the_other_choice_costs(
    tmp_path: Path,
) -> None:
    text = written(
        tmp_path,
        [
            trial(0, top1=97.0, energy=1.0),
            trial(1, top1=96.5, energy=0.25),
            trial(2, top1=60.0, energy=0.2),
            trial(3, "failed", 99.0, 0.1),
        ],
    )
    headline = re.sub(r"<[^>]*>", "", text[text.index("<h1>") : text.index("</h1>")])
    assert headline == (
        "Pick trial 00000: 97.00\u202f% at 1\u202fmJ; or 00001 with 75% less energy and "
        "0.50 points less validation accuracy."
    )
    assert [name for name in ("Most accurate", "Best balance", "Least energy") if name in text] == [
        "Most accurate",
        "Best balance",
        "Least energy",
    ]


def test_a_search_without_values_says_so(tmp_path: Path) -> None:
    text = written(tmp_path, [trial(0, "failed"), trial(1, top1=math.nan)])
    assert "No trial has ended with values" in text
    assert 'id="t00001"' in text


def test_early_stopping_is_told_in_epochs(tmp_path: Path) -> None:
    records = [trial(0, num_epochs=10), trial(1, "stopped", num_epochs=5)]
    assert "left 5 of 20 epochs out (25%)" in written(tmp_path, records, full_epochs=10)


def test_everything_a_user_wrote_is_escaped_and_without_secrets(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    record = trial(
        0, params={f"a.{evil}": evil, "uri": "http://me:canary@host/?token=canary"}, reason=evil
    )
    text = written(
        tmp_path,
        [record],
        title=evil,
        info={evil: evil, "command": "x --set u=http://me:canary@host"},
    )
    assert "<script>alert" not in text
    assert text.count("<script") == text.count("</script>") == 3
    assert "canary" not in text
    assert "&lt;script&gt;" in text
    numbers = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert "canary" not in numbers
    assert json.loads(numbers)["trials"][0]["params"][f"a.{evil}"] == evil
    assert "<" not in json.dumps(page_data(text)["trials"]["0"]).replace("<b>", "").replace(
        "</b>", ""
    ).replace("<br>", "")


def test_an_interrupted_write_keeps_the_older_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = written(tmp_path, some_trials())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path / "report.html", "tiny", {}, [], ACCURACY)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == older
