"""A comparison in a browser: it draws itself without a word or a request."""

from pathlib import Path

import pytest
from chromium import BROWSER, READY, Page, drawn, seen
from click.testing import CliRunner
from ledgers import SPACE, add_trial, made_spec

from search.cli import main
from search.folder import SearchFolder
from search.recorded import create_ledger

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium here")

PLOTS = {"fronts", "course", "volume", "settings"}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    for name, widths in (("one", (16, 32, 24)), ("two", (24, 16)), ("three", (32, 24))):
        spec = made_spec(folder, f"name={name}")
        ledger = create_ledger(spec, SearchFolder(folder, name), SPACE)
        for width in widths:
            add_trial(spec, ledger, width, 4, "finished")
        ledger.close()
    page = folder / "page.html"
    words = ["compare", "one", "two", "three", "--runs", str(folder), "--format", "html"]
    done = CliRunner().invoke(main, [*words, "-o", str(page)])
    assert done.exit_code == 0, done.output
    return page


def test_it_draws_every_plot_and_asks_for_nothing(comparison: Path, tmp_path: Path) -> None:
    async def look(page: Page) -> None:
        await page.open(comparison)
        await drawn(page)
        points = await page.value(
            "[...document.querySelectorAll('.live')].map(box => [box.dataset.plot, box.data.length,"
            " Math.min(...box.data.map(t => t.x.length)),"
            " box.querySelectorAll('.point, .js-line').length])"
        )
        assert {name for name, *_ in points} == PLOTS
        assert all(traces >= 3 and least > 0 and marks > 0 for _, traces, least, marks in points)
        # A pointed-at trial is told with its search, whatever has the same number in another.
        told = await page.value(
            "document.querySelector('[data-plot=settings]').data.map(t => t.hovertext[0])"
        )
        assert [text[:5] for text in told] == ["A one", "B two", "C thr"]
        assert all("accuracy" in text for text in told)
        assert page.requests == [comparison.as_uri()]
        assert page.complaints == []

    seen(tmp_path, look)


def test_a_phone_and_the_dark_get_a_page_of_their_own(comparison: Path, tmp_path: Path) -> None:
    async def look(page: Page) -> None:
        await page.open(comparison, 390, 800, dark=True)
        await page.until(READY)
        await drawn(page)
        assert await page.value("document.documentElement.scrollWidth") == 390
        fronts = "document.querySelector('[data-plot=fronts]')"
        assert await page.value(f"{fronts}._fullLayout.paper_bgcolor") == "#1a2029"
        assert await page.value(f"{fronts}.offsetWidth") < 390
        # A click on a point, which has no row here, is no error.
        await page.value(f"{fronts}.emit('plotly_click', {{points: [{{customdata: 0}}]}})")
        assert page.complaints == []

    seen(tmp_path, look)
