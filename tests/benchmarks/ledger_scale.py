"""What a trial costs in a ledger of 10,000, against one of 500, and how long a resume loads it."""

import logging
import resource
import sys
import tempfile
import time
from pathlib import Path

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search.records import Outcome
from search.study import Ledger
from spaces.schema import Objective

FEW, MANY, WINDOW = 500, 10_000, 100
EPOCHS = 2
OBJECTIVES = (
    Objective(metric="val_top1", mode="max"),
    Objective(metric="energy_mj", mode="min"),
)
DISTRIBUTIONS = {
    "model.width": CategoricalDistribution([16, 32]),
    "train.lr": FloatDistribution(1e-4, 1e-2, log=True),
}


def main(many: int = MANY) -> None:
    """Print processor milliseconds a trial, their ratio, load time and memory."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'study.db'}"
        ledger = Ledger.create(url, "s", OBJECTIVES, {})
        at: dict[int, float] = {}
        for number in range(many):
            if number % WINDOW == 0:
                started = time.process_time()
            add(ledger, number)
            if (number + 1) % WINDOW == 0:
                at[number + 1] = 1e3 * (time.process_time() - started) / WINDOW
        ledger.close()
        small, large = at[min(FEW, many)], at[many]
        print(
            f"a trial of {EPOCHS} epochs in the ledger: {small:.1f} ms after {FEW}, "
            f"{large:.1f} ms after {many:,}: {large / small:.2f} times"
        )
        started, wall = time.process_time(), time.monotonic()
        again = Ledger.open(url, "s", OBJECTIVES, write=True)
        took, waited = time.process_time() - started, time.monotonic() - wall
        again.close()
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"resume loads {many:,} trials in {took:.1f} s of processor time ({waited:.1f} s)")
        print(f"peak memory of the driver: {peak_mib} MiB")


def add(ledger: Ledger, number: int) -> None:
    """One trial as the director records it, reading all records at each epoch as it does."""
    params = {"model.width": 16, "train.lr": 1e-3 + number * 1e-8}
    record = ledger.add(params, DISTRIBUTIONS, {"model": {"width": 16}}, f"{number:016x}")
    for epoch in range(1, EPOCHS + 1):
        ledger.records[record.number] = record
        outcome = Outcome("finished", "completed") if epoch == EPOCHS else None
        metrics = {"val_top1": 50.0 + number % 17, "energy_mj": 1.0, "train_loss": 1.0 / epoch}
        ledger.report(record.number, epoch, metrics, {"head_lif": 0.25}, outcome)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else MANY)
