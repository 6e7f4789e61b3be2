"""Training augmentation of whole batches, on the batch's device.

Everything random is drawn from the generator that is passed in, on the CPU, so that a batch is the
same on every device. Shapes: B batch, T timesteps, C channels, H W image; `...` is `C` or `T,C`.
"""

from functools import partial

import torch
from torch.nn import functional as nnf

from trainables.config import DataConfig
from trainables.data.splits import Augment

ROLL_PX = 3
ROTATE_DEG = 15.0
SHEAR_DEG = 15.0
CUTOUT_PX = 16
TRIVIAL_SHEAR = 0.3
TRIVIAL_SHIFT_PX = 5
TRIVIAL_ROTATE_DEG = 30.0


def tensor_augments(data: DataConfig) -> tuple[Augment, ...]:
    """What a configuration asks for of what every data set can do to a finished batch."""
    chosen: list[Augment] = []
    if data.shift_px:
        chosen.append(partial(shift_images, max_px=data.shift_px))
    return tuple(chosen)


def event_augments(data: DataConfig) -> tuple[Augment, ...]:
    """What a configuration asks for on event frames: flip, then the list of `dvs_augment`."""
    chosen: list[Augment] = []
    if data.hflip:
        chosen.append(partial(flip_images, probability=data.hflip))
    if data.dvs_augment != "none":
        chosen.append(EVENT_AUGMENTS[data.dvs_augment])
    return (*chosen, *tensor_augments(data))


def shift_images(x: torch.Tensor, generator: torch.Generator, max_px: int) -> torch.Tensor:
    """Move a batch's images by up to `max_px` pixels, one offset a sample, edges repeated."""
    height, width = x.shape[-2:]
    offsets = torch.randint(-max_px, max_px + 1, (2, x.shape[0], 1), generator=generator)
    offsets = offsets.to(x.device)
    rows = (torch.arange(height, device=x.device) + offsets[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + offsets[1]).clamp(0, width - 1)
    return _take_pixels(x, rows, columns)


def flip_images(x: torch.Tensor, generator: torch.Generator, probability: float) -> torch.Tensor:
    """Mirror samples left to right with a probability."""
    flips = (torch.rand(x.shape[0], generator=generator) < probability).to(x.device)
    return torch.where(flips.view(-1, *(1,) * (x.dim() - 1)), x.flip(-1), x)


def neuromorphic(x_BTCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One of roll ±3 px (around the edges), rotate ±15° and shear ±15° a sample.

    Source: the list of Li et al., Neuromorphic Data Augmentation, ECCV 2022, as the recipe uses it.
    """
    batch = x_BTCHW.shape[0]
    kind = torch.randint(0, 3, (batch,), generator=generator)
    offsets = torch.randint(-ROLL_PX, ROLL_PX + 1, (2, batch), generator=generator)
    angles, shears = _uniform(ROTATE_DEG, batch, generator), _uniform(SHEAR_DEG, batch, generator)
    rolled = _roll(x_BTCHW, offsets * (kind == 0))
    radians = torch.deg2rad(torch.where(kind == 1, angles, 0.0))
    slopes = torch.tan(torch.deg2rad(torch.where(kind == 2, shears, 0.0)))
    return _warp(rolled, radians, slopes)


def cutout(x_BTCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blank one square of 16 px a sample, its centre anywhere, the same in every frame.

    Source: DeVries and Taylor, 2017 (arXiv 1708.04552).
    """
    batch, (height, width) = x_BTCHW.shape[0], x_BTCHW.shape[-2:]
    rows = torch.randint(0, height, (batch, 1), generator=generator)
    columns = torch.randint(0, width, (batch, 1), generator=generator)
    half = CUTOUT_PX // 2
    y, x = torch.arange(height), torch.arange(width)
    in_rows = (y >= rows - half) & (y < rows + half)
    in_columns = (x >= columns - half) & (x < columns + half)
    hole = (in_rows[:, :, None] & in_columns[:, None, :]).to(x_BTCHW.device)
    return x_BTCHW.masked_fill(hole[:, None, None], 0.0)


def trivial(x_BTCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One of identity, shear-x ±0.3, translate-x or -y ±5 px and rotate ±30° a sample.

    Source: Müller and Hutter, TrivialAugment, ICCV 2021, with the strengths of the recipe.
    """
    batch, (height, width) = x_BTCHW.shape[0], x_BTCHW.shape[-2:]
    kind = torch.randint(0, 5, (batch,), generator=generator)
    slopes = torch.where(kind == 1, _uniform(TRIVIAL_SHEAR, batch, generator), 0.0)
    pixels = _uniform(TRIVIAL_SHIFT_PX, batch, generator).round()
    angles = torch.where(kind == 4, _uniform(TRIVIAL_ROTATE_DEG, batch, generator), 0.0)
    shift_x = torch.where(kind == 2, pixels, 0.0) * (2.0 / width)
    shift_y = torch.where(kind == 3, pixels, 0.0) * (2.0 / height)
    return _warp(x_BTCHW, torch.deg2rad(angles), slopes, torch.stack([shift_x, shift_y], dim=1))


EVENT_AUGMENTS: dict[str, Augment] = {
    "snda": neuromorphic,
    "cutout": cutout,
    "trivial": trivial,
}


def _uniform(bound: float, count: int, generator: torch.Generator) -> torch.Tensor:
    return (2.0 * torch.rand(count, generator=generator) - 1.0) * bound


def _roll(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    height, width = x.shape[-2:]
    rows = (torch.arange(height) - offsets[0][:, None]) % height
    columns = (torch.arange(width) - offsets[1][:, None]) % width
    return _take_pixels(x, rows.to(x.device), columns.to(x.device))


def _take_pixels(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Pick rows `[B,H]` and columns `[B,W]` of each sample `[B,...,H,W]`."""
    flat = x.flatten(1, -3).permute(0, 2, 3, 1)
    samples = torch.arange(x.shape[0], device=x.device)[:, None, None]
    moved = flat[samples, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).reshape(x.shape)


def _warp(
    x: torch.Tensor,
    radians: torch.Tensor,
    slopes: torch.Tensor,
    shifts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate, shear along x and shift (in half sides) about the centre; nearest pixel."""
    height, width = x.shape[-2:]
    cos, sin = torch.cos(radians), torch.sin(radians)
    ratio = height / width
    moves = torch.zeros(len(cos), 2) if shifts is None else shifts
    # affine_grid works in half sides, so that a turn of an oblong image needs its aspect ratio
    first = torch.stack([cos, (slopes * cos - sin) * ratio, -moves[:, 0]], dim=1)
    second = torch.stack([sin / ratio, slopes * sin + cos, -moves[:, 1]], dim=1)
    theta = torch.stack([first, second], dim=1).to(x.device, x.dtype)
    flat = x.flatten(1, -3)
    grid = nnf.affine_grid(theta, list(flat.shape), align_corners=False)
    moved = nnf.grid_sample(flat, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved.reshape(x.shape)
