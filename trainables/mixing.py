"""Mixup and cutmix of whole batches, with the soft labels that go with them.

A batch is mixed with its own reverse, one ratio for all its samples. Shapes: B batch, K classes,
H W image; `...` is `C` or `T,C`.
"""

import math

import numpy as np
import torch
from torch.nn import functional as nnf

from trainables.config import TrainConfig


def mix(
    x: torch.Tensor,
    labels_B: torch.Tensor,
    num_classes: int,
    train: TrainConfig,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix a batch as the configuration says.

    Source: Zhang et al., ICLR 2018 (arXiv 1710.09412); Yun et al., ICCV 2019 (arXiv 1905.04899);
    timm's batch mode.

    Args:
        x: inputs `[B,...,H,W]`.
        labels_B: class indices.
        num_classes: K.
        train: probabilities, alphas and label smoothing.
        rng: decides whether, how and by how much; the same number of draws for every batch size.

    Returns:
        Mixed inputs and smoothed soft labels `[B,K]`.
    """
    is_mixed = rng.random() < train.mixup_prob
    by_cutmix = train.cutmix > 0.0 and (
        train.mixup == 0.0 or rng.random() < train.mixup_switch_prob
    )
    alpha = train.cutmix if by_cutmix else train.mixup
    kept = float(rng.beta(alpha, alpha)) if is_mixed else 1.0
    if is_mixed and by_cutmix:
        x, kept = cut_in(x, kept, rng)
    elif is_mixed:
        x = x * kept + x.flip(0) * (1.0 - kept)
    soft = soft_labels(labels_B, num_classes, train.label_smoothing, x.dtype)
    return x, soft * kept + soft.flip(0) * (1.0 - kept)


def cut_in(x: torch.Tensor, kept: float, rng: np.random.Generator) -> tuple[torch.Tensor, float]:
    """Replace a box of about `1 - kept` of the area by the reversed batch's.

    Returns:
        The batch, and the share of the area that was really kept: the box ends at the edges.
    """
    height, width = x.shape[-2:]
    side = math.sqrt(1.0 - kept)
    rows = _span(height, int(height * side), int(rng.integers(height)))
    columns = _span(width, int(width * side), int(rng.integers(width)))
    mixed = x.clone()
    mixed[..., rows, columns] = x.flip(0)[..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1.0 - area / (height * width)


def soft_labels(
    labels_B: torch.Tensor, num_classes: int, smoothing: float, dtype: torch.dtype
) -> torch.Tensor:
    """Labels `[B,K]`: `smoothing / K` everywhere, the rest on the class."""
    return (
        nnf.one_hot(labels_B, num_classes).to(dtype) * (1.0 - smoothing) + smoothing / num_classes
    )


def _span(size: int, length: int, centre: int) -> slice:
    return slice(max(0, centre - length // 2), min(size, centre + (length + 1) // 2))
