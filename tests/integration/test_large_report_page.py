"""The report of a large search: light enough for a browser, and without a trial missing."""

import asyncio
import base64
import gzip
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from chromium import BROWSER, READY, Page, drawn, seen

from search.records import Attempt, EpochRecord, TrialRecord, TrialState
from search.report import write_report
from search.report_columns import plain_value
from search.report_figures import cell
from search.results import pareto, rows
from spaces.schema import Objective

COUNT = 10_000
OBJECTIVES = (
    Objective(metric="val_top1", mode="max"),
    Objective(metric="energy_mj", mode="min"),
)
STATES: tuple[TrialState, ...] = ("finished", "stopped", "stopped", "paused", "failed")
WORDS = "document.getElementById('words')"
IDS = "[...document.querySelectorAll('#trials tbody tr')].map(r => r.id)"
# Each page of the table in turn, as a reader turns them: ids and texts of all rows.
LEAFED = """(() => {
  const found = [];
  const after = document.querySelector('#pager button:last-of-type');
  for (let page = 0; page < 1000; page += 1) {
    for (const row of document.querySelectorAll('#trials tbody tr')) {
      found.push([row.id, ...[...row.cells].map(c => c.textContent)]);
    }
    if (after.disabled) return found;
    after.click();
  }
})()"""


def trial(number: int) -> TrialRecord:
    state = STATES[number % 5]
    num_epochs = 8 if state == "finished" else 2 + number % 4
    # Halves of the last digit that is shown, and values of every size.
    top1 = (50 + 45 * math.sin(number) ** 2, number % 800 / 8)[number % 2]
    energy = 10 ** (-6 + 12 * math.cos(number) ** 2) if number % 3 else (number % 64) / 2**13
    params: dict[str, Any] = {
        "model.width": (32, 64, 96)[number % 3],
        "train.lr": 10 ** (-1 - 4 * math.sin(number / 7) ** 2),
        "train.augment": ("none", "flip", "8")[number % 3],
        "train.amp": bool(number % 2),
        "train.clip": (1, 0.5, 12345.0, 2.5)[number % 4],
        "train.seed": 2**60 + number,
    }
    if number % 4 == 0:
        params["model.block_size"] = 2
    epochs = tuple(
        EpochRecord(e, {"val_top1": top1 * e / num_epochs, "energy_mj": energy, "params_m": 1.5},
                    60.0 * number + 9.0 * e)
        for e in range(1, num_epochs + 1)
    )  # fmt: skip
    return TrialRecord(
        number=number,
        params=params,
        config={"train": {"seed": 1}},
        config_hash="ab",
        state=state,
        reason="asha@2" if state == "stopped" else "",
        attempt=1,
        epochs=epochs,
        started_s=60.0 * number,
        ended_s=60.0 * number + 200.5 + number % 7,
        extra={"layer_rates": {"head_lif": 0.2}},
        attempts=(Attempt(60.0 * number),),
    )


RECORDS = [trial(number) for number in range(COUNT)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "report.html"
    write_report(path, "large", {"seed": "0"}, RECORDS, OBJECTIVES, 8)
    return path


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="text/plain" id="data">(.*?)</script>', text)
    assert found is not None
    return dict(json.loads(gzip.decompress(base64.b64decode(found[1]))))


def test_it_is_light_and_says_what_it_leaves_out(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert len(text.encode()) <= 3_000_000
    page = re.sub(r"(<script[^>]*>).*?(</script>)", r"\1\2", text, flags=re.DOTALL)
    assert page.count("<") < 8_000
    stills = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(stills) >= 3
    assert all(still.count("<") < 500 and len(still) < 100_000 for still in stills)
    assert page.count('<tr id="t') == 100
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert sum("of 10,000 trials: all that no other beats" in one for one in captions) == 4
    assert sum("10,000 attempts are too many" in one for one in captions) == 1
    assert "the 100 best of 10,000 trials; report.json beside it has all" in page


def test_the_pareto_set_and_each_new_best_are_always_drawn(report: Path) -> None:
    data = data_of(report.read_text(encoding="utf-8"))
    front = {record.number for record in pareto(RECORDS, OBJECTIVES)}
    for name in ("front", "curves", "parallel"):
        there = {n for trace in data["plots"][name]["data"] for n in trace["customdata"]}
        assert front <= there, name
        assert len(there) < 1_200
        assert {str(n) for n in there if n is not None} <= data["trials"].keys()
    course = data["plots"]["best"]["data"][-1]
    assert course["y"] == sorted(course["y"])
    assert course["y"][-1] == max(r.last["val_top1"] for r in RECORDS if r.counts)
    drawn_epochs = {s["name"]: s["y"] for s in data["plots"]["epochs"]["data"]}
    assert drawn_epochs["ran to the end"] == [COUNT // 5] * 8
    bars = data["plots"]["timeline"]["data"]
    assert sum(len(trace["x"]) for trace in bars) < 2_500


def test_the_numbers_beside_it_are_all_there(report: Path) -> None:
    tree = json.loads(report.with_suffix(".json").read_text(encoding="utf-8"))
    assert {row["number"] for row in tree["trials"]} == set(range(COUNT))
    assert all(RECORDS[row["number"]].last == row["metrics"] for row in tree["trials"])
    assert len(tree["history"]) == sum(r.counts for r in RECORDS)


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here")
def test_a_reader_finds_every_trial_with_its_numbers(report: Path, tmp_path: Path) -> None:
    async def look(page: Page) -> None:
        await page.open(report)
        await page.until(READY)
        assert not await page.value("document.getElementById('first-rows')")
        leafed = await page.value(LEAFED)
        expected = []
        for row in rows(RECORDS, OBJECTIVES):
            params, metrics = row["params"], row["metrics"]
            reason = " (asha@2)" if row["state"] == "stopped" else ""
            shown = [cell(m, metrics[m]) for m in ("val_top1", "energy_mj", "params_m")]
            given = [plain_value(params[key]) if key in params else "–"
                     for key in (*trial(1).params, "model.block_size")]  # fmt: skip
            took = f"3m{20 + round(0.5 + row['number'] % 7):02d}s"
            expected.append(
                [f"t{row['name']}", str(row["rank"] or "–"), row["name"], row["state"] + reason,
                 str(row["epochs"]), *shown, *given, "1", took]
            )  # fmt: skip
        columns = [sorted(column) for column in zip(*expected, strict=True)]
        assert [sorted(column) for column in zip(*leafed, strict=True)] == columns
        by_id = {row[0]: row[:-1] for row in leafed}
        assert by_id == {row[0]: row[:-1] for row in expected}

        for number in (0, 4, 5_321, COUNT - 1):
            asked = f"{WORDS}.value = 'trial={number}'; {WORDS}.dispatchEvent(new Event('input',"
            await page.value(f"{asked} {{bubbles: true}}))")
            assert await page.value(IDS) == [f"t{number:05d}"]
        await page.value(f"{WORDS}.value = ''")
        await page.click("#words")
        await page.write("width=64 accuracy>90 flip")
        kept = {r.name for r in RECORDS
                if r.params["model.width"] == 64 and r.last["val_top1"] > 90}  # fmt: skip
        assert {row[0][1:] for row in await page.value(LEAFED)} == kept
        told = "document.getElementById('shown').value"
        assert await page.value(told) == f"{len(kept)} of {COUNT} trials"

        await page.value(f"{WORDS}.select()")
        await page.write("seed=")
        assert await page.value(IDS) == []
        await page.value(f"{WORDS}.value = ''")
        await page.click("#trials th:nth-child(6) button")
        order = [float(row[6]) for row in await page.value(LEAFED)]
        assert order == sorted(order)
        assert len(order) == COUNT
        # A link leads to a row that no page shows yet.
        await page.click("h1 a")
        top = pareto(RECORDS, OBJECTIVES)[0].name
        assert f"t{top}" in await page.value(IDS)
        assert await page.value("location.hash") == f"#t{top}"
        assert page.complaints == []

    seen(tmp_path, look)


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here")
def test_every_plot_is_drawn_without_a_word_or_a_request(report: Path, tmp_path: Path) -> None:
    async def look(page: Page) -> None:
        await page.open(report)
        await drawn(page)
        marks = await page.value(
            "[...document.querySelectorAll('.live')].map(box => [box.dataset.plot,"
            " box.querySelectorAll('.point, .js-line').length])"
        )
        assert len(marks) == 8
        assert all(count > 0 for _, count in marks), marks
        assert page.requests == [report.as_uri()]
        assert page.complaints == []

    seen(tmp_path, look)


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here")
def test_where_nothing_can_be_unpacked_the_best_rows_stay(report: Path, tmp_path: Path) -> None:
    async def look(page: Page) -> None:
        await page.call("Page.enable")
        gone = "delete window.DecompressionStream"
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=gone)
        await page.open(report)
        await page.until("document.getElementById('filter').hidden === false")
        await asyncio.sleep(0.5)
        assert len(await page.value(IDS)) == 100
        assert await page.value("document.getElementById('first-rows').offsetHeight > 0")
        assert page.complaints == []

    seen(tmp_path, look)
