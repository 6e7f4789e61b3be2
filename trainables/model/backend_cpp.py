"""The CPU's backend: C++ kernels, spikes as bytes, channels-last memory, static images once.

Shapes: T timesteps, B batch, C channels, H W grid.
"""

from collections.abc import Sequence

import torch
from torch import nn

from trainables.model.backends import Synapses, TorchBackend
from trainables.model.fused import Firing, fire, normalise, pool, statistics
from trainables.model.neurons import TAU, SpikingNeuron
from trainables.model.spikes import SpikeTensor
from trainables.model.synapses import convolve


class CppBackend(TorchBackend):
    """The same results as plain torch up to rounding, on the CPU.

    Batch norms that are not torch's own (synchronised ones, hooked ones) and fp16 are left to
    torch; neurons after them are still ours.
    """

    def convolve(self, conv: Synapses, x_TBCHW: torch.Tensor) -> torch.Tensor:
        """Currents `[T,B,C',H,W]`; of a static image one timestep is computed."""
        dtype = _compute_dtype(x_TBCHW)
        if dtype is None:
            return super().convolve(conv, x_TBCHW)
        x = x_TBCHW[:1] if is_static(x_TBCHW) else x_TBCHW
        currents = convolve(x, conv.weight, conv.bias, dtype)
        return conv(x_TBCHW, currents.expand(len(x_TBCHW), -1, -1, -1, -1))

    def convolve_all(self, convs: Sequence[Synapses], x_TBCHW: torch.Tensor) -> list[torch.Tensor]:
        """One convolution to all outputs."""
        dtype = _compute_dtype(x_TBCHW)
        if dtype is None or any(conv.bias is not None for conv in convs):
            return super().convolve_all(convs, x_TBCHW)
        weight = torch.cat([conv.weight for conv in convs])
        currents = convolve(x_TBCHW, weight, None, dtype)
        parts = currents.split([conv.out_channels for conv in convs], dim=2)
        return [conv(x_TBCHW, part) for conv, part in zip(convs, parts, strict=True)]

    def normalise(
        self, norm: nn.BatchNorm2d, x_TBCHW: torch.Tensor, pool_stride: int = 0
    ) -> torch.Tensor:
        """Batch-normalised currents; pooling reads them as they are normalised."""
        if not _is_plain(norm, x_TBCHW):
            return super().normalise(norm, x_TBCHW, pool_stride)
        stats = statistics(norm, x_TBCHW, len(x_TBCHW))
        return normalise(x_TBCHW, norm.weight, norm.bias, stats, pool_stride)

    def fire(
        self, neuron: SpikingNeuron, x: torch.Tensor, norm: nn.BatchNorm2d | None = None
    ) -> torch.Tensor:
        """Spikes as bytes; batch norm and neuron in one pass."""
        if norm is not None and not _is_plain(norm, x):
            x, norm = super().normalise(norm, x), None
        leak, stats = neuron.leak, None
        source = x.float() if x.dtype == torch.float16 else x
        if norm is not None:
            source = source[:1] if is_static(source) else source
            stats = statistics(norm, source, len(x))
        rate = 1.0 / TAU if leak is None else float(torch.sigmoid(leak.detach()))
        how = Firing(len(x), neuron.v_threshold, rate, stats)
        affine = (None, None) if norm is None else (norm.weight, norm.bias)
        spikes = fire(source, *affine, leak, how)
        if x.dtype == torch.bfloat16:
            # Hooks see float32, as membrane potentials are; gradients go on in half the memory.
            neuron(x, spikes.float())
            return spikes
        return neuron(x, spikes)

    def pool(self, x_TBCHW: torch.Tensor, stride: int) -> torch.Tensor:
        """Spikes, from spikes."""
        if not isinstance(x_TBCHW, SpikeTensor):
            return super().pool(x_TBCHW, stride)
        return pool(x_TBCHW, stride)


def is_static(x: torch.Tensor) -> bool:
    """Whether all timesteps are one in memory."""
    return len(x) > 1 and x.stride(0) == 0


def _is_plain(norm: nn.BatchNorm2d, x_TBCHW: torch.Tensor) -> bool:
    is_hooked = norm._forward_hooks or norm._forward_pre_hooks
    return (
        type(norm) is nn.BatchNorm2d
        and not is_hooked
        and norm.momentum is not None
        and x_TBCHW.dtype != torch.float16
        and x_TBCHW.numel() > x_TBCHW.shape[2]  # torch has words for a batch of one value
    )


def _compute_dtype(x: torch.Tensor) -> torch.dtype | None:
    if not torch.is_autocast_enabled("cpu") or x.dtype == torch.float64:
        return x.dtype
    dtype = torch.get_autocast_dtype("cpu")
    return dtype if dtype == torch.bfloat16 else None
