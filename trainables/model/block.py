"""One transformer block: attention and MLP, both residual on membrane current.

Shapes: T timesteps, B batch, D width, H W grid.
"""

import torch
from torch import nn

from trainables.config import ModelConfig
from trainables.model.attention import make_attention
from trainables.model.backends import Backed, Synapses
from trainables.model.neurons import make_neuron


class SpikingMLP(Backed):
    """Two 1x1 convolutions, each fed by spikes; an inner residual when the ratio is 1.

    Source: Yao et al., NeurIPS 2023; names are the reference's keys.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build D to D*r to D channels."""
        super().__init__()
        hidden = config.width * config.mlp_ratio
        self.inner_residual = config.mlp_ratio == 1
        self.fc1_lif = make_neuron(config.neuron)
        self.fc1_conv = Synapses(config.width, hidden, kernel_size=1)
        self.fc1_bn = nn.BatchNorm2d(hidden)
        self.fc2_lif = make_neuron(config.neuron)
        self.fc2_conv = Synapses(hidden, config.width, kernel_size=1)
        self.fc2_bn = nn.BatchNorm2d(config.width)

    def forward(self, x_TBDHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The branch's current and the current it is to be added to, both `[T,B,D,H,W]`."""
        currents = self._convolve("fc1", self.backend.fire(self.neuron("fc1_lif"), x_TBDHW))
        lif, norm = self.neuron("fc2_lif"), self.norm("fc1_bn")
        if self.inner_residual:
            identity = x_TBDHW + self.backend.normalise(norm, currents)
            spikes = self.backend.fire(lif, identity)
        else:
            identity = x_TBDHW
            spikes = self.backend.fire(lif, currents, norm)
        return self.backend.normalise(self.norm("fc2_bn"), self._convolve("fc2", spikes)), identity

    def _convolve(self, name: str, spikes: torch.Tensor) -> torch.Tensor:
        return self.backend.convolve(self.synapses(f"{name}_conv"), spikes)


class DropPath(nn.Module):
    """Drop a whole residual branch of a sample, over all its timesteps, with probability p.

    Source: Huang et al., ECCV 2016. Built but never applied by the reference; applied here.
    """

    def __init__(self, drop_prob: float) -> None:
        """Keep the probability."""
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x_TBDHW: torch.Tensor) -> torch.Tensor:
        """The branch, zeroed for dropped samples and scaled by 1/(1-p) for kept ones."""
        if self.drop_prob == 0.0 or not self.training:
            return x_TBDHW
        keep = 1.0 - self.drop_prob
        mask = x_TBDHW.new_empty((1, x_TBDHW.shape[1], 1, 1, 1)).bernoulli_(keep)
        return x_TBDHW * (mask / keep)


class Block(nn.Module):
    """Attention then MLP: `x + attn(x)`, then `x + mlp(x)`, currents `[T,B,D,H,W]`."""

    def __init__(self, config: ModelConfig, drop_prob: float) -> None:
        """Build the two branches; `drop_prob` is this block's share of stochastic depth."""
        super().__init__()
        self.attn = make_attention(config)
        self.mlp = SpikingMLP(config)
        self.drop_path = DropPath(drop_prob)

    def forward(self, x_TBDHW: torch.Tensor) -> torch.Tensor:
        """Currents of the same shape."""
        x = x_TBDHW + self.drop_path(self.attn(x_TBDHW))
        branch, identity = self.mlp(x)
        return torch.as_tensor(identity + self.drop_path(branch))
