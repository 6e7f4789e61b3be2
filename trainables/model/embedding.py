"""Patch embedding (SPS): four 3x3 convolutions from pixels to token currents.

Shapes: T timesteps, B batch, C channels, H W grid.
"""

import torch
from torch import nn

from trainables.config import ModelConfig
from trainables.model.neurons import make_neuron


class PatchEmbedding(nn.Module):
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
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.rpe_conv = conv3x3(width, width)
        self.rpe_bn = nn.BatchNorm2d(width)

    def forward(self, x_TBCHW: torch.Tensor) -> torch.Tensor:
        """Currents `[T,B,D,H',W']` of frames `[T,B,C,H,W]`."""
        num_steps, batch = x_TBCHW.shape[:2]
        x = x_TBCHW.flatten(0, 1)
        for stage, suffix in enumerate(("", "1", "2")):
            x = self._convolve(x, suffix)
            x = self._fire(x, suffix, num_steps)
            x = self.pool(x) if self.pool_stages[stage] else x
        x = self._convolve(x, "3")
        features = self.pool(x) if self.pool_stages[3] else x
        x = self._fire(features, "3", num_steps)
        x = self.rpe_bn(self.rpe_conv(x)) + features
        return x.unflatten(0, (num_steps, batch))

    def _convolve(self, x: torch.Tensor, suffix: str) -> torch.Tensor:
        out = self.get_submodule(f"proj_bn{suffix}")(self.get_submodule(f"proj_conv{suffix}")(x))
        return torch.as_tensor(out)

    def _fire(self, x: torch.Tensor, suffix: str, num_steps: int) -> torch.Tensor:
        spikes = self.get_submodule(f"proj_lif{suffix}")(x.unflatten(0, (num_steps, -1)))
        return torch.as_tensor(spikes).flatten(0, 1)


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


def conv3x3(c_in: int, c_out: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the grid, without bias."""
    return nn.Conv2d(c_in, c_out, kernel_size=3, stride=1, padding=1, bias=False)
