"""Seconds of a training step, predicted from what this machine has been seen to do.

Importable without torch. They are a sum of the step's amounts of work, each at a rate that
`spiketune calibrate` has fitted to some measured steps. Memory: `footprint.py`.
"""

import json
import math
import os
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainables import cost
from trainables.cache import cache_folder
from trainables.config import ModelConfig, TrialConfig
from trainables.cost import (
    embedding_channels,
    embedding_grids,
    macs_per_timestep,
    parameter_count,
)
from trainables.data_cards import CARDS
from trainables.files import write_atomically

FILE = "calibration.json"
FORMAT = 3
# A step is a forward and a backward that takes as long as two; computing again adds a forward.
RECOMPUTED = 4 / 3
# Channels, and rows and columns of pixels, that kernels work on at once: fewer take as long.
_LANES = 8
_TILE = 2

TIME_WORK = (
    "macs3x3", "macs1x1", "embedding", "blocks", "layers", "layer_steps", "parameters",
)  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """What was measured on a machine, and the rates that explain it.

    Attributes:
        machine: where, as `machine` says.
        precision: of the measured steps.
        backend: that computed them, as `train.neuron_backend`.
        seconds: of a unit of each kind of work, by `TIME_WORK`.
        time_error: median relative error of predicted step times, each predicted by the others.
        num_steps: different steps that were measured.
    """

    machine: Mapping[str, Any]
    precision: str
    backend: str
    seconds: Mapping[str, float]
    time_error: float
    num_steps: int


def machine(threads: int) -> dict[str, Any]:
    """What a calibration holds for: processor, torch, threads of a trial."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": threads,
        "torch": version("torch"),
    }


@lru_cache(maxsize=1)
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def fitting(measured: Calibration | None, config: TrialConfig) -> Calibration | None:
    """What was measured of this machine, if it was under a trial's conditions."""
    return measured if measured and measured.precision == config.train.precision else None


def step_work(config: TrialConfig, timesteps: int | None = None) -> dict[str, float]:
    """Amounts of work of one optimisation step, by the names of `TIME_WORK`.

    Args:
        config: the trial.
        timesteps: at which the step is taken; the model's unless given.
    """
    model, batch = config.model, config.train.batch_size // config.train.accumulate
    timesteps = timesteps or model.timesteps
    frames = float(timesteps * batch)
    is_sequence = CARDS[config.data.name].is_sequence
    macs = macs_per_timestep(model, is_sequence=is_sequence)
    in_blocks = sum(n for name, n in macs.items() if name.startswith("block."))
    grids = embedding_grids(model.image_size, model.pooling, is_sequence=is_sequence)
    outputs = embedding_channels(model.width)
    channels = (model.in_channels, *outputs)
    tiles = [-(-rows // _TILE) * -(-columns // _TILE) * _TILE**2 for rows, columns in grids]
    large = sum(9 * n * k * size for n, k, size in zip(channels, channels[1:], tiles, strict=False))
    sizes = _layer_sizes(model, grids)
    parts = float(config.train.accumulate)
    again = RECOMPUTED if config.train.recompute else 1.0
    embedding = sizes[: len(grids)]
    layers = len(embedding) + (len(sizes) - len(embedding)) * again
    lanes = sum(map(_padded, embedding, outputs))
    return {
        "macs3x3": large * frames * parts,
        "macs1x1": (in_blocks * again + macs["head"]) * frames * parts,
        "embedding": lanes * frames * parts,
        "blocks": (sum(sizes) - sum(embedding)) * frames * parts * again,
        "layers": layers * parts,
        "layer_steps": layers * timesteps * parts,
        "parameters": float(parameter_count(model)),
    }


def _layer_sizes(model: ModelConfig, grids: list[tuple[int, int]]) -> list[int]:
    """Activations of each neuron layer for one frame."""
    sizes = [
        channels * rows * columns
        for channels, (rows, columns) in zip(embedding_channels(model.width), grids, strict=True)
    ]
    currents, tokens = sizes[-1], sizes[-1] // model.width
    block = [currents] * 7 + [currents * model.mlp_ratio]
    if model.attention == "ssa":
        block.append(model.heads * tokens * tokens)
    return sizes + block * model.depth


def _padded(size: int, channels: int) -> int:
    """Activations of a layer, with those that fill the lanes of its last channels."""
    return size // channels * -(-channels // _LANES) * _LANES


def predicted_step_s(
    config: TrialConfig, calibration: Calibration, timesteps: int | None = None
) -> float:
    """Seconds of one optimisation step, at the model's timesteps or others."""
    work = step_work(config, timesteps)
    return sum(rate * work[name] for name, rate in calibration.seconds.items())


def predict_epoch_s(
    config: TrialConfig, num_images: int, calibration: Calibration | None = None
) -> float:
    """Seconds of one training epoch on a CPU, on average over all epochs.

    Args:
        config: the trial.
        num_images: training images an epoch.
        calibration: of the machine; without it a rough estimate, good to a factor of two.
    """
    if calibration is None:
        return cost.predict_epoch_s(config, num_images)
    steps = num_images // config.train.batch_size
    stages = Counter(map(config.timesteps_at, range(config.train.total_epochs)))
    spent_s = sum(n * predicted_step_s(config, calibration, t) for t, n in stages.items())
    return steps * spent_s / config.train.total_epochs


def save(calibration: Calibration) -> Path:
    """Keep a calibration for this user.

    Raises:
        OSError: the cache folder cannot be written.
    """
    path = cache_folder() / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"format": FORMAT, **asdict(calibration)}, indent=2) + "\n"
    write_atomically(path, content.encode())
    return path


def load(threads: int = 1) -> Calibration | None:
    """The calibration of this machine; None where there is none, or it is of another one."""
    try:
        content = json.loads((cache_folder() / FILE).read_text())
        if content.pop("format", None) != FORMAT:
            return None
        found = Calibration(**content)
        rates = [float(rate) for rate in found.seconds.values()]
        complete = found.seconds.keys() == set(TIME_WORK)
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # a damaged file is made again by calibrating again
    is_usable = complete and all(math.isfinite(rate) for rate in rates)
    return found if is_usable and dict(found.machine) == machine(threads) else None
