"""Cutting, mirroring and RandAugment of single pictures, reproducible by a seed a picture.

timm's operations and strengths; the random choices are drawn from each picture's own seed, because
timm draws from the process-wide generators, which threads and resumed runs cannot share.
"""

import math
import random
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from trainables.config import DataConfig

if TYPE_CHECKING:  # importing timm takes seconds, and most trials need none of it
    from timm.data.auto_augment import AugmentOp, RandAugment

BICUBIC = Image.Resampling.BICUBIC
MIN_RATIO, MAX_RATIO = 3.0 / 4.0, 4.0 / 3.0
CROP_ATTEMPTS = 10
STRENGTH_BOUND = 10.0  # timm's scale of magnitudes
TRANSLATE_SHARE = 0.45

Picture = Image.Image
_GLOBAL_RANDOM = Lock()


class TrainingPicture:
    """Random crop, mirror and RandAugment of one picture, by its seed."""

    def __init__(self, data: DataConfig, size: int, mean: tuple[float, ...]) -> None:
        """Read the settings once."""
        self._size = size
        self._crop_scale = data.crop_scale
        self._hflip = data.hflip
        self._policy = None if data.randaugment == "none" else _policy(data, size, mean)

    def __call__(self, picture: Picture, seed: int) -> Picture:
        """A `size` x `size` picture; the same for the same seed."""
        draw = random.Random(seed)
        picture = self._crop(picture, draw)
        if draw.random() < self._hflip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for operation in self._operations(draw):
            picture = operation(picture)
        return picture

    def _crop(self, picture: Picture, draw: random.Random) -> Picture:
        # scale = ratio = 1 is a resize of everything, as the CIFAR recipes have it
        if self._crop_scale < 1.0:
            left, top, width, height = _crop_box(picture.size, self._crop_scale, draw)
            picture = picture.crop((left, top, left + width, top + height))
        return _resized(picture, (self._size, self._size))

    def _operations(self, draw: random.Random) -> list[Callable[[Picture], Picture]]:
        if self._policy is None:
            return []
        chosen = draw.choices(self._policy.ops, k=self._policy.num_layers)
        drawn = [_drawn_operation(operation, draw) for operation in chosen]
        return [operation for operation in drawn if operation is not None]


class EvaluationPicture:
    """The middle of a picture: shorter side resized to `size / crop_pct`, then cut."""

    def __init__(self, size: int, crop_pct: float) -> None:
        """Keep the sizes."""
        self._size = size
        self._side = math.floor(size / crop_pct)

    def __call__(self, picture: Picture) -> Picture:
        """A `size` x `size` picture."""
        width, height = picture.size
        factor = self._side / min(width, height)
        picture = _resized(picture, (round(width * factor), round(height * factor)))
        left = round((picture.width - self._size) / 2)
        top = round((picture.height - self._size) / 2)
        return picture.crop((left, top, left + self._size, top + self._size))


def _policy(data: DataConfig, size: int, mean: tuple[float, ...]) -> "RandAugment":
    hparams = {
        "translate_const": int(size * TRANSLATE_SHARE),
        "img_mean": tuple(min(255, round(255 * channel)) for channel in mean),
        "interpolation": BICUBIC,
    }
    from timm.data.auto_augment import rand_augment_transform

    return rand_augment_transform(data.randaugment, hparams)


def _drawn_operation(
    operation: "AugmentOp", draw: random.Random
) -> Callable[[Picture], Picture] | None:
    """Fix an operation's strength and sign, as timm's AugmentOp would when called."""
    if operation.prob < 1.0 and draw.random() > operation.prob:
        return None
    strength = float(operation.magnitude)
    if operation.magnitude_std == math.inf:
        strength = draw.uniform(0.0, strength)
    elif operation.magnitude_std > 0:
        strength = draw.gauss(strength, operation.magnitude_std)
    strength = max(0.0, min(strength, float(operation.magnitude_max or STRENGTH_BOUND)))
    arguments = _level_arguments(operation, strength, draw)
    if operation.name.startswith("Posterize"):
        # At full strength timm keeps no bit at all, which Pillow refuses.
        arguments = (max(1, int(arguments[0])),)
    return lambda picture: operation.aug_fn(picture, *arguments, **operation.kwargs)


def _level_arguments(
    operation: "AugmentOp", strength: float, draw: random.Random
) -> tuple[float, ...]:
    if operation.level_fn is None:
        return ()
    # timm draws the sign from the process-wide generator: lend it one of ours and put it back.
    with _GLOBAL_RANDOM:
        state = random.getstate()
        try:
            random.seed(draw.getrandbits(64))
            return tuple(operation.level_fn(strength, operation.hparams))
        finally:
            random.setstate(state)


def _crop_box(
    size: tuple[int, int], min_scale: float, draw: random.Random
) -> tuple[int, int, int, int]:
    """Left, top, width and height of a crop of random area and aspect ratio.

    Source: Szegedy et al., CVPR 2015; the fallback is the largest allowed middle.
    """
    width, height = size
    for _ in range(CROP_ATTEMPTS):
        area = draw.uniform(min_scale, 1.0) * width * height
        ratio = math.exp(draw.uniform(math.log(MIN_RATIO), math.log(MAX_RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return draw.randint(0, width - w), draw.randint(0, height - h), w, h
    w = min(width, round(height * MAX_RATIO))
    h = min(height, round(width / MIN_RATIO))
    return (width - w) // 2, (height - h) // 2, w, h


def _resized(picture: Picture, size: tuple[int, int]) -> Picture:
    return picture if picture.size == size else picture.resize(size, BICUBIC)


def pixels(picture: Picture) -> np.ndarray:
    """Bytes `[H,W,3]`."""
    return np.asarray(picture, dtype=np.uint8)
