"""The report in a browser: it draws itself without a word or a request, and its table works."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import pytest
from chromium import BROWSER, READY, Page, drawn, seen

from search.records import Attempt, EpochRecord, TrialRecord
from search.report import write_report
from spaces.schema import Objective

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium here")

OBJECTIVES = (
    Objective(metric="val_top1", mode="max"),
    Objective(metric="energy_mj", mode="min"),
)
EVIL = '<img src=x onerror="console.error(1)"></script>'
ROWS = "[...document.querySelectorAll('#trials tbody tr')].filter(r => !r.hidden)"
COUNT = 23


def trial(number: int) -> TrialRecord:
    top1, energy = 60 + 35 * math.sin(number) ** 2, 0.1 + math.cos(number) ** 2 / 7
    state = ("finished", "stopped", "paused", "failed", "finished")[number % 5]
    num_epochs = 4 if state == "finished" else 2
    record = TrialRecord(
        number=number,
        params={"model.width": (32, 64)[number % 2], "train.lr": 10 ** (-1 - number / 9)},
        config={"train": {"seed": 1}},
        config_hash="ab",
        state="finished",
        reason="",
        attempt=1,
        epochs=tuple(
            EpochRecord(
                e, {"val_top1": top1 * e / num_epochs, "energy_mj": energy}, number + 9.0 * e
            )
            for e in range(1, num_epochs + 1)
        ),
        started_s=float(number),
        ended_s=number + 40.0,
        extra={"layer_rates": {"stem_lif": 0.1 + number / 90, "head_lif": 0.2}},
        attempts=(Attempt(float(number)),),
    )
    if number == 4:
        record = replace(record, params={**record.params, EVIL: EVIL})
    return replace(record, state=state)  # type: ignore[arg-type]  # any state, as text


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    records = [trial(number) for number in range(COUNT)]
    write_report(path, "tiny", {"seed": "0", "odd": EVIL}, records, OBJECTIVES, 4)
    return path


def test_it_draws_every_plot_and_asks_for_nothing(report: Path, tmp_path: Path) -> None:
    async def look(page: Page) -> None:
        await page.open(report)
        await drawn(page)
        points = await page.value(
            "[...document.querySelectorAll('.live')].map(box => [box.dataset.plot,"
            " box.data.reduce((n, t) => n + t.x.length, 0),"
            " box.querySelectorAll('.point, .js-line').length])"
        )
        assert len(points) == 8
        assert all(given > 0 and marks > 0 for _, given, marks in points), points
        shown = "[...document.querySelectorAll('.still')].some(s => s.offsetParent !== null)"
        assert not await page.value(shown)
        sending = (
            "[...document.querySelectorAll('.live')].some(box => box._context.showSendToCloud"
            " || box._context.plotlyServerURL || box._context.showEditInChartStudio)"
        )
        assert not await page.value(sending)
        # A pointed-at trial is told with its parameters, and markup in them stays text.
        where = (
            "(t => t.hovertext[t.customdata.indexOf(4)])(document.querySelector('[data-plot="
            "front]').data.find(t => t.customdata.includes(4)))"
        )
        assert "&lt;img" in await page.value(where)
        assert not await page.value("document.querySelectorAll('img').length")
        assert page.requests == [report.as_uri()]
        assert page.complaints == []

    seen(tmp_path, look)


def test_the_table_sorts_and_filters_by_mouse_and_keys(report: Path, tmp_path: Path) -> None:
    async def look(page: Page) -> None:
        column = f"{ROWS}.map(r => r.cells[%d].dataset.v ?? r.cells[%d].textContent)"
        await page.open(report)
        await page.until(READY)
        await page.click("#trials th:nth-child(6) button")
        energies = [float(v) for v in await page.value(column % (5, 5))]
        assert energies == sorted(energies)
        assert len(energies) == COUNT
        await page.click("#trials th:nth-child(6) button")
        assert [float(v) for v in await page.value(column % (5, 5))] == energies[::-1]
        sort = "document.querySelector('#trials th:nth-child(6)').getAttribute('aria-sort')"
        assert await page.value(sort) == "descending"
        await page.value("document.querySelector('#trials th:nth-child(2) button').focus()")
        await page.press("Enter", 13, "\r")
        assert await page.value(column % (1, 1)) == [f"{n:05d}" for n in range(COUNT)]

        await page.click("#words")
        await page.write("width=64 accuracy>80")
        kept = [n for n in range(COUNT) if n % 2 and 60 + 35 * math.sin(n) ** 2 > 80]
        assert await page.value(column % (1, 1)) == [f"{n:05d}" for n in kept]
        told = "document.getElementById('shown').value"
        assert await page.value(told) == f"{len(kept)} of {COUNT} trials"
        await page.value("document.getElementById('words').select()")
        await page.write("paused")
        assert set(await page.value(column % (2, 2))) == {"paused"}
        await page.click("#best-only")
        tinted = f"{ROWS}.every(r => r.classList.contains('front'))"
        assert await page.value(tinted)
        await page.click("h1 a")
        assert await page.value("location.hash.startsWith('#t0')")
        assert await page.value(f"{ROWS}.length") == COUNT
        assert page.complaints == []

    seen(tmp_path, look)


def test_a_phone_and_the_dark_get_a_page_of_their_own(report: Path, tmp_path: Path) -> None:
    async def look(page: Page) -> None:
        await page.open(report, 390, 800)
        await drawn(page)
        assert await page.value("document.documentElement.scrollWidth") == 390
        colour = (
            "document.querySelector('[data-plot=front]')._fullLayout.paper_bgcolor.toLowerCase()"
        )
        marks = "document.querySelector('[data-plot=front]').data.at(-1).line.color"
        assert (await page.value(colour), await page.value(marks)) == ("#ffffff", "#0c8f68")
        await page.scheme("dark")
        await page.until(f"{colour} === '#1a2029'")
        assert await page.value(marks) == "#3ddba6"
        assert page.complaints == []

    seen(tmp_path, look)


def test_where_nothing_can_be_unpacked_the_still_drawings_stay(
    report: Path, tmp_path: Path
) -> None:
    async def look(page: Page) -> None:
        await page.call("Page.enable")
        gone = "delete window.DecompressionStream"
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=gone)
        await page.open(report)
        await page.until(f"{ROWS}.length === {COUNT}")
        await asyncio.sleep(0.5)
        stills = "[...document.querySelectorAll('.still')].every(s => s.offsetHeight > 0)"
        assert await page.value(stills)
        assert not await page.value("document.querySelectorAll('figure.drawn').length")
        assert page.complaints == []

    seen(tmp_path, look)
