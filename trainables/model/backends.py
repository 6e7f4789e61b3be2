"""Neuron backends: how the network's steps are computed; the network itself is the same.

A backend works on `[T,B,C,H,W]` and leaves parameters, statistics and state-dict keys to the
modules, which it calls, so that forward hooks see every layer. Shapes: T timesteps, B batch, C
channels, H W grid.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional as nnf

from trainables.model.neurons import SpikingNeuron


class Synapses(nn.Conv2d):
    """A convolution whose currents may have been computed elsewhere."""

    def forward(self, input: torch.Tensor, currents: torch.Tensor | None = None) -> torch.Tensor:
        """The currents given, or those of the input: hooks see either."""
        return super().forward(input) if currents is None else currents


class TorchBackend:
    """Plain torch and SpikingJelly, layer by layer: what the others are held to."""

    def convolve(self, conv: Synapses, x_TBCHW: torch.Tensor) -> torch.Tensor:
        """Currents `[T,B,C',H,W]` of spikes or images."""
        return conv(x_TBCHW.flatten(0, 1)).unflatten(0, x_TBCHW.shape[:2])

    def convolve_all(self, convs: Sequence[Synapses], x_TBCHW: torch.Tensor) -> list[torch.Tensor]:
        """What `convolve` gives for each of several 1x1 convolutions of the same shape."""
        return [self.convolve(conv, x_TBCHW) for conv in convs]

    def normalise(
        self, norm: nn.BatchNorm2d, x_TBCHW: torch.Tensor, pool_stride: int = 0
    ) -> torch.Tensor:
        """Batch-normalised currents, max-pooled as spikes are where a stride is given."""
        out = norm(x_TBCHW.flatten(0, 1)).unflatten(0, x_TBCHW.shape[:2])
        return self.pool(out, pool_stride) if pool_stride else out

    def fire(
        self, neuron: SpikingNeuron, x: torch.Tensor, norm: nn.BatchNorm2d | None = None
    ) -> torch.Tensor:
        """Spikes of currents `[T,B,...]`, batch-normalised first where asked."""
        return neuron(x if norm is None else self.normalise(norm, x))

    def pool(self, x_TBCHW: torch.Tensor, stride: int) -> torch.Tensor:
        """Spikes max-pooled with window 3x3 and padding 1."""
        pooled = nnf.max_pool2d(x_TBCHW.flatten(0, 1), kernel_size=3, stride=stride, padding=1)
        return pooled.unflatten(0, x_TBCHW.shape[:2])

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_size: int, scale: float
    ) -> torch.Tensor:
        """`q (k^T v scale)` `[T,B,A,N,d]`, the tokens of a block of timesteps together."""
        q_blocks, k_blocks, v_blocks = (_grouped(x, block_size) for x in (q, k, v))
        context = (k_blocks.transpose(-2, -1) @ v_blocks) * scale
        out = (q_blocks @ context).unflatten(3, (block_size, -1))
        return out.permute(0, 3, 1, 2, 4, 5).flatten(0, 1)


def _grouped(x_TBANd: torch.Tensor, block_size: int) -> torch.Tensor:
    # [T,B,A,N,d] to [T/c,B,A,c*N,d]
    blocks = x_TBANd.unflatten(0, (-1, block_size))
    return blocks.permute(0, 2, 3, 1, 4, 5).flatten(3, 4)


TORCH = TorchBackend()


def grid_mean(x_TBCHW: torch.Tensor) -> torch.Tensor:
    """`[T,B,C]`, the mean over the grid; its gradient has the memory order of what is given."""
    if x_TBCHW.stride(2) != 1:
        return x_TBCHW.flatten(3).mean(dim=3)
    return x_TBCHW.movedim(2, -1).flatten(2, 3).mean(dim=2)


class Backed(nn.Module):
    """A module that computes through a backend.

    Attributes:
        backend: plain torch until `use_backend` says otherwise.
    """

    backend: TorchBackend = TORCH

    def synapses(self, name: str) -> Synapses:
        """The convolution of that name."""
        return cast(Synapses, self.get_submodule(name))

    def norm(self, name: str) -> nn.BatchNorm2d:
        """The batch norm of that name."""
        return cast(nn.BatchNorm2d, self.get_submodule(name))

    def neuron(self, name: str) -> SpikingNeuron:
        """The neuron layer of that name."""
        return cast(SpikingNeuron, self.get_submodule(name))
