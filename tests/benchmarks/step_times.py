"""Predicted seconds of a training step against measured, for networks drawn at random.

`python -m tests.benchmarks.step_times [--seed N] [--each N] [--precision P] [--save FILE]`
calibrates as `spiketune calibrate` does, for 20 seconds, then measures networks that calibration
has not seen: those of `tests/benchmarks/memory.py`, on the backend picked for this machine.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.memory import KINDS, drawn
from trainables.calibrate import calibrate, measure
from trainables.config import TrialConfig, with_overrides
from trainables.prediction import predicted_step_s

WITHIN = 0.30
SHARE_S = 2.0  # of a network's steps


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how far each prediction is off, and all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=10, help="networks of each kind of data")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", type=Path, help="where measurements go, as JSON lines")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    calibration = calibrate(asked.precision, asked.threads)
    print(
        f"calibrated with {calibration.num_steps} networks, each predicted by the others to "
        f"{100 * calibration.time_error:.0f} % in the median"
    )
    ratios, lines = [], []
    overrides = {"train.precision": asked.precision, "train.neuron_backend": "auto"}
    for kind in KINDS:
        for config_drawn in islice(drawn(kind, asked.seed), asked.each):
            tree = with_overrides(config_drawn.model_dump(), overrides)
            config = TrialConfig.model_validate(tree)
            seconds = measure(config, SHARE_S).seconds
            ratios.append(predicted_step_s(config, calibration) / seconds)
            lines.append({"config": config.model_dump(mode="json"), "seconds": seconds})
            off = 100 * (ratios[-1] - 1)
            took = f"{1e3 * seconds:7.1f} ms, predicted {off:+4.0f} %"
            print(f"{named(kind, config)}: {took}", flush=True)
    if asked.save is not None:
        asked.save.write_text("".join(json.dumps(line) + "\n" for line in lines))
    errors = np.abs(np.array(ratios) - 1.0)
    print(
        f"{len(ratios)} networks: median off {100 * np.median(errors):.0f} %, nine tenths "
        f"{100 * np.quantile(errors, 0.9):.0f} %, {100 * min(ratios) - 100:+.0f} to "
        f"{100 * max(ratios) - 100:+.0f} %, {int((errors <= WITHIN).sum())} within 30 %"
    )


def named(kind: str, config: TrialConfig) -> str:
    """What a person tells the network by."""
    model = config.model
    return (
        f"{kind:7} {model.backbone:10} {model.attention:7} T {model.timesteps:2} "
        f"{model.depth}-{model.width:3} {model.image_size:2}², pooling {model.pooling}, "
        f"batch {config.train.batch_size:3}"
    )


if __name__ == "__main__":
    main()
