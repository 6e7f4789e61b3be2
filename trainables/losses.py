"""Losses over per-timestep logits.

Targets are class indices `[B]`, which are smoothed here, or the soft labels `[B,K]` of mixed
batches, which are smoothed already. Shapes: T timesteps, B batch, K classes.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as nnf

from trainables.config import TrainConfig

LossFunction = Callable[[torch.Tensor, torch.Tensor, TrainConfig], torch.Tensor]


def averaged_cross_entropy(
    logits_TBK: torch.Tensor, target: torch.Tensor, train: TrainConfig
) -> torch.Tensor:
    """Cross-entropy of the logits averaged over time, with label smoothing."""
    return _cross_entropy(logits_TBK.mean(dim=0), target, train)


def temporal_efficient_training(
    logits_TBK: torch.Tensor, target: torch.Tensor, train: TrainConfig
) -> torch.Tensor:
    """TET: `(1-l) mean_t CE(o_t, y) + l MSE(o, mean)`.

    Source: Deng et al., ICLR 2022 (arXiv 2202.11946).
    """
    repeated = target.repeat(logits_TBK.shape[0], *(1,) * (target.dim() - 1))
    cross_entropy = _cross_entropy(logits_TBK.flatten(0, 1), repeated, train)
    regulariser = (logits_TBK - train.tet_mean).square().mean()
    return (1.0 - train.tet_lambda) * cross_entropy + train.tet_lambda * regulariser


def _cross_entropy(
    logits_BK: torch.Tensor, target: torch.Tensor, train: TrainConfig
) -> torch.Tensor:
    smoothing = 0.0 if target.is_floating_point() else train.label_smoothing
    return nnf.cross_entropy(logits_BK, target, label_smoothing=smoothing)


LOSSES: dict[str, LossFunction] = {
    "ce": averaged_cross_entropy,
    "tet": temporal_efficient_training,
}
