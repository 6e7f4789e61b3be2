"""How long a network takes for a batch.

Shapes: T timesteps, B batch, C channels, H W image.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from trainables.config import Precision, TrialConfig
from trainables.data import Split
from trainables.model.selection import use_backend
from trainables.model.weights import load_model
from trainables.scoring import autocast

WARMUP = 2
MIN_RUNS = 5
MAX_RUNS = 50
BUDGET_S = 1.0
_MS = 1e3


@dataclass(frozen=True)
class Latency:
    """Time of a forward pass over a batch; the median, and the quartiles as its spread.

    Attributes:
        batch_size: images a batch.
        runs: passes that were timed, after `WARMUP` that were not.
        batch_ms: median.
        quartiles_ms: 25th and 75th percentile.
    """

    batch_size: int
    runs: int
    batch_ms: float
    quartiles_ms: tuple[float, float]

    @property
    def image_ms(self) -> float:
        """Median time of the batch divided by its images."""
        return self.batch_ms / self.batch_size


def measure_latencies(
    config: TrialConfig, state: Mapping[str, torch.Tensor], split: Split, device: torch.device
) -> list[Latency]:
    """Latency of one image and of an evaluation batch of real data.

    Raises:
        CheckpointError: the weights are of another network.
    """
    train = config.train
    network = load_model(config.model, state, device)
    use_backend(network, train, device)
    sizes = sorted({1, min(train.eval_batch_size, len(split))})
    batches = (split.batch(torch.arange(size), device)[0] for size in sizes)
    return [measure_latency(network, batch, train.precision) for batch in batches]


@torch.no_grad()
def measure_latency(model: nn.Module, inputs: torch.Tensor, precision: Precision) -> Latency:
    """Time a network's forward pass, data already on the device, for about a second.

    Args:
        model: in evaluation mode, without hooks.
        inputs: images `[B,C,H,W]` or frames `[B,T,C,H,W]`.
        precision: as it is evaluated.
    """
    times_s: list[float] = []
    with autocast(inputs.device, precision):
        for _ in range(WARMUP):
            _timed(model, inputs)
        while len(times_s) < MAX_RUNS and (len(times_s) < MIN_RUNS or sum(times_s) < BUDGET_S):
            times_s.append(_timed(model, inputs))
    low, middle, high = statistics.quantiles(times_s, n=4)
    return Latency(inputs.shape[0], len(times_s), middle * _MS, (low * _MS, high * _MS))


def _timed(model: nn.Module, inputs: torch.Tensor) -> float:
    _synchronise(inputs.device)
    start = time.perf_counter()
    model(inputs)
    _synchronise(inputs.device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
