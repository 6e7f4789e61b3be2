"""How long MLflow's run table of a search takes to load: `python -m tests.benchmarks.mlflow_table`.

Runs are written by our own tracking; the table is loaded by a headless Chromium from a real server.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from chromium import Page, browser
from mlflow_server import MlflowServer

from search.records import TrialRecord
from search.tracking import Tracker, TrackerConfig, default_uri

EPOCHS, TIMES = 5, 3
METRICS = (
    "timesteps", "train_loss", "val_loss", "val_top1", "val_top5", "energy_mj", "sops_g",
    "firing_rate", "params_m", "images_per_s", "peak_memory_mib", "epoch_s",
)  # fmt: skip
SEND_S = 1800.0
SORT = "metrics.%60val_top1%60"
ROWS = "document.querySelectorAll('.ag-pinned-left-cols-container [role=row] a').length"


def main() -> int:
    """Write the runs, load the table a few times and print the seconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--folder", type=Path, help="where the runs are kept, and found again")
    given = parser.parse_args()
    trials = given.trials
    with tempfile.TemporaryDirectory(prefix="spiketune-") as scratch:
        folder = given.folder or Path(scratch)
        if not (folder / "mlflow.db").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            began_s = time.perf_counter()
            _write(folder, trials)
            print(f"{trials} runs written in {time.perf_counter() - began_s:.0f} s")
        server = MlflowServer(folder)
        try:
            seconds = [
                asyncio.run(_load(Path(scratch) / str(place), server.uri)) for place in range(TIMES)
            ]
            cold, warm = zip(*seconds, strict=True)
            print(f"{trials} runs: {min(cold):.1f} to {max(cold):.1f} s in a new browser,")
            print(f"{min(warm):.1f} to {max(warm):.1f} s in one that has MLflow open")
        finally:
            server.close()
    return 0


def _write(folder: Path, trials: int) -> None:
    tracker = Tracker(TrackerConfig(default_uri(folder), "many", "many", "id", folder / "spool"))
    tracker.start()
    tracker.search_started({"budget.trials": trials}, {}, {})
    for number in range(trials):
        record = TrialRecord(
            number=number,
            params={
                "model.timesteps": number % 8 + 1,
                "model.width": 64,
                "train.lr": 1e-3 + number,
            },
            config={"model": {"depth": 2}},
            config_hash="ab",
            state="running",
            reason="",
            attempt=1,
            epochs=(),
            started_s=1e9 + number,
        )
        tracker.trial_started(record)
        for epoch in range(1, EPOCHS + 1):
            values = dict.fromkeys(METRICS, number * 7 % 101 + epoch / 3)
            tracker.trial_epoch(number, epoch, values, 1e9 + number + epoch)
        ended = replace(record, state="finished", reason="completed", ended_s=1e9 + number + 9)
        tracker.trial_ended(ended, {"firing_rates.json": "{}"})
    tracker.search_ended("FINISHED", {"trials": float(trials)}, {}, 1e9 + trials)
    if not tracker.close(SEND_S):
        raise RuntimeError("the runs must be sent within half an hour")


async def _load(profile: Path, uri: str) -> tuple[float, float]:
    """Seconds until the rows are drawn in a new browser, and in one that has MLflow open."""
    where = f"{uri}/#/experiments/1/runs?orderByKey={SORT}&orderByAsc=false"
    async with browser(profile) as page:
        await page.open("about:blank", 1600, 1000)
        cold_s = await _until_drawn(page, where)
        await page.open(f"{uri}/#/experiments", 1600, 1000)
        await page.until(f"{ROWS} === 0")
        return cold_s, await _until_drawn(page, where)


async def _until_drawn(page: Page, where: str) -> float:
    began_s = time.perf_counter()
    await page.call("Page.navigate", url=where)
    await page.until(f"{ROWS} >= 10")
    return time.perf_counter() - began_s


if __name__ == "__main__":
    sys.exit(main())
