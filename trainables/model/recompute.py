"""Blocks that are computed again in the backward instead of being kept for it."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Stack(nn.ModuleList):
    """Blocks one after the other.

    Attributes:
        recompute: whether training keeps only the blocks' inputs.
    """

    recompute = False

    def through(self, x: torch.Tensor) -> torch.Tensor:
        """The last block's output."""
        for block in self:
            if self.recompute and self.training and torch.is_grad_enabled():
                contexts = partial(_contexts, block)
                x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
            else:
                x = block(x)
        return x


def set_recompute(model: nn.Module, *, recompute: bool) -> None:
    """Let a network's blocks be kept, or computed again."""
    for module in model.modules():
        if isinstance(module, Stack):
            module.recompute = recompute


def _contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    return nullcontext(), _forgetful(norms)


@contextmanager
def _forgetful(norms: Iterable[nn.BatchNorm2d]) -> Iterator[None]:
    """Running statistics that stay as they are: the first time has updated them."""
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    counts = [None if count is None else count.clone() for _, _, count in kept]
    for norm, _, _ in kept:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for (norm, momentum, count), before in zip(kept, counts, strict=True):
            norm.momentum = momentum
            if count is not None and before is not None:
                count.copy_(before)
