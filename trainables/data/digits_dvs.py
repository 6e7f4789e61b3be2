"""Real digits seen by a simulated event camera: event data without a download.

The digit moves along the three saccades of N-MNIST; wherever the logarithm of a pixel's intensity
has changed by a threshold since its last event, an ON or OFF event is given. Deterministic.

Shapes: N samples, K motion steps, T timesteps, S side.
"""

from functools import lru_cache
from itertools import pairwise

import torch
from torch.nn import functional as nnf

from trainables.config import DataConfig, ModelConfig
from trainables.data.augment import event_augments
from trainables.data.kept import shared_array
from trainables.data.raw_digits import raw_digits
from trainables.data.splits import DataSplits, TensorSplit, stratified_indices
from trainables.errors import InputError

FORMAT = 1  # raise it when frames are computed otherwise
DIGITS_MAX = 16.0
NUM_STEPS = 48  # motion steps of a recording, 16 a saccade
AMPLITUDE = 0.125  # of the side: how far a saccade goes, as N-MNIST's few pixels of 34
MARGIN = 0.0625  # of the side on each edge, so that the digit stays in view
FLOOR = 0.1  # background intensity; without it the logarithm has no bound
THRESHOLD = 0.2  # log intensity an event

# Corners of the path about the middle; N-MNIST's sensor goes around a triangle in three saccades.
PATH = ((-0.5, -0.5), (0.0, 0.5), (0.5, -0.5), (-0.5, -0.5))


def load_digit_events(data: DataConfig, model: ModelConfig) -> DataSplits:
    """scikit-learn's 1,797 digits as event counts `[N,T,2,S,S]`, ON in channel 1.

    Frames split a recording by time, unlike those of recorded data, which split it by number of
    events: the motion is the same for all samples, so that both give nearly the same.

    Source: the motion is that of Orchard et al., N-MNIST, 2015.

    Raises:
        InputError: there are more timesteps than motion steps.
    """
    if model.timesteps > NUM_STEPS:
        raise InputError(
            f"model.timesteps must be at most {NUM_STEPS} for data digits_dvs, "
            f"but got {model.timesteps}"
        )
    frames = event_frames(model.timesteps, model.image_size)
    _, target = raw_digits()
    labels = torch.from_numpy(target)
    parts = stratified_indices(target, data.val_frac, data.test_frac, data.split_seed)
    augments = event_augments(data)
    return DataSplits(
        *(
            TensorSplit(frames, labels[i], augments=augments, rows=torch.from_numpy(i))
            for i in parts
        )
    )


@lru_cache(maxsize=4)
def event_frames(timesteps: int, size: int) -> torch.Tensor:
    """Event counts of all digits, `[N,T,2,S,S]` (uint8)."""
    name = f"digits_dvs-{FORMAT}-T{timesteps}-{size}x{size}"
    return torch.from_numpy(shared_array(name, lambda: _integrated(timesteps, size).numpy()))


def _integrated(timesteps: int, size: int) -> torch.Tensor:
    scene = _scene(size)
    path = saccades(size)
    reference = _log_intensity(scene, path[-1])  # the path ends where it starts
    frames = torch.zeros(len(scene), timesteps, 2, size, size, dtype=torch.uint8)
    for step, offset in enumerate(path):
        change = _log_intensity(scene, offset) - reference
        # Rounded towards zero: whole thresholds become events, the rest stays for the next step.
        events = torch.trunc(change / THRESHOLD)
        reference += events * THRESHOLD
        frame = frames[:, step * timesteps // NUM_STEPS]
        frame[:, 1] += events.clamp(min=0).to(torch.uint8)
        frame[:, 0] += (-events).clamp(min=0).to(torch.uint8)
    return frames


def saccades(size: int) -> list[tuple[float, float]]:
    """Where the digit is after each motion step, in pixels right and down of the middle."""
    steps_a_leg = NUM_STEPS // (len(PATH) - 1)
    offsets = []
    for start, end in pairwise(PATH):
        for step in range(1, steps_a_leg + 1):
            share = step / steps_a_leg
            x, y = (a + share * (b - a) for a, b in zip(start, end, strict=True))
            offsets.append((x * AMPLITUDE * size, y * AMPLITUDE * size))
    return offsets


def _scene(size: int) -> torch.Tensor:
    pixels = torch.from_numpy(raw_digits()[0]).unsqueeze(1) / DIGITS_MAX
    margin = round(MARGIN * size)
    inner = max(1, size - 2 * margin)
    digits = nnf.interpolate(pixels, size=(inner, inner), mode="bilinear", align_corners=False)
    after = size - inner - margin
    return nnf.pad(digits, (margin, after, margin, after))


def _log_intensity(scene_N1SS: torch.Tensor, offset: tuple[float, float]) -> torch.Tensor:
    """The scene moved by whole and part pixels, `[N,S,S]`, in log intensity."""
    size = scene_N1SS.shape[-1]
    identity = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    identity[:, 2] = -2.0 * torch.tensor(offset) / size
    theta = identity.expand(len(scene_N1SS), -1, -1)
    grid = nnf.affine_grid(theta, list(scene_N1SS.shape), align_corners=False)
    moved = nnf.grid_sample(scene_N1SS, grid, align_corners=False)
    return torch.log(moved[:, 0] + FLOOR)
