"""Takes the README's pictures from a real search, in a headless Chromium: `make screenshots`."""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from chromium import BROWSER, Page, browser
from mlflow_pages import click, component, open_page
from mlflow_server import MlflowServer
from PIL import Image

from search.tracking_store import load_mlflow

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / ".github"
MAX_KIB = 300
COLOURS = 128
COMPARED = 10
SHOWN = ("energy_mj", "val_top1")  # the last one gives the colour
SHOWN_AXES = 3 + len(SHOWN)  # MLflow chooses three parameters
SEARCH = (
    "--name", "digits", "--set", "budget.trials=12", "--set", "trial.train.epochs=6",
    "--set", "space.model.timesteps.choice=[1,2,4]", "--set", "sampler.name=random",
)  # fmt: skip
PLOT = "document.querySelector('.js-plotly-plot')"
METRICS = "document.querySelectorAll('[class*=select-show-search]')[1]"
REMOVE = f"{METRICS}.querySelector('[class$=selection-item-remove]')"
LABELS = f"{PLOT}.data[0].dimensions.map(d => d.label)"


def main() -> int:
    """Search, then look at it."""
    if BROWSER is None:
        sys.stderr.write("there is no chromium here\n")
        return 1
    with tempfile.TemporaryDirectory(prefix="spiketune-") as scratch:
        folder = Path(scratch)
        server = MlflowServer(folder)
        try:
            words = ("search", str(ROOT / "spaces" / "digits.yaml"), *SEARCH)
            subprocess.run(
                [sys.executable, "-m", "search.cli", *words, "--set", f"tracking.uri={server.uri}"],
                cwd=folder,
                env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
                check=True,
            )
            asyncio.run(_look(folder, server.uri))
        finally:
            server.close()
    return 0


async def _look(folder: Path, uri: str) -> None:
    async with browser(folder / "profile") as page:
        await page.open(folder / "runs/digits/report.html", 1100, 1500)
        await page.until("document.documentElement.dataset.ready === '1'")
        await page.until("document.querySelector('figure').classList.contains('drawn')")
        await _picture(page, folder, "report")
        await open_page(page, f"{uri}/#/compare-runs?{_compared(uri)}")
        await page.until(f"{METRICS} && {PLOT}?.data?.[0]?.type === 'parcoords'")
        for metric in SHOWN:
            await _choose_metric(page, metric)
        await page.value(f"{REMOVE}.click()")  # the one that MLflow chose
        await page.until(f"{LABELS}.length === {SHOWN_AXES}")
        await click(page, component("toggle_sidebar_button"))
        await page.size(1300, 800)
        # the plot follows its page
        await page.until(f"{PLOT}.querySelectorAll('.axis-title').length === {SHOWN_AXES}")
        await page.until(f"{PLOT}._fullLayout.width === {PLOT}.clientWidth")
        await _picture(page, folder, "mlflow")


async def _choose_metric(page: Page, name: str) -> None:
    """Add a metric to the parallel coordinates, as a reader types it."""
    await page.value(f"{METRICS}.querySelector('input').focus()")
    await page.write(name)
    await page.press("Enter", 13, "\r")
    await page.until(f"{LABELS}.includes('{name}')")


def _compared(uri: str) -> str:
    client = load_mlflow().MlflowClient(uri)
    experiment = client.get_experiment_by_name("digits")
    found = client.search_runs(
        [experiment.experiment_id],
        "tags.`mlflow.parentRunId` != ''",
        order_by=["metrics.val_top1 DESC"],
        max_results=COMPARED,
    )
    ids = ",".join(f'"{run.info.run_id}"' for run in found)
    return urlencode({"runs": f"[{ids}]", "experiments": f'["{experiment.experiment_id}"]'})


async def _picture(page: Page, folder: Path, name: str) -> None:
    taken, kept = folder / f"{name}.png", PICTURES / f"{name}.png"
    await page.picture(taken)
    with Image.open(taken) as image:
        image.convert("RGB").quantize(COLOURS).save(kept, optimize=True)
    size_kib = kept.stat().st_size // 1024
    sys.stdout.write(f"{kept}: {size_kib} KiB\n")
    if size_kib > MAX_KIB:
        raise RuntimeError(f"a picture must have at most {MAX_KIB} KiB, but {kept} has {size_kib}")


if __name__ == "__main__":
    sys.exit(main())
