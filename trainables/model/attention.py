"""Spike attention: one small class a mode, over shared projections.

Shapes: T timesteps, B batch, D width, H W grid, N tokens (H*W), A heads, d head dim, c block size.
"""

import torch
from torch import nn

from trainables.config import ModelConfig, grid_size
from trainables.model.backends import Backed, Synapses
from trainables.model.neurons import ATTENTION_THRESHOLD, make_neuron


class SpikeProduct(Backed):
    """A parameter-free product of spikes q, k, v; a module so that probes can hook it."""

    def __init__(self, config: ModelConfig) -> None:
        """Keep what the product's scale and grouping need."""
        super().__init__()
        self.block_size = config.block_size
        self.event_data = config.event_data
        self.grid = grid_size(config)

    def scale(self, grid: int) -> float:
        """Factor on the product for a grid of that height."""
        raise NotImplementedError

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: int) -> torch.Tensor:
        """Product `[T,B,A,N,d]` of spikes `[T,B,A,N,d]`."""
        raise NotImplementedError


class BlockProduct(SpikeProduct):
    """`q (k^T v s)` with the tokens of c consecutive timesteps together; linear in tokens.

    Source: Lee et al., CVPR 2025: s = 1/H for static images, 1/(H^2 c) for event data.
    """

    def scale(self, grid: int) -> float:
        """`1/H`, or `1/(H^2 c)` for event data."""
        return 1.0 / (grid * grid * self.block_size) if self.event_data else 1.0 / grid

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: int) -> torch.Tensor:
        """Attend within blocks of c timesteps."""
        return self.backend.attend(q, k, v, self.block_size, self.scale(grid))


class TokenProduct(SpikeProduct):
    """`(q k^T) v * 0.125` at every timestep; quadratic in tokens.

    Source: Zhou et al., Spikformer, ICLR 2023 (arXiv 2209.15425).
    """

    def scale(self, grid: int) -> float:  # noqa: ARG002  # the interface's argument
        """Spikformer's constant."""
        return 0.125

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: int) -> torch.Tensor:
        """Attend within one timestep."""
        return ((q @ k.transpose(-2, -1)) @ v) * self.scale(grid)


class SpikeAttention(Backed):
    """Query, key and value spikes, a mode's mixing of them, and the output projection.

    A mode is a subclass that defines `mix`; event data is max-pooled in space, as in the reference.
    Residual on membrane current: the caller's input is added after `proj_bn`.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build projections of D to D channels."""
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.event_data = config.event_data
        self.shortcut_lif = make_neuron(config.neuron)
        for name in ("q", "k", "v"):
            self.add_module(f"{name}_conv", Synapses(width, width, kernel_size=1, bias=False))
            self.add_module(f"{name}_bn", nn.BatchNorm2d(width))
            self.add_module(f"{name}_lif", make_neuron(config.neuron))
        # Dead in every mode of the reference, kept so that its checkpoints load both ways.
        self.talking_heads = nn.Conv1d(self.heads, self.heads, kernel_size=1, bias=False)
        self.talking_heads.requires_grad_(requires_grad=False)
        self.proj_conv = Synapses(width, width, kernel_size=1)
        self.proj_bn = nn.BatchNorm2d(width)

    def mix(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shortcut: torch.Tensor
    ) -> torch.Tensor:
        """Spikes (or counts) `[T,B,D,H,W]` that are projected, from q, k, v `[T,B,A,N,d]`.

        Args:
            q: query spikes.
            k: key spikes.
            v: value spikes.
            shortcut: the layer's own input spikes `[T,B,D,H,W]`, max-pooled for event data.
        """
        raise NotImplementedError

    def forward(self, x_TBDHW: torch.Tensor) -> torch.Tensor:
        """Current to add to the input current `[T,B,D,H,W]`."""
        backend = self.backend
        spikes = backend.fire(self.neuron("shortcut_lif"), x_TBDHW)
        currents = backend.convolve_all([self.synapses(f"{n}_conv") for n in "qkv"], spikes)
        q, k, v = (self._split_heads(*layer) for layer in zip("qkv", currents, strict=True))
        shortcut = backend.pool(spikes, stride=1) if self.event_data else spikes
        mixed = self.mix(q, k, v, shortcut)
        out = backend.convolve(self.synapses("proj_conv"), mixed)
        return backend.normalise(self.norm("proj_bn"), out)

    def _split_heads(self, name: str, currents_TBDHW: torch.Tensor) -> torch.Tensor:
        lif, norm = self.neuron(f"{name}_lif"), self.norm(f"{name}_bn")
        x = self.backend.fire(lif, currents_TBDHW, norm)
        x = self.backend.pool(x, stride=1) if self.event_data else x
        return split_heads(x, self.heads)


class STAttenAttention(SpikeAttention):
    """Spatial-temporal attention over blocks of c timesteps (Lee et al., CVPR 2025).

    Event data: `out = attn * x_pool + x_pool`, so values are 0, 1 or 2.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Add the block product and its neuron (threshold 0.5)."""
        super().__init__(config)
        self.product: SpikeProduct = BlockProduct(config)
        self.attn_lif = make_neuron(config.neuron, ATTENTION_THRESHOLD)

    def mix(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shortcut: torch.Tensor
    ) -> torch.Tensor:
        """Fire on the scaled product; gate and add the shortcut for event data."""
        product = self.product(q, k, v, shortcut.shape[-2])
        attn = self.backend.fire(self.attn_lif, merge_heads(product, shortcut))
        return attn * shortcut + shortcut if self.event_data else attn


class SSAAttention(STAttenAttention):
    """Spikformer's self-attention, timestep by timestep, as the CVPR paper's plug-in comparison."""

    def __init__(self, config: ModelConfig) -> None:
        """Replace the block product by the token product."""
        super().__init__(config)
        self.product = TokenProduct(config)

    def mix(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shortcut: torch.Tensor
    ) -> torch.Tensor:
        """Fire on the scaled product."""
        product = self.product(q, k, v, shortcut.shape[-2])
        return self.backend.fire(self.attn_lif, merge_heads(product, shortcut))


class SDTAttention(SpikeAttention):
    """Spike-driven attention: `q * LIF(sum_N k * v)` per channel (Yao et al., NeurIPS 2023)."""

    def __init__(self, config: ModelConfig) -> None:
        """Add the neuron over the column sums (threshold 0.5)."""
        super().__init__(config)
        self.talking_heads_lif = make_neuron(config.neuron, ATTENTION_THRESHOLD)

    def mix(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shortcut: torch.Tensor
    ) -> torch.Tensor:
        """Mask the query by the channels whose key-value sum fires."""
        kv = k * v
        # The reference pools a [T,B,A,N,d] tensor with window (1,3,3): tokens x head dim, not
        # height x width. Kept for parity of results and checkpoints.
        kv = self.backend.pool(kv, stride=1) if self.event_data else kv
        gate = self.backend.fire(self.talking_heads_lif, kv.sum(dim=-2, keepdim=True))
        out = q * gate
        out = self.backend.pool(out, stride=1) if self.event_data else out
        return merge_heads(out, shortcut)


ATTENTION_MODES: dict[str, type[SpikeAttention]] = {
    "statten": STAttenAttention,
    "sdt": SDTAttention,
    "ssa": SSAAttention,
}


def make_attention(config: ModelConfig) -> SpikeAttention:
    """Build the attention layer of a configuration.

    Raises:
        ValueError: the mode is unknown; the message lists the valid ones.
    """
    if config.attention not in ATTENTION_MODES:
        raise ValueError(
            f"attention must be one of {sorted(ATTENTION_MODES)}, but got {config.attention!r}"
        )
    return ATTENTION_MODES[config.attention](config)


def split_heads(x_TBDHW: torch.Tensor, heads: int) -> torch.Tensor:
    """`[T,B,A,N,d]`; the gradient has the memory order of what is given."""
    if x_TBDHW.stride(2) != 1:
        return x_TBDHW.flatten(3).unflatten(2, (heads, -1)).transpose(-2, -1)
    tokens_TBND = x_TBDHW.movedim(2, -1).flatten(2, 3)
    return tokens_TBND.unflatten(-1, (heads, -1)).transpose(2, 3)


def merge_heads(x_TBANd: torch.Tensor, like_TBDHW: torch.Tensor) -> torch.Tensor:
    """`[T,B,D,H,W]` of heads, in the memory order of another tensor of that shape."""
    if like_TBDHW.stride(2) != 1:
        return x_TBANd.transpose(-2, -1).reshape(like_TBDHW.shape)
    rows_TBHWD = x_TBANd.transpose(2, 3).reshape(like_TBDHW.movedim(2, -1).shape)
    return rows_TBHWD.movedim(-1, 2)
