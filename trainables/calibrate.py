"""Measures training steps on this machine, so that those of other networks can be predicted."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from trainables.config import ModelConfig, TrainConfig, TrialConfig
from trainables.model import build_model
from trainables.model.recompute import set_recompute
from trainables.model.selection import pick_backend, use_backend
from trainables.optimization import Optimization
from trainables.parallel import ALONE
from trainables.prediction import TIME_WORK, Calibration, machine, step_work

CPU = torch.device("cpu")
BUDGET_S = 20.0
_MIN_STEPS = 3
_SHARE_S = 0.9  # of a configuration's time, once it has its least steps
# timesteps, depth, width, image size, channels, pooling, batch, attention, mlp_ratio: spread over
# what people search, each kind of work large in some and small in others.
_STEPS: tuple[tuple[int, int, int, int, int, str, int, str, int], ...] = (
    (1, 1, 32, 16, 1, "0011", 8, "sdt", 4),
    (8, 1, 16, 16, 1, "0011", 8, "statten", 4),
    (2, 3, 64, 16, 1, "0011", 16, "statten", 4),
    (4, 2, 192, 16, 3, "1111", 16, "statten", 4),
    (16, 1, 32, 32, 2, "1111", 8, "sdt", 4),
    (6, 2, 96, 8, 1, "0111", 64, "ssa", 4),
    (2, 1, 96, 64, 2, "1100", 4, "sdt", 4),
    (2, 2, 64, 32, 3, "0111", 32, "spikformer", 4),
    (4, 2, 128, 32, 3, "0011", 8, "statten", 4),
    (8, 1, 96, 8, 1, "0111", 128, "statten", 2),
    (10, 1, 64, 64, 2, "1111", 8, "statten", 4),
    (1, 4, 256, 16, 3, "0011", 8, "sdt", 4),
    (1, 1, 128, 16, 1, "1111", 128, "statten", 1),
    (4, 1, 64, 16, 3, "0010", 32, "sdt", 4),
    (5, 1, 64, 32, 2, "1100", 4, "ssa", 2),
    (1, 2, 256, 32, 3, "0011", 32, "statten", 4),
    (6, 1, 32, 32, 3, "1111", 32, "statten", 4),
    (4, 3, 64, 32, 2, "1111", 8, "sdt", 1),
    (2, 1, 32, 32, 3, "0011", 64, "statten", 4),
    (1, 1, 192, 32, 3, "1111", 32, "statten", 2),
    (4, 1, 64, 32, 3, "0011", 32, "ssa", 4),
    (2, 1, 128, 64, 2, "0111", 8, "statten", 1),
    (6, 3, 64, 8, 1, "1100", 64, "sdt", 1),
    (2, 2, 384, 32, 3, "1111", 32, "statten", 4),
    (2, 1, 96, 32, 3, "1100", 16, "statten", 2),
    (16, 1, 64, 64, 2, "1111", 4, "statten", 4),
    (4, 1, 32, 64, 2, "0111", 8, "spikformer", 4),
    (8, 2, 96, 32, 3, "0011", 16, "statten", 4),
)


@dataclass(frozen=True)
class Measured:
    """A configuration and what its steps took.

    Attributes:
        config: the network and its batch.
        seconds: median of its steps.
    """

    config: TrialConfig
    seconds: float


def calibrate(
    precision: str = "float32",
    threads: int = 1,
    budget_s: float = BUDGET_S,
    told: Callable[[int, int], None] = lambda *_: None,
) -> Calibration:
    """Measure steps for about `budget_s` seconds and fit the rates that explain them.

    Args:
        precision: of the steps, as `train.precision`.
        threads: as a trial will have.
        budget_s: how long; a machine on which less than half of the steps fit takes longer.
        told: hears how many configurations are measured, and of how many.
    """
    configs = [_config(*step, precision=precision) for step in _STEPS]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    measured: list[Measured] = []
    try:
        training_step(configs[0])()  # the first one on a machine compiles the kernels
        start = time.monotonic()
        for number, config in enumerate(configs):
            left_s = budget_s - (time.monotonic() - start)
            if left_s <= 0.0 and number > len(configs) // 2:
                break
            measured.append(measure(config, max(left_s, 0.0) / (len(configs) - number)))
            told(number + 1, len(configs))
    finally:
        torch.set_num_threads(before)
    return fitted(measured, precision, threads)


def _config(
    timesteps: int,
    depth: int,
    width: int,
    image_size: int,
    in_channels: int,
    pooling: str,
    batch_size: int,
    attention: str,
    mlp_ratio: int,
    *,
    precision: str,
) -> TrialConfig:
    is_event = in_channels == 2
    mode = {"attention": attention}
    if attention == "spikformer":
        mode = {"backbone": attention, "attention": "ssa"}
    model = {
        "timesteps": timesteps, "depth": depth, "width": width, "image_size": image_size,
        "in_channels": in_channels, "pooling": pooling, "mlp_ratio": mlp_ratio,
        "block_size": 1, "heads": 4, "event_data": is_event, **mode,
    }  # fmt: skip
    train = {"batch_size": batch_size, "precision": precision, "device": "cpu"}
    return TrialConfig(
        model=ModelConfig.model_validate(model), train=TrainConfig.model_validate(train)
    )


def measure(config: TrialConfig, share_s: float) -> Measured:
    """Take steps of a freshly built network on made-up images for about `share_s` seconds."""
    step = training_step(config)
    step()  # makes the gradients and the optimiser's state
    taken: list[float] = []
    until = time.monotonic() + _SHARE_S * share_s
    for number in count():
        if number >= _MIN_STEPS and time.monotonic() > until:
            break
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return Measured(config, statistics.median(taken))


def training_step(config: TrialConfig) -> Callable[[], None]:
    """A function that takes one optimisation step of a network on made-up images."""
    model = config.model
    network = build_model(model)
    network.train()
    use_backend(network, config.train, CPU)
    set_recompute(network, recompute=config.train.recompute)
    optimization = Optimization(network, config.train, CPU, ALONE)
    optimization.set_rate(config.train.lr)
    frames = (model.timesteps,) if model.event_data else ()
    batch = config.train.batch_size
    inputs = torch.rand(batch, *frames, model.in_channels, model.image_size, model.image_size)
    labels = torch.randint(0, model.num_classes, (batch,))

    def step() -> None:
        optimization.step(inputs, labels, 1.0)

    return step


def fitted(measured: Sequence[Measured], precision: str, threads: int) -> Calibration:
    """The rates that explain measured steps best, relative to what each took."""
    works = [step_work(step.config) for step in measured]
    backend = pick_backend(measured[0].config.train, CPU)
    rates, error = _fit(works, [step.seconds for step in measured], TIME_WORK)
    return Calibration(machine(threads), precision, backend, rates, error, len(measured))


def _fit(
    works: Sequence[dict[str, float]], values: Sequence[float], names: tuple[str, ...]
) -> tuple[dict[str, float], float]:
    """Rates of at least 0, and the median error of values that the others predict."""
    if len(values) <= len(names):
        return dict.fromkeys(names, 0.0), 0.0
    rows: Any = np.array([[work[name] for name in names] for work in works])
    goal = np.array(values)
    rates = _rates(rows, goal)
    errors = []
    for left_out in range(len(goal)):
        rest = np.arange(len(goal)) != left_out
        told = float(rows[left_out] @ _rates(rows[rest], goal[rest]))
        errors.append(abs(told / goal[left_out] - 1.0))
    return dict(zip(names, rates.tolist(), strict=True)), float(np.median(errors))


def _rates(rows: Any, goal: Any) -> Any:
    relative = rows / goal[:, None]
    scale = relative.max(axis=0)
    scale[scale == 0.0] = 1.0
    found, _ = nnls(relative / scale, np.ones(len(goal)))
    return found / scale
