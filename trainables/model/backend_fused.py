"""The backend of our kernels, on CPUs and GPUs: spikes as bytes, channels-last memory.

Shapes: T timesteps, B batch, C channels, H W grid.
"""

from collections.abc import Sequence

import torch
from torch import nn

from trainables.model.backends import Synapses, TorchBackend
from trainables.model.fused import Firing, fire, normalise, pool, statistics, wide_dtype
from trainables.model.neurons import TAU, SpikingNeuron
from trainables.model.products import attend, can_attend
from trainables.model.spikes import SpikeTensor
from trainables.model.synapses import convolve


class FusedBackend(TorchBackend):
    """The same results as plain torch up to rounding; batch norm and neuron in one pass.

    Batch norms that are not torch's own (synchronised ones, hooked ones) and half precisions
    without kernels are left to torch; neurons after them are still ours. Of a static image the
    first convolution is computed once.
    """

    def __init__(self, *halves: torch.dtype) -> None:
        """Half precisions that there are kernels for."""
        self._halves = halves

    def convolve(self, conv: Synapses, x_TBCHW: torch.Tensor) -> torch.Tensor:
        """Currents `[T,B,C',H,W]`; of a static image one timestep is computed."""
        dtype = self._compute_dtype(x_TBCHW)
        if dtype is None:
            return super().convolve(conv, x_TBCHW)
        x = x_TBCHW[:1] if is_static(x_TBCHW) else x_TBCHW
        currents = convolve(x, conv.weight, conv.bias, dtype)
        return conv(x_TBCHW, currents.expand(len(x_TBCHW), -1, -1, -1, -1))

    def convolve_all(self, convs: Sequence[Synapses], x_TBCHW: torch.Tensor) -> list[torch.Tensor]:
        """One convolution to all outputs."""
        dtype = self._compute_dtype(x_TBCHW)
        if dtype is None or any(conv.bias is not None for conv in convs):
            return super().convolve_all(convs, x_TBCHW)
        weight = torch.cat([conv.weight for conv in convs])
        currents = convolve(x_TBCHW, weight, None, dtype)
        # along rows' last dimension: so their gradients come together in this memory order
        parts = currents.movedim(2, -1).split([conv.out_channels for conv in convs], dim=-1)
        return [conv(x_TBCHW, part.movedim(-1, 2)) for conv, part in zip(convs, parts, strict=True)]

    def normalise(
        self, norm: nn.BatchNorm2d, x_TBCHW: torch.Tensor, pool_stride: int = 0
    ) -> torch.Tensor:
        """Batch-normalised currents; pooling reads them as they are normalised."""
        if not self._is_plain(norm, x_TBCHW):
            return super().normalise(norm, x_TBCHW, pool_stride)
        stats = statistics(norm, x_TBCHW, len(x_TBCHW))
        return normalise(x_TBCHW, norm.weight, norm.bias, stats, pool_stride)

    def fire(
        self, neuron: SpikingNeuron, x: torch.Tensor, norm: nn.BatchNorm2d | None = None
    ) -> torch.Tensor:
        """Spikes as bytes; batch norm and neuron in one pass."""
        if norm is not None and not self._is_plain(norm, x):
            x, norm = super().normalise(norm, x), None
        leak, stats = neuron.leak, None
        source = x if self._has_kernels(x.dtype) else x.float()
        if norm is not None:
            source = source[:1] if is_static(source) else source
            stats = statistics(norm, source, len(x))
        how = Firing(len(x), neuron.v_threshold, 1.0 / TAU, stats)
        affine = (None, None) if norm is None else (norm.weight, norm.bias)
        spikes = fire(source, *affine, leak, how)
        if x.dtype in self._halves:
            # Hooks see float32, as membrane potentials are; gradients go on in half the memory.
            neuron(x, spikes.float())
            return spikes
        return neuron(x, spikes)

    def pool(self, x_TBCHW: torch.Tensor, stride: int) -> torch.Tensor:
        """Spikes, from spikes."""
        if not isinstance(x_TBCHW, SpikeTensor):
            return super().pool(x_TBCHW, stride)
        return pool(x_TBCHW, stride)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_size: int, scale: float
    ) -> torch.Tensor:
        """Product of spikes, from bytes."""
        if self._compute_dtype(q) != q.dtype or not can_attend(q, k, v):
            return super().attend(q, k, v, block_size, scale)
        return attend(q, k, v, block_size, scale)

    def _has_kernels(self, dtype: torch.dtype) -> bool:
        return dtype.itemsize > 2 or dtype in self._halves

    def _is_plain(self, norm: nn.BatchNorm2d, x_TBCHW: torch.Tensor) -> bool:
        is_hooked = norm._forward_hooks or norm._forward_pre_hooks
        return (
            type(norm) is nn.BatchNorm2d
            and not is_hooked
            and norm.momentum is not None
            and self._has_kernels(x_TBCHW.dtype)
            and norm.weight.dtype == wide_dtype(x_TBCHW)
            and x_TBCHW.numel() > x_TBCHW.shape[2]  # torch has words for a batch of one value
        )

    def _compute_dtype(self, x: torch.Tensor) -> torch.dtype | None:
        device = x.device.type
        if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
            return x.dtype
        dtype = torch.get_autocast_dtype(device)
        return dtype if dtype in self._halves else None


def is_static(x: torch.Tensor) -> bool:
    """Whether all timesteps are one in memory."""
    return len(x) > 1 and x.stride(0) == 0
