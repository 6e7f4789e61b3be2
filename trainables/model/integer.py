"""Convolutions of spikes in bf16 on a CPU's integer units, which are twice as fast as floats'.

A weight is a 16-bit multiple of a step of its output's own, the largest 32767 of them: what it is
off by is at most 2^-16 of that largest one, where bf16 rounds by 2^-9 of its own. Sums of integers
are exact. Gradients of 1x1 kernels share a step in blocks, whose sums are floats. Shapes: T
timesteps, B batch, K inputs, N outputs, H W grid, R rows; channels-last memory.
"""

import torch

from trainables.model.compiled import has_pairs, largest_count
from trainables.model.engines import engine_of

# Below these the way to the points and back costs more than it saves.
FEW_INPUTS = 32

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


def can_convolve_by_points(counts: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `convolve_by_points` can, and saves more than it costs."""
    num_inputs, size = weight.shape[1:3]
    if size != 3 or num_inputs < FEW_INPUTS or engine_of(counts).is_dense or not has_pairs():
        return False
    return 4 * largest_count(counts) * weight[0].numel() * _LARGEST <= _SUM


def convolve_by_points(
    counts: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    """As `convolve`, of a 3x3 weight by Winograd's points, with 4 products for 9.

    An output's step is so large that the sums of its weights at the points fit 16 bits: 32760 steps
    are the largest, which is at most nine times the largest weight. Sums are exact here too.
    """
    num_outputs, num_inputs = weight.shape[:2]
    steps, batch, _, height, width = counts.shape
    engine_of(out).call(
        "convolve_points", out.dtype, counts, steps * batch, height, width, num_inputs, num_outputs,
        weight.contiguous(memory_format=torch.channels_last),
        None if bias is None else bias.to(weight.dtype), out,
    )  # fmt: skip


def can_sum_gradients(grad: torch.Tensor) -> bool:
    """Whether there are units for products with these gradients."""
    return grad.dtype == torch.bfloat16 and not engine_of(grad).is_dense and has_pairs()


def multiply(rows_RN: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """`[R,K]` in bf16 of gradients in bf16 and a float32 weight.

    Both are multiples of 1/4095 of the largest: of 128 neighbours in a row, and of a column.
    """
    num_rows, num_outputs = rows_RN.shape
    num_inputs = weight_NK.shape[1]
    out = rows_RN.new_empty(num_rows, num_inputs)
    engine_of(out).call(
        "multiply_integer", out.dtype, num_rows, num_outputs, num_inputs, rows_RN,
        weight_NK.contiguous(), out,
    )  # fmt: skip
    return out


def weight_gradient(counts_RK: torch.Tensor, grad_RN: torch.Tensor) -> torch.Tensor:
    """`[N,K]` in float32 of bytes and gradients in bf16.

    Gradients are multiples of 1/32767 of the largest of an output's in 256 neighbouring rows.
    """
    num_rows, num_inputs = counts_RK.shape
    num_outputs = grad_RN.shape[1]
    sums = grad_RN.new_zeros(num_outputs, num_inputs, dtype=torch.float32)
    engine_of(grad_RN).call(
        "weight_gradient_integer", grad_RN.dtype, counts_RK, num_rows, num_inputs, num_outputs,
        grad_RN, sums,
    )  # fmt: skip
    return sums
