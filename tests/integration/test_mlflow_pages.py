"""MLflow's own pages of a search, in a browser: nested runs, sorting, comparing, artifacts."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from chromium import BROWSER, Page, browser
from fake_search import FakeSearch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow_pages import click, click_text, component, open_page
from mlflow_server import MlflowServer

from search.cli_options import open_recorded
from search.records import TrialRecord

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium here")

TRIALS, COMPARED = 12, 10
PLOT = "document.querySelector('.js-plotly-plot')"
SEARCH_BOX = '[data-testid="search-box"]'
CLEAR = component("runssearchautocomplete.tsx_212")
NAMES = (
    "[...document.querySelectorAll('.ag-pinned-left-cols-container [role=row]')]"
    ".sort((a, b) => a.getAttribute('row-index') - b.getAttribute('row-index'))"
    ".map(row => row.querySelector('a')?.innerText).filter(Boolean)"
)


@pytest.fixture(scope="module")
def searched(
    mlflow_server: MlflowServer, cluster: str, tmp_path_factory: pytest.TempPathFactory
) -> FakeSearch:
    """A search on the server: real in all but its networks."""
    settings = (
        f"budget.trials={TRIALS}",
        f"tracking.uri={mlflow_server.uri}",
        "sampler.name=random",
        "stopping.name=none",
    )
    variables = {"SPIKETUNE_FAKE_EPOCH_S": "0.001"}
    folder = tmp_path_factory.mktemp("searched")
    search = FakeSearch(folder, cluster, settings, variables, name="pages")
    search.run()
    return search


@pytest.fixture(scope="module")
def records(searched: FakeSearch) -> list[TrialRecord]:
    _, _, found = open_recorded(searched.runs, searched.name)
    assert [record.state for record in found] == ["finished"] * TRIALS
    return found


@pytest.fixture(scope="module")
def runs(mlflow_server: MlflowServer, searched: FakeSearch) -> dict[str, Run]:
    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name("chaos")
    assert experiment is not None
    return {str(run.info.run_name): run for run in client.search_runs([experiment.experiment_id])}


def seen(folder: Path, uri: str, look: Callable[[Page], Awaitable[None]]) -> None:
    async def go() -> None:
        async with browser(folder / "profile") as page:
            await look(page)
            assert not [told for told in page.complaints if "exceptionId" in told]
            elsewhere = {told for told in page.requests if not told.startswith((uri, "data:"))}
            assert not {told for told in elsewhere if told.startswith("http")}

    asyncio.run(go())


async def open_children(page: Page, server: MlflowServer, parent: Run) -> None:
    """The table of runs: at first the search's alone, then with its trials below it."""
    await open_page(page, f"{server.uri}/#/experiments/{parent.info.experiment_id}/runs")
    await page.until(f"{NAMES}.join() === 'pages'")
    await click(page, component("runnamecellrenderer.tsx_46"))
    await page.until(f"{NAMES}.length === {TRIALS + 1}")


def test_children_are_nested_and_sort_by_accuracy(
    mlflow_server: MlflowServer,
    records: list[TrialRecord],
    runs: dict[str, Run],
    tmp_path: Path,
) -> None:
    parent = runs["pages"]
    names = [record.name for record in records]
    top1 = {record.name: record.last["val_top1"] for record in records}

    async def look(page: Page) -> None:
        await open_children(page, mlflow_server, parent)
        found = await page.value(NAMES)
        assert found[0] == "pages"
        assert sorted(found[1:]) == names

        await click(page, '[data-testid="sort-select-dropdown"]')
        await click(page, '[data-testid="sort-select-val_top1"]')
        await page.until(f"location.hash.includes('val_top1') && {NAMES}[0] !== 'pages'")
        for direction, sign in (("desc", -1.0), ("asc", 1.0)):
            await click(page, '[data-testid="sort-select-dropdown"]')
            await click(page, f'[data-testid="sort-select-{direction}"]')
            wanted = sorted(top1.values(), key=lambda value: sign * value)
            leader = wanted[0]
            best = [name for name in names if top1[name] == leader]
            await page.until(f"{best}.includes({NAMES}.find(n => n !== 'pages'))")
            found = [name for name in await page.value(NAMES) if name != "pages"]
            assert [top1[name] for name in found] == wanted

    seen(tmp_path, mlflow_server.uri, look)


def test_runs_are_filtered_by_accuracy_energy_and_a_parameter(
    mlflow_server: MlflowServer,
    records: list[TrialRecord],
    runs: dict[str, Run],
    tmp_path: Path,
) -> None:
    parent = runs["pages"]
    top1, energy = (
        sorted(record.last[name] for record in records)[TRIALS // 2]
        for name in ("val_top1", "energy_mj")
    )
    width = str(max(record.params["model.width"] for record in records))
    queries = {
        f"metrics.val_top1 >= {top1!r}": [r for r in records if r.last["val_top1"] >= top1],
        f"metrics.energy_mj < {energy!r}": [r for r in records if r.last["energy_mj"] < energy],
        f"params.`model.width` = '{width}'": [
            r for r in records if str(r.params["model.width"]) == width
        ],
    }

    async def look(page: Page) -> None:
        await open_children(page, mlflow_server, parent)
        for query, found in queries.items():
            assert 0 < len(found) < TRIALS
            if await page.value(f"!!document.querySelector('{CLEAR}')"):
                await click(page, CLEAR)
                await page.until("location.hash.includes('searchFilter=&')")
            await click(page, SEARCH_BOX)
            await page.write(query)
            await page.until(f"!!document.querySelector('{CLEAR}')")  # it has taken the text
            while "searchFilter=&" in await page.value("location.hash"):
                await page.press("Enter", 13, "\r")  # the first may only close the suggestions
            wanted = [*sorted(record.name for record in found), "pages"]  # with what they are of
            await page.until(f"{NAMES}.sort().join() === '{','.join(wanted)}'")

    seen(tmp_path, mlflow_server.uri, look)


def test_ten_runs_compare_in_parallel_coordinates_and_scatter(
    mlflow_server: MlflowServer, runs: dict[str, Run], tmp_path: Path
) -> None:
    parent = runs["pages"]

    async def look(page: Page) -> None:
        await open_children(page, mlflow_server, parent)
        for row in range(1, COMPARED + 1):
            await click(page, f'[role=row][row-index="{row}"] .ag-checkbox-input')
        await click_text(page, "Compare")
        await page.until(f"document.body.innerText.includes('Comparing {COMPARED} Runs')")
        await page.until(f"{PLOT}?.data?.[0]?.type === 'parcoords'")
        dimensions = await page.value(
            f"{PLOT}.data[0].dimensions.map(d => [d.label, d.values.length])"
        )
        assert len(dimensions) >= 4
        assert all(count == COMPARED for _, count in dimensions), dimensions
        assert "model.timesteps" in {label for label, _ in dimensions}
        await click_text(page, "Scatter Plot")
        await page.until(f"{PLOT}?.data?.[0]?.type?.startsWith('scatter')")
        assert await page.value(f"{PLOT}.data[0].x.length") == COMPARED

    seen(tmp_path, mlflow_server.uri, look)


def test_a_runs_artifacts_open(
    mlflow_server: MlflowServer, runs: dict[str, Run], tmp_path: Path
) -> None:
    run = runs["00003"]

    async def look(page: Page) -> None:
        where = f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts"
        await open_page(page, f"{mlflow_server.uri}/#/{where}")
        await click_text(page, "firing_rates.json")
        await page.until("document.body.innerText.includes('head_lif')")
        await click_text(page, "config.json")
        await page.until("document.body.innerText.includes('split_seed')")
        await click_text(page, "checkpoint")
        await page.until("document.body.innerText.includes('best.safetensors')")

    seen(tmp_path, mlflow_server.uri, look)
