"""Losses over per-timestep logits.

Shapes: T timesteps, B batch, K classes.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as nnf

from trainables.config import TrainConfig

LossFunction = Callable[[torch.Tensor, torch.Tensor, TrainConfig], torch.Tensor]


def averaged_cross_entropy(
    logits_TBK: torch.Tensor, target_B: torch.Tensor, train: TrainConfig
) -> torch.Tensor:
    """Cross-entropy of the logits averaged over time, with label smoothing."""
    return nnf.cross_entropy(
        logits_TBK.mean(dim=0), target_B, label_smoothing=train.label_smoothing
    )


def temporal_efficient_training(
    logits_TBK: torch.Tensor, target_B: torch.Tensor, train: TrainConfig
) -> torch.Tensor:
    """TET: `(1-l) mean_t CE(o_t, y) + l MSE(o, mean)`.

    Source: Deng et al., ICLR 2022 (arXiv 2202.11946).
    """
    repeated = target_B.repeat(logits_TBK.shape[0])
    cross_entropy = nnf.cross_entropy(
        logits_TBK.flatten(0, 1), repeated, label_smoothing=train.label_smoothing
    )
    regulariser = (logits_TBK - train.tet_mean).square().mean()
    return (1.0 - train.tet_lambda) * cross_entropy + train.tet_lambda * regulariser


LOSSES: dict[str, LossFunction] = {
    "ce": averaged_cross_entropy,
    "tet": temporal_efficient_training,
}
