"""Patch embedding (SPS): four 3x3 convolutions from pixels to token currents.

Shapes: T timesteps, B batch, C channels, H W grid.
"""

import torch
from torch import nn

from trainables.config import ModelConfig
from trainables.model.backends import Backed, Synapses
from trainables.model.neurons import make_neuron

POOL_STRIDE = 2


class PatchEmbedding(Backed):
    """Convolution, batch norm, spikes and optional pooling, four times, then a positional residual.

    Source: Yao et al., NeurIPS 2023, spiking patch splitting; names are the reference's keys.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Lay out stages of D/8, D/4, D/2 and D channels."""
        super().__init__()
        width = config.width
        channels = (config.in_channels, width // 8, width // 4, width // 2, width)
        self.pool_stages = tuple(stage == "1" for stage in config.pooling)
        for stage, suffix in enumerate(("", "1", "2", "3")):
            c_in, c_out = channels[stage], channels[stage + 1]
            self.add_module(f"proj_conv{suffix}", conv3x3(c_in, c_out))
            self.add_module(f"proj_bn{suffix}", nn.BatchNorm2d(c_out))
            self.add_module(f"proj_lif{suffix}", make_neuron(config.neuron))
        self.rpe_conv = conv3x3(width, width)
        self.rpe_bn = nn.BatchNorm2d(width)

    def forward(self, x_TBCHW: torch.Tensor) -> torch.Tensor:
        """Currents `[T,B,D,H',W']` of frames `[T,B,C,H,W]`."""
        backend, x = self.backend, x_TBCHW
        for stage, suffix in enumerate(("", "1", "2")):
            x = backend.convolve(self.synapses(f"proj_conv{suffix}"), x)
            x = backend.fire(self.neuron(f"proj_lif{suffix}"), x, self.norm(f"proj_bn{suffix}"))
            x = backend.pool(x, POOL_STRIDE) if self.pool_stages[stage] else x
        x = backend.convolve(self.synapses("proj_conv3"), x)
        stride = POOL_STRIDE if self.pool_stages[3] else 0
        features = backend.normalise(self.norm("proj_bn3"), x, stride)
        x = backend.fire(self.neuron("proj_lif3"), features)
        x = backend.convolve(self.synapses("rpe_conv"), x)
        return backend.normalise(self.norm("rpe_bn"), x) + features


def as_frames(x: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Frames `[T,B,C,H,W]` of a network's input.

    Args:
        x: images `[B,C,H,W]`, shown at every timestep, or frames `[B,T,C,H,W]`.
        config: the network's; says T and whether images are welcome.

    Raises:
        ValueError: the shape or the number of timesteps does not fit the configuration.
    """
    num_steps = config.timesteps
    if x.dim() == 4 and not config.event_data:
        return x.unsqueeze(0).expand(num_steps, -1, -1, -1, -1)
    if x.dim() == 5 and x.shape[1] == num_steps:
        return x.transpose(0, 1)
    wanted = "[B,T,C,H,W]" if config.event_data else "[B,C,H,W] or [B,T,C,H,W]"
    raise ValueError(f"input must be {wanted} with T={num_steps}, but got shape {tuple(x.shape)}")


def conv3x3(c_in: int, c_out: int) -> Synapses:
    """A 3x3 convolution that keeps the grid, without bias."""
    return Synapses(c_in, c_out, kernel_size=3, stride=1, padding=1, bias=False)
