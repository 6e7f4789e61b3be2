"""Spikformer: spikes added to spikes, with its own self-attention or STAtten in its place.

Everything between layers is a count of spikes, not a current. Shapes: T timesteps, B batch, C
channels, D width, H W grid, N tokens (H*W), A heads, d head dim, K classes.
"""

from typing import ClassVar

import torch
from torch import nn

from trainables.config import ModelConfig
from trainables.model.attention import (
    BlockProduct,
    SpikeProduct,
    TokenProduct,
    merge_heads,
    split_heads,
)
from trainables.model.backends import Backed, Synapses, grid_mean
from trainables.model.block import DropPath
from trainables.model.embedding import POOL_STRIDE, as_frames, conv3x3
from trainables.model.neurons import ATTENTION_THRESHOLD, make_neuron
from trainables.model.recompute import Stack

# STAtten plugs in where Spikformer's SSA is; the mode's scale and blocks come with the product.
PRODUCTS: dict[str, type[SpikeProduct]] = {"ssa": TokenProduct, "statten": BlockProduct}


class FiringLayers(Backed):
    """A module of layers that are convolution, batch norm and neuron, each ending in spikes."""

    def add_layer(self, name: str, conv: Synapses, neuron: str, suffix: str = "") -> None:
        """Register `NAME_convSUFFIX`, `NAME_bnSUFFIX` and `NAME_lifSUFFIX`."""
        self.add_module(f"{name}_conv{suffix}", conv)
        self.add_module(f"{name}_bn{suffix}", nn.BatchNorm2d(conv.out_channels))
        self.add_module(f"{name}_lif{suffix}", make_neuron(neuron))

    def fire(self, name: str, x_TBCHW: torch.Tensor, suffix: str = "") -> torch.Tensor:
        """Spikes `[T,B,C',H,W]` of a layer."""
        currents = self.backend.convolve(self.synapses(f"{name}_conv{suffix}"), x_TBCHW)
        lif, norm = self.neuron(f"{name}_lif{suffix}"), self.norm(f"{name}_bn{suffix}")
        return self.backend.fire(lif, currents, norm)


class SpikingPatchSplitting(FiringLayers):
    """Four 3x3 layers of D/8 to D channels, each optionally pooled, and a positional fifth.

    Source: Zhou et al., ICLR 2023, section 3.2: the fifth layer's spikes are added to its input.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Lay out the five layers."""
        super().__init__()
        width = config.width
        channels = (config.in_channels, width // 8, width // 4, width // 2, width)
        self.pool_stages = tuple(stage == "1" for stage in config.pooling)
        for stage in range(4):
            conv = conv3x3(channels[stage], channels[stage + 1])
            self.add_layer("proj", conv, config.neuron, str(stage or ""))
        self.add_layer("rpe", conv3x3(width, width), config.neuron)

    def forward(self, x_TBCHW: torch.Tensor) -> torch.Tensor:
        """Counts (0, 1 or 2) `[T,B,D,H',W']` of frames `[T,B,C,H,W]`."""
        x = x_TBCHW
        for stage, pools in enumerate(self.pool_stages):
            x = self.fire("proj", x, str(stage or ""))
            x = self.backend.pool(x, POOL_STRIDE) if pools else x
        return self.fire("rpe", x) + x


class SpikformerAttention(FiringLayers):
    """Query, key and value spikes, a product of them that fires, and a projection that fires.

    Source: Zhou et al., ICLR 2023, equations 5 to 7; with `statten` Lee et al., CVPR 2025.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build projections of D to D channels and the mode's product.

        Raises:
            ValueError: the mode is no product of this backbone; the message lists the valid ones.
        """
        super().__init__()
        if config.attention not in PRODUCTS:
            raise ValueError(
                f"attention must be one of {sorted(PRODUCTS)} with backbone=spikformer, "
                f"but got {config.attention!r}"
            )
        width = config.width
        self.heads = config.heads
        for name in ("q", "k", "v"):
            self.add_layer(name, Synapses(width, width, 1, bias=False), config.neuron)
        self.product = PRODUCTS[config.attention](config)
        self.attn_lif = make_neuron(config.neuron, ATTENTION_THRESHOLD)
        self.add_layer("proj", Synapses(width, width, 1), config.neuron)

    def forward(self, x_TBDHW: torch.Tensor) -> torch.Tensor:
        """Spikes to add to the input counts `[T,B,D,H,W]`."""
        convs = [self.synapses(f"{name}_conv") for name in "qkv"]
        currents = self.backend.convolve_all(convs, x_TBDHW)
        q, k, v = (self._split_heads(*layer) for layer in zip("qkv", currents, strict=True))
        product_TBANd = self.product(q, k, v, x_TBDHW.shape[-2])
        attn = self.backend.fire(self.attn_lif, merge_heads(product_TBANd, x_TBDHW))
        return self.fire("proj", attn)

    def _split_heads(self, name: str, currents_TBDHW: torch.Tensor) -> torch.Tensor:
        lif, norm = self.neuron(f"{name}_lif"), self.norm(f"{name}_bn")
        x_TBDHW = self.backend.fire(lif, currents_TBDHW, norm)
        # [T,B,D,H,W] -> [T,B,A,d,N] -> [T,B,A,N,d]
        return split_heads(x_TBDHW, self.heads)


class SpikformerMLP(FiringLayers):
    """Two 1x1 layers, D to D*r to D channels, both firing."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the two layers."""
        super().__init__()
        width, hidden = config.width, config.width * config.mlp_ratio
        self.add_layer("fc1", Synapses(width, hidden, 1), config.neuron)
        self.add_layer("fc2", Synapses(hidden, width, 1), config.neuron)

    def forward(self, x_TBDHW: torch.Tensor) -> torch.Tensor:
        """Spikes to add to the input counts `[T,B,D,H,W]`."""
        return self.fire("fc2", self.fire("fc1", x_TBDHW))


class SpikformerBlock(nn.Module):
    """`x + attn(x)`, then `x + mlp(x)`, on counts of spikes `[T,B,D,H,W]`."""

    def __init__(self, config: ModelConfig, drop_prob: float) -> None:
        """Build the two branches; `drop_prob` is this block's share of stochastic depth."""
        super().__init__()
        self.attn = SpikformerAttention(config)
        self.mlp = SpikformerMLP(config)
        self.drop_path = DropPath(drop_prob)

    def forward(self, x_TBDHW: torch.Tensor) -> torch.Tensor:
        """Counts of the same shape."""
        x = x_TBDHW + self.drop_path(self.attn(x_TBDHW))
        return torch.as_tensor(x + self.drop_path(self.mlp(x)))


class Spikformer(nn.Module):
    """Spiking transformer whose residuals add spikes.

    Source: Zhou et al., ICLR 2023 (arXiv 2209.15425), with 1x1 convolutions as its ImageNet and DVS
    networks have. Differs by logits a timestep (the head is linear, so their mean is the paper's),
    by applying drop path, and by the scale 0.125 for event data too (there 0.25).

    Attributes:
        analog_layers: layers whose input is no spike count: the image, and the mean over tokens.
    """

    analog_layers: ClassVar[frozenset[str]] = frozenset({"patch_embed.proj_conv", "head"})

    def __init__(self, config: ModelConfig) -> None:
        """Build and initialise the network of a configuration."""
        super().__init__()
        self.config = config
        self.patch_embed = SpikingPatchSplitting(config)
        rates = torch.linspace(0.0, config.drop_path, config.depth, device="cpu").tolist()
        self.block = Stack(SpikformerBlock(config, rate) for rate in rates)
        self.head = nn.Linear(config.width, config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits a timestep; averaging over T is the caller's.

        Args:
            x: images `[B,C,H,W]`, shown at every timestep, or frames `[B,T,C,H,W]`.

        Returns:
            Logits `[T,B,K]`.

        Raises:
            ValueError: the shape or the number of timesteps does not fit the configuration.
        """
        counts = self.block.through(self.patch_embed(as_frames(x, self.config)))
        return torch.as_tensor(self.head(grid_mean(counts)))
