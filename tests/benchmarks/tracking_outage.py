"""What a tracking event costs the driver while the store answers, and while it hangs."""

import logging
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from faulty_proxy import FaultyProxy
from mlflow_server import MlflowServer

from search.records import TrialRecord
from search.tracking import Tracker, TrackerConfig, default_uri

EVENTS = 300
METRICS = dict.fromkeys(("val_top1", "val_loss", "train_loss", "energy_mj", "sops_g"), 1.0)


def main() -> None:
    """Print the milliseconds of an event with each store, and their ratio."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Tracker(TrackerConfig(default_uri(folder), "x", "x", "0", folder / "spool")).start()
        server = MlflowServer(folder)
        healthy = FaultyProxy(server.port, ("hang",), 0.0, seed=0)
        hanging = FaultyProxy(server.port, ("hang",), 1.0, seed=0)
        try:
            taken = {
                what: event_ms(folder / what, proxy.uri)
                for what, proxy in (("answers", healthy), ("hangs", hanging))
            }
        finally:
            for proxy in (healthy, hanging):
                proxy.close()
            server.close()
            shutil.rmtree(folder / "spool", ignore_errors=True)
    for what, times in taken.items():
        print(
            f"event while the store {what:7} {statistics.median(times):6.2f} ms median, "
            f"{max(times):6.1f} ms at most, of {len(times)}"
        )
    ratio = statistics.median(taken["hangs"]) / statistics.median(taken["answers"])
    print(f"a hanging store makes an event {ratio:.2f} times as long for the driver")


def event_ms(folder: Path, uri: str) -> list[float]:
    """Milliseconds of each of many events."""
    tracker = Tracker(TrackerConfig(uri, "bench", "bench", "1", folder / "spool", required=False))
    tracker.start()
    tracker.search_started({}, {}, {})
    tracker.trial_started(TrialRecord(0, {}, {}, "", "running", "", 1, (), 1000.0))
    times = []
    for epoch in range(1, EVENTS + 1):
        start = time.perf_counter()
        tracker.trial_epoch(0, epoch, METRICS, 1000.0 + epoch)
        times.append(1e3 * (time.perf_counter() - start))
    tracker.close(1.0)
    return times


if __name__ == "__main__":
    main()
