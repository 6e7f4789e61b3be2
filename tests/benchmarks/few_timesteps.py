"""What training saves and costs that begins with few timesteps, on digits.

`python -m tests.benchmarks.few_timesteps --seeds 5`: CPU seconds, validation and test accuracy and
energy of the last epoch, of the same network trained in several ways.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from spaces.reading import recipe
from trainables.config import TrialConfig, with_overrides
from trainables.loop import TrialRun

NETWORK = {
    "model.width": 32,
    "model.timesteps": 4,
    "train.batch_size": 64,
    "train.epochs": 8,
}
WAYS: dict[str, dict[str, Any]] = {
    "T 4": {},
    "T 1, 2, 4": {"train.start_timesteps": 1},
    "T 2, 4": {"train.start_timesteps": 2},
    "T 4, 6 epochs": {"train.epochs": 6},
}
FIGURES = ("cpu_s", "val_top1", "test_top1", "energy_mj")


def main() -> None:
    """Print a table; spreads are standard deviations over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for seed in range(asked.seeds):
        for way in WAYS:  # in turn, so that other work on the machine meets all of them
            found[way].append(trained(way, seed))
            print(way, seed, *(f"{x:.4g}" for x in found[way][-1]), flush=True)
    print(f"| training | mean T | {' | '.join(FIGURES)} |")
    for way, rows in found.items():
        cells = " | ".join(spread(column) for column in zip(*rows, strict=True))
        print(f"| {way} | {mean_timesteps(way):.2f} | {cells} |")


def configured(way: str, seed: int) -> TrialConfig:
    tree = recipe("digits").model_dump()
    overrides = NETWORK | WAYS[way] | {"train.seed": seed}
    return TrialConfig.model_validate(with_overrides(tree, overrides))


def mean_timesteps(way: str) -> float:
    config = configured(way, 0)
    return sum(map(config.timesteps_at, range(config.train.total_epochs))) / config.train.epochs


def trained(way: str, seed: int) -> list[float]:
    run = TrialRun(configured(way, seed))
    start_s = time.process_time()
    while not run.done:
        metrics, _ = run.step()
    cpu_s = time.process_time() - start_s
    return [cpu_s, metrics["val_top1"], run.evaluate(run.splits.test).top1, metrics["energy_mj"]]


def spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4g} ± {np.std(values, ddof=1):.2g}"


if __name__ == "__main__":
    main()
