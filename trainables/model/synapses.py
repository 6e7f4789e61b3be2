"""Differentiable convolutions of spikes that cost what the spikes cost.

On a CPU forward and weight gradient add up rows of weights and of gradients, a spike each, where
few fire; they are dense products where many do, and on a GPU always. In bf16 the forward is a sum
of integers on a CPU that has the units. The input's gradient is dense always. Dense gradients of
3x3 kernels go Winograd's way on a CPU. Shapes: T timesteps, B batch, K input channels, N output
channels, H W grid, all in channels-last memory.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as nnf

from trainables.model import integer, matrix, winograd
from trainables.model.engines import Engine, engine_of
from trainables.model.fused import channels_last, compact, wide_dtype
from trainables.model.spikes import SpikeTensor

aten = torch.ops.aten

# Outputs that a kernel sums together, where they divide into that many and where they do not.
_LANES = (64, 32)
# Above this mean count a dense product is as fast.
DENSE_RATE = 0.3
# Above this bf16 currents are summed as integers, where the processor can.
INTEGER_RATE = 0.04
# A pixel of fewer inputs has so few spikes that finding them takes longer than a dense product,
# unless there are hardly any; not so in the weight's gradient, where they are found once.
FEW_INPUTS = 32
FEW_SHARE = 0.1
# Above these the weight's gradient is a dense product too: plain, by Winograd's points, or of a 1x1
# kernel as integers.
DENSE_GRADIENT_RATE = 0.2
POINTS_RATE = 0.1
INTEGER_GRADIENT_RATE = 0.12
# Weights of so many connections a tap repay the way to Winograd's points and back.
FEW_CONNECTIONS = 32 * 16
# Dense copies are made for so many bytes of images at a time: what fits in a CPU's caches, and what
# keeps a GPU busy.
_CHUNK_BYTES = 2**24
_CHUNK_BYTES_DENSE = 2**29


class Convolve(torch.autograd.Function):
    """A 1x1 or 3x3 convolution, stride 1, that keeps the grid."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Currents `[T,B,N,H,W]` of a dtype.

        Args:
            ctx: torch's.
            x: spikes or analog values `[T,B,K,H,W]`.
            weight: `[N,K,1,1]` or `[N,K,3,3]`.
            bias: `[N]` or None.
            dtype: of the currents; half precision rounds the weights too and sums in float32, or
                bf16 as integers (see `integer.py`).
        """
        with torch.autocast(x.device.type, enabled=False):
            rounded = _rounded(weight, dtype)
            values = compact(x.counts if isinstance(x, SpikeTensor) else x.to(dtype))
            rate = _rate(x)
            if sum_integers := _integer_way(values, rounded, rate, dtype):
                out = channels_last(x, len(weight), dtype)
                sum_integers(values, rounded, bias, out)
            elif rate <= DENSE_RATE * (1.0 if weight.shape[1] >= FEW_INPUTS else FEW_SHARE):
                out = channels_last(x, len(weight), dtype)
                _add_rows(values, rounded, bias, out)
            else:
                out = _product(values, rounded, bias, dtype)
        ctx.rate, ctx.has_bias = rate, bias is not None
        ctx.save_for_backward(values, weight)
        ctx.dtype = dtype
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Gradients of input, weight and bias."""
        values, weight = ctx.saved_tensors
        with torch.autocast(weight.device.type, enabled=False):
            grad = compact(grads[0])
            rounded = _rounded(weight, ctx.dtype)
            grad_x = _input_gradient(grad, rounded) if ctx.needs_input_grad[0] else None
            grad_weight = _weight_gradient(values, grad, rounded, ctx.rate).to(weight.dtype)
            grad_bias = None
            if ctx.has_bias:
                grad_bias = _channel_sums(grad).to(weight.dtype)
        return grad_x, grad_weight, grad_bias, None


def _channel_sums(x_TBCHW: torch.Tensor) -> torch.Tensor:
    engine, wide = engine_of(x_TBCHW), wide_dtype(x_TBCHW)
    if engine.is_dense:
        return x_TBCHW.sum((0, 1, 3, 4), dtype=wide)
    channels = x_TBCHW.shape[2]
    sums = x_TBCHW.new_empty(channels, dtype=wide)
    rows = x_TBCHW.numel() // channels
    engine.call("channel_sums", x_TBCHW.dtype, rows, channels, x_TBCHW, sums)
    return sums


def _rate(x: torch.Tensor) -> float:
    """Mean count; infinite where no kernel is in proportion to it."""
    if not isinstance(x, SpikeTensor) or engine_of(x).is_dense:
        return math.inf  # to ask a GPU how many spikes there are would be to wait for them
    return x.total() / x.numel()


def _rounded(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Half-precision products are exact in float32, which a GPU's units know and a CPU's are given:
    # only operands and results are rounded.
    engine = engine_of(weight)
    if dtype == torch.bfloat16 and weight.dtype == torch.float32 and not engine.is_dense:
        return _rounded_once(weight, engine)
    rounded = weight.to(dtype)
    if not engine.is_dense:
        rounded = rounded.to(torch.promote_types(dtype, torch.float32))
    return rounded.contiguous(memory_format=torch.channels_last)


def _rounded_once(weight: torch.Tensor, engine: Engine) -> torch.Tensor:
    """What `_rounded` makes in three passes."""
    out = torch.empty_like(weight, memory_format=torch.channels_last)
    num_outputs, num_inputs = weight.shape[:2]
    taps = weight[0, 0].numel()
    if weight.is_contiguous(memory_format=torch.channels_last):
        num_inputs, taps = num_inputs * taps, 1
    else:
        weight = weight.contiguous()
    engine.call("round_weight", torch.bfloat16, num_outputs, num_inputs, taps, weight, out)
    return out


def _is_matrix(weight: torch.Tensor) -> bool:
    # torch lets convolutions in float32 use a GPU's tensor cores, and products of matrices not.
    is_slow = engine_of(weight).is_dense and weight.dtype == torch.float32
    return weight.shape[-1] == 1 and not is_slow


def _chunks(x: torch.Tensor, weight: torch.Tensor, num_outputs: int) -> list[slice]:
    """Images whose dense input and output are not too large, until all are done."""
    _, _, channels, height, width = x.shape
    an_image = (channels + num_outputs) * height * width * weight.dtype.itemsize
    total = x.shape[0] * x.shape[1]
    limit = _CHUNK_BYTES_DENSE if engine_of(x).is_dense else _CHUNK_BYTES
    size = max(1, limit // an_image)
    return [slice(first, min(total, first + size)) for first in range(0, total, size)]


def _product(
    values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Currents as a dense product."""
    bias = None if bias is None else bias.to(weight.dtype)
    images, chunks = values.flatten(0, 1), _chunks(values, weight, len(weight))
    is_dense = engine_of(values).is_dense
    by_matrix = is_dense and _is_matrix(weight)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        if by_matrix:
            return nnf.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
        return nnf.conv2d(x, weight, bias, padding="same")

    if is_dense and len(chunks) == 1:  # a CPU's heap would be scattered by results of many sizes
        found = multiply(images.to(weight.dtype)).to(dtype)
        return compact(found.unflatten(0, values.shape[:2]))
    out = channels_last(values, len(weight), dtype)
    for at in chunks:
        out.flatten(0, 1)[at] = multiply(images[at].to(weight.dtype))
    return out


def _pays_by_points(weight: torch.Tensor) -> bool:
    num_outputs, num_inputs, size, _ = weight.shape
    is_cpu = not engine_of(weight).is_dense
    return is_cpu and size == 3 and num_outputs * num_inputs >= FEW_CONNECTIONS


def _integer_way(
    values: torch.Tensor, weight: torch.Tensor, rate: float, dtype: torch.dtype
) -> Callable[..., None] | None:
    """What sums currents as integers; None where it cannot be or does not pay."""
    if values.dtype != torch.uint8 or dtype != torch.bfloat16 or rate <= INTEGER_RATE:
        return None
    if integer.can_convolve_by_points(values, weight):
        return integer.convolve_by_points
    return integer.convolve if integer.can_convolve(values, weight) else None


def _lanes(num_outputs: int) -> int:
    wide, narrow = _LANES
    return narrow if num_outputs % wide else wide


def _add_rows(
    counts: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    num_outputs, num_inputs, size, _ = weight.shape
    lanes = _lanes(num_outputs)
    num_padded = -(-num_outputs // lanes) * lanes
    rows = weight.new_zeros(size * size * num_inputs, num_padded)
    rows[:, :num_outputs] = weight.permute(2, 3, 1, 0).reshape(-1, num_outputs)
    packed = rows.unflatten(1, (-1, lanes)).transpose(0, 1).contiguous()
    start = weight.new_zeros(num_padded)
    if bias is not None:
        start[:num_outputs] = bias
    steps, batch, _, height, width = counts.shape
    engine_of(out).call(
        "convolve", out.dtype, counts, steps * batch, height, width, num_inputs, num_outputs, size,
        lanes, packed, start, out,
    )  # fmt: skip


def _weight_gradient(
    values: torch.Tensor, grad: torch.Tensor, weight: torch.Tensor, rate: float
) -> torch.Tensor:
    is_counts = values.dtype == torch.uint8
    by_points = _pays_by_points(weight) and is_counts
    as_integers = is_counts and weight.shape[-1] == 1 and integer.can_sum_gradients(grad)
    limit = INTEGER_GRADIENT_RATE if as_integers else DENSE_GRADIENT_RATE
    if rate <= (POINTS_RATE if by_points else limit):
        return _weight_gradient_sparse(values, grad, weight)
    if as_integers:
        found = integer.weight_gradient(_rows(values), _rows(grad))
        return found.view_as(weight)
    if by_points:
        return winograd.weight_gradient(values.flatten(0, 1), grad.flatten(0, 1), weight)
    return _weight_gradient_dense(values, grad, weight)


def _weight_gradient_sparse(
    counts: torch.Tensor, grad: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    num_outputs, num_inputs, size, _ = weight.shape
    lanes = _lanes(num_outputs)
    blocks = -(-num_outputs // lanes)
    packed = weight.new_zeros(blocks, size * size * num_inputs, lanes)
    steps, batch, _, height, width = counts.shape
    engine_of(grad).call(
        "weight_gradient", grad.dtype, counts, steps * batch, height, width, num_inputs,
        num_outputs, size, lanes, grad, packed,
    )  # fmt: skip
    rows = packed.transpose(0, 1).flatten(1)[:, :num_outputs]
    return rows.unflatten(0, (size, size, num_inputs)).permute(3, 2, 0, 1)


def _weight_gradient_dense(
    values: torch.Tensor, grad: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    total = None
    pad = weight.shape[-1] // 2
    for at in _chunks(values, weight, len(weight)):
        x, g = (part.flatten(0, 1)[at].to(weight.dtype) for part in (values, grad))
        if _is_matrix(weight):
            product = _rows(g).t() @ _rows(x)
            found = product.view_as(weight)
        else:
            found = aten.convolution_backward(
                g, x, weight, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], 1,
                [False, True, False],
            )[1]  # fmt: skip
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        total = found if total is None else total + found
    return torch.as_tensor(total)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """`[R,C]` of channels-last images, with their channels third from the last."""
    return x.movedim(-3, -1).flatten(0, -2)


def _row_product(grad: torch.Tensor, weight: torch.Tensor) -> Callable[..., torch.Tensor] | None:
    """What multiplies rows of gradients by a 1x1 kernel; None where a convolution is faster."""
    if _is_matrix(weight) and grad.dtype == weight.dtype:
        return torch.mm
    if weight.shape[-1] > 1 or engine_of(grad).is_dense:
        return None
    return integer.multiply if integer.can_sum_gradients(grad) else matrix.multiply


def _turned(weight: torch.Tensor) -> torch.Tensor:
    """`[K,N,3,3]` of a channels-last kernel that gradients go back through."""
    engine = engine_of(weight)
    if engine.is_dense:
        turned = weight.flip(2, 3).transpose(0, 1)
        return turned.contiguous(memory_format=torch.channels_last)
    num_outputs, num_inputs, *size = weight.shape
    turned = weight.new_empty(num_inputs, *size, num_outputs).movedim(-1, 1)
    engine.call(
        "turn_weight", weight.dtype, num_outputs, num_inputs, size[0] * size[1], weight, turned
    )
    return turned


def _input_gradient(grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    multiply = _row_product(grad, weight)
    if multiply is not None:
        found = multiply(_rows(grad), weight.flatten(1))
        return found.view(*grad.movedim(2, -1).shape[:-1], -1).movedim(-1, 2)
    turned = _turned(weight)
    if _pays_by_points(weight):
        out = channels_last(grad, weight.shape[1])
        winograd.convolve(grad.flatten(0, 1), turned, out.flatten(0, 1))
        return out
    if grad.dtype == weight.dtype:
        found = nnf.conv2d(grad.flatten(0, 1), turned, padding="same")
        return found.unflatten(0, grad.shape[:2])
    out = channels_last(grad, weight.shape[1])
    for at in _chunks(grad, weight, weight.shape[1]):
        part = grad.flatten(0, 1)[at].to(weight.dtype)
        out.flatten(0, 1)[at] = nnf.conv2d(part, turned, padding="same")
    return out


convolve: Callable[..., torch.Tensor] = Convolve.apply
