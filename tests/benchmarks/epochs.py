"""Where an epoch's time goes by recipe: training, waiting for data, evaluation.

`python -m tests.benchmarks.epochs RECIPE... --data DIR`: a few batches of each are timed; shares
are those of an epoch with the recipe's own batch sizes and split.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from spaces.reading import recipe
from trainables import loop
from trainables.config import TrialConfig, with_overrides
from trainables.data.feeding import feed
from trainables.scoring import Scorer

RECIPES = ("digits", "digits_dvs", "cifar10", "cifar10_2_512", "nmnist", "imagenet_8_512")
# Where `shared/data` keeps what a data set's folder is called by.
FOLDERS = {"cifar10": "cifar10_5k", "nmnist": "nmnist", "imagenet": "tiny_imagenet_20c"}
SHARED = Path(__file__).parents[3] / "shared" / "data"


@dataclass
class Waits:
    """Iterates as another iterable does, and adds up how long that was waited for."""

    source: Iterable[Any]
    seconds: float = 0.0

    def __iter__(self) -> Iterator[Any]:
        """The source's items."""
        items = iter(self.source)
        while True:
            start = time.perf_counter()
            item = next(items, None)
            self.seconds += time.perf_counter() - start
            if item is None:
                return
            yield item


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, help="of the recipes whose own takes too long")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    print("| recipe | batch | training step | waiting for data | evaluation |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for key, folder in FOLDERS.items():
            (Path(name) / key).symlink_to(asked.data / folder)
        os.environ["SPIKETUNE_CACHE"] = str(Path(name) / "cache")
        for recipe_name in asked.recipes:
            changes: dict[str, Any] = {"data.root": name, "train.device": "cpu"}
            if asked.batch_size:
                changes |= {"train.batch_size": asked.batch_size}
                changes |= {"train.eval_batch_size": 2 * asked.batch_size}
            tree = with_overrides(recipe(recipe_name).model_dump(), changes)
            print(row(recipe_name, TrialConfig.model_validate(tree), asked.batches), flush=True)


def row(name: str, config: TrialConfig, num_batches: int) -> str:
    """Times a sample, as shares of an epoch's."""
    run = loop.TrialRun(config)
    run.model.train()
    batches = Waits(run._batches())
    taken = 0.0
    for number, (inputs, target) in enumerate(islice(batches, num_batches + 1)):
        if number == 0:  # the first warms up
            batches.seconds = 0.0
            run.optimization.step(inputs, target, 1.0)
            continue
        start = time.perf_counter()
        run.optimization.step(inputs, target, 1.0)
        taken += time.perf_counter() - start
    size = config.train.batch_size
    step_s = taken / num_batches
    wait_s = batches.seconds / num_batches
    val = run.splits.val
    chosen = torch.arange(min(len(val), num_batches * config.train.eval_batch_size))
    start = time.perf_counter()
    with Scorer(run.optimization.evaluated, config.energy, config.train.precision) as scorer:
        for inputs, labels in feed(val, chosen.split(config.train.eval_batch_size), run.device):
            scorer.add(run._input(inputs), labels)
    eval_s = (time.perf_counter() - start) / len(chosen)
    # as many as the recipe holds out, whatever this folder has
    val_a_train = len(val) / len(run.splits.train)
    evaluation = val_a_train * eval_s
    training = (step_s + wait_s) / size
    epoch = training + evaluation
    return (
        f"| {name} | {size} | {step_s:.3f} s | {100 * wait_s / size / epoch:.1f} % "
        f"| {100 * evaluation / epoch:.1f} % |"
    )


if __name__ == "__main__":
    main()
