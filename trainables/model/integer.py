"""Convolutions of spikes in bf16 on a CPU's integer units, which are twice as fast as floats'.

A weight is a 16-bit multiple of a step of its output's own, the largest 32767 of them: what it is
off by is at most 2^-16 of that largest one, where bf16 rounds by 2^-9 of its own. Sums of integers
are exact. Shapes: T timesteps, B batch, K inputs, N outputs, H W grid; channels-last memory.
"""

import torch

from trainables.model.compiled import has_pairs, largest_count
from trainables.model.engines import engine_of

_LARGEST = 2**15 - 1
_SUM = 2**31 - 1


def can_convolve(counts: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether there are units for it, and no sum can exceed 32 bits."""
    if engine_of(counts).is_dense or not has_pairs():
        return False
    return largest_count(counts) * weight[0].numel() * _LARGEST <= _SUM


def convolve(
    counts: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    """Currents `[T,B,N,H,W]` in bf16 of bytes `[T,B,K,H,W]` and a float32 weight `[N,K,...]`."""
    num_outputs, num_inputs, size, _ = weight.shape
    steps, batch, _, height, width = counts.shape
    engine_of(out).call(
        "convolve_integer", out.dtype, counts, steps * batch, height, width, num_inputs,
        num_outputs, size, weight.contiguous(memory_format=torch.channels_last),
        None if bias is None else bias.to(weight.dtype), out,
    )  # fmt: skip
