"""Differentiable steps of the network on the C++ kernels: batch norm, neurons, pooling.

Currents are `[T,B,C,H,W]` in channels-last memory. Kept for the backward are currents as they came
and bytes; membrane potentials are computed again. Shapes: T timesteps, B batch, C channels, H W
grid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from trainables.model.compiled import call
from trainables.model.spikes import SpikeTensor


class Layout(NamedTuple):
    """Currents as rows of channels: the tensor, and how a kernel walks through it.

    Attributes:
        x: the currents in a memory order that fits.
        steps: T.
        rows: samples times pixels.
        channels: C; 0 where values are not grouped by channel.
        pitch_t: values from a timestep to the next.
        pitch_row: values from a row to the next.
    """

    x: torch.Tensor
    steps: int
    rows: int
    channels: int
    pitch_t: int
    pitch_row: int


def by_channel(x_TBCHW: torch.Tensor) -> Layout:
    """Rows of channels; a slice of channels of a larger tensor needs no copy."""
    rows = x_TBCHW.movedim(2, -1)
    pitch = rows.stride(-2)
    if not _is_regular(rows, pitch):
        rows = rows.contiguous()
        pitch = rows.shape[-1]
    steps, channels = rows.shape[0], rows.shape[-1]
    num_rows = rows[0].numel() // channels
    return Layout(rows.movedim(-1, 2), steps, num_rows, channels, num_rows * pitch, pitch)


def _is_regular(rows: torch.Tensor, pitch: int) -> bool:
    wanted, step = [1], pitch
    for size in reversed(rows.shape[1:-1]):
        wanted.append(step)
        step *= size
    wanted.append(step)
    found = reversed(rows.stride())
    sizes = reversed(rows.shape)
    return pitch >= rows.shape[-1] and all(
        size == 1 or a == b for a, b, size in zip(found, wanted, sizes, strict=True)
    )


def by_value(x: torch.Tensor) -> Layout:
    """Single values in the order that they lie in memory, timesteps outermost."""
    if not (x.stride(0) * len(x) == x.numel() and _is_dense(x)):
        x = x.contiguous()
    num_rows = x.numel() // len(x)
    return Layout(x, len(x), num_rows, 0, num_rows, 1)


def _is_dense(x: torch.Tensor) -> bool:
    return bool(torch.ops.aten.is_non_overlapping_and_dense(x))


def aligned(grad: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A gradient with the dtype and strides of another tensor of its shape."""
    if grad.stride() == like.stride() and grad.dtype == like.dtype:
        return grad
    return torch.empty_like(like).copy_(grad)


def channels_last(x: torch.Tensor, channels: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An empty `[T,B,channels,H,W]` in channels-last memory."""
    shape = (*x.shape[:2], *x.shape[3:], channels)
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device).movedim(-1, 2)


def wide_dtype(x: torch.Tensor) -> torch.dtype:
    """In which kernels compute."""
    return torch.promote_types(x.dtype, torch.float32)


@dataclass(frozen=True)
class Statistics:
    """What a batch norm subtracts and divides by; float64.

    Attributes:
        mean: `[C]`.
        inverse: `[C]`, 1 / sqrt(variance + eps).
        of_batch: whether they depend on the currents, or are running statistics.
    """

    mean: torch.Tensor
    inverse: torch.Tensor
    of_batch: bool


@torch.no_grad()
def statistics(norm: nn.BatchNorm2d, x_TBCHW: torch.Tensor, num_steps: int) -> Statistics:
    """Statistics of a call; in training they are remembered as torch does.

    Args:
        norm: an ordinary batch norm with running statistics.
        x_TBCHW: currents; one timestep where they are the same at all.
        num_steps: at how many timesteps they are seen: only the unbiased variance's count depends
            on it.
    """
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or norm.num_batches_tracked is None:
        raise ValueError("the batch norm must keep running statistics")
    if not norm.training:
        return Statistics(mean.double(), (variance.double() + norm.eps).rsqrt(), of_batch=False)
    layout = by_channel(x_TBCHW)
    rows = layout.steps * layout.rows
    sums = torch.zeros(2, layout.channels, dtype=torch.float64)
    call("moments", x_TBCHW.dtype, layout.x, layout.pitch_row, rows, layout.channels, sums)
    offset_C, square_C = sums / rows
    batch_mean = offset_C + layout.x[0, 0, :, 0, 0].double()
    batch_variance = (square_C - offset_C.square()).clamp_(min=0.0)
    count = rows * num_steps / layout.steps
    momentum = float(norm.momentum or 0.0)
    mean.lerp_(batch_mean.to(mean.dtype), momentum)
    variance.lerp_((batch_variance * (count / (count - 1))).to(variance.dtype), momentum)
    norm.num_batches_tracked.add_(1)
    return Statistics(batch_mean, (batch_variance + norm.eps).rsqrt(), of_batch=True)


class Affine(NamedTuple):
    """A batch norm as the kernels apply it, `x * scale + shift`, and the mean of x; all `[C]`."""

    scale: torch.Tensor
    shift: torch.Tensor
    mean: torch.Tensor


def _affine(stats: Statistics, weight: Any, bias: Any, dtype: torch.dtype) -> Affine:
    scale = weight.double() * stats.inverse
    shift = bias.double() - stats.mean * scale
    return Affine(scale.to(dtype), shift.to(dtype), stats.mean.to(dtype))


def _norm_gradient(
    stats: Statistics,
    weight: torch.Tensor,
    layout: Layout,
    sums_2C: torch.Tensor,
    grad: torch.Tensor,
    out: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of currents, weight and bias.

    Args:
        stats: the norm's.
        weight: the norm's, `[C]`.
        layout: the currents.
        sums_2C: sums of the normalised currents' gradient, and of it times `x - mean`.
        grad: the normalised currents' gradient.
        out: for the currents' gradient; may be `grad`.
    """
    sum_C, product_C = sums_2C
    scale = weight.double() * stats.inverse
    rows = layout.steps * layout.rows
    slope = -scale * stats.inverse.square() * product_C / rows
    offset = -scale * sum_C / rows - slope * stats.mean
    if not stats.of_batch:
        slope, offset = torch.zeros_like(slope), torch.zeros_like(offset)
    coefficients = torch.stack([scale, slope, offset]).to(wide_dtype(layout.x))
    call(
        "combine", layout.x.dtype, layout.x, layout.pitch_row, grad, rows, layout.channels,
        coefficients, out,
    )  # fmt: skip
    return out, (product_C * stats.inverse).to(weight.dtype), sum_C.to(weight.dtype)


@dataclass(frozen=True)
class Firing:
    """How a neuron layer fires.

    Attributes:
        steps: T; the currents have either as many timesteps, or one that is seen at all.
        threshold: of the membrane potential.
        rate: 1/tau.
        stats: of the batch norm before it; None where there is none.
    """

    steps: int
    threshold: float
    rate: float
    stats: Statistics | None


class Fire(torch.autograd.Function):
    """Spikes of currents, through a batch norm where there is one.

    Source: the network's LIF, `u = v + (x - v)/tau`, reset detached, sigmoid surrogate (alpha 4).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_C: torch.Tensor | None,
        bias_C: torch.Tensor | None,
        leak: torch.Tensor | None,
        how: Firing,
    ) -> torch.Tensor:
        """Spikes `[T,...]`; `leak` is PLIF's w, of which `how.rate` is the sigmoid."""
        layout = by_value(x) if how.stats is None else by_channel(x)
        dtype = wide_dtype(x)
        norm = _affine(how.stats, weight_C, bias_C, dtype) if how.stats else None
        if norm is None:
            counts = torch.empty_like(layout.x, dtype=torch.uint8)
        else:
            counts = channels_last(x.expand(how.steps, *x.shape[1:]), x.shape[2], torch.uint8)
        call(
            "fire", x.dtype, layout.x, layout.pitch_t if len(x) == how.steps else 0,
            layout.pitch_row, how.steps, layout.rows, layout.channels, norm and norm.scale,
            norm and norm.shift, how.rate, how.threshold, counts,
        )  # fmt: skip
        ctx.how = how
        ctx.save_for_backward(layout.x, weight_C, bias_C, leak)
        return SpikeTensor(counts, x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Gradients of currents, norm and leak."""
        x, weight_C, bias_C, leak = ctx.saved_tensors
        how: Firing = ctx.how
        norm = _affine(how.stats, weight_C, bias_C, wide_dtype(x)) if how.stats else None
        if norm is None:
            layout, grad = by_value(x), aligned(grads[0], x)
            grad_x = torch.empty_like(x)
        else:
            layout = by_channel(x)
            grad = by_channel(grads[0].to(x.dtype)).x
            grad = grad if grad.movedim(2, -1).is_contiguous() else _compact(grad)
            grad_x = channels_last(x, x.shape[2])
        sums = torch.zeros(2, layout.channels, dtype=torch.float64)
        sum_rate = torch.zeros(1, dtype=torch.float64) if ctx.needs_input_grad[3] else None
        call(
            "fire_backward", x.dtype, layout.x, layout.pitch_t if len(x) == how.steps else 0,
            layout.pitch_row, how.steps, layout.rows, layout.channels, norm and norm.scale,
            norm and norm.shift, norm and norm.mean, how.rate, how.threshold, grad, grad_x,
            sums, sum_rate,
        )  # fmt: skip
        grad_leak = None
        if sum_rate is not None:
            grad_leak = (sum_rate * how.rate * (1.0 - how.rate)).to(leak.dtype).view(leak.shape)
        if how.stats is None:
            return grad_x, None, None, grad_leak, None
        found = _norm_gradient(how.stats, weight_C, layout, sums, grad_x, grad_x)
        return *found, grad_leak, None


def _compact(x_TBCHW: torch.Tensor) -> torch.Tensor:
    return x_TBCHW.movedim(2, -1).contiguous().movedim(-1, 2)


class Normalise(torch.autograd.Function):
    """Batch-normalised currents, max-pooled 3x3 where asked."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_C: torch.Tensor,
        bias_C: torch.Tensor,
        stats: Statistics,
        stride: int,
    ) -> torch.Tensor:
        """Currents of the same shape, or pooled with a stride above 0."""
        layout = by_channel(x)
        norm = _affine(stats, weight_C, bias_C, wide_dtype(x))
        taps = None
        if stride:
            layout = by_channel(_compact(x))
            out, taps = _pool(layout.x, stride, norm)
        else:
            out = channels_last(x, x.shape[2])
            call(
                "affine", x.dtype, layout.x, layout.pitch_row, layout.steps * layout.rows,
                layout.channels, norm.scale, norm.shift, out,
            )  # fmt: skip
        ctx.stats, ctx.stride = stats, stride
        ctx.save_for_backward(layout.x, weight_C, bias_C, taps)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Gradients of currents and norm."""
        x, weight_C, _, taps = ctx.saved_tensors
        layout = by_channel(x)
        grad = _compact(grads[0].to(x.dtype))
        if taps is not None:
            grad = _unpool(grad, taps, ctx.stride, x.shape)
        sums = torch.zeros(2, layout.channels, dtype=torch.float64)
        mean_C = ctx.stats.mean.to(wide_dtype(x))
        call(
            "gradient_moments", x.dtype, layout.x, layout.pitch_row, grad,
            layout.steps * layout.rows, layout.channels, mean_C, sums,
        )  # fmt: skip
        # the gradient that came may be someone else's too
        is_ours = grad.data_ptr() != grads[0].data_ptr()
        out = grad if is_ours else torch.empty_like(grad)
        return *_norm_gradient(ctx.stats, weight_C, layout, sums, grad, out), None, None


class Pool(torch.autograd.Function):
    """Max-pooled spikes, window 3x3, padding 1."""

    @staticmethod
    def forward(ctx: Any, spikes: SpikeTensor, stride: int) -> torch.Tensor:
        """Spikes `[T,B,C,H',W']`."""
        counts, taps = _pool(_compact(spikes.counts), stride, None)
        ctx.shape, ctx.stride = spikes.shape, stride
        ctx.save_for_backward(taps)
        return SpikeTensor(counts, spikes.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Gradient of the spikes that won."""
        (taps,) = ctx.saved_tensors
        return _unpool(_compact(grads[0]), taps, ctx.stride, ctx.shape), None


def _pool(
    x_TBCHW: torch.Tensor, stride: int, norm: Affine | None
) -> tuple[torch.Tensor, torch.Tensor]:
    steps, batch, channels, height, width = x_TBCHW.shape
    size = (steps, batch, (height - 1) // stride + 1, (width - 1) // stride + 1, channels)
    out = torch.empty(size, dtype=x_TBCHW.dtype).movedim(-1, 2)
    taps = torch.empty(size, dtype=torch.uint8).movedim(-1, 2)
    call(
        "pool", x_TBCHW.dtype, x_TBCHW, steps * batch, height, width, channels, stride,
        norm and norm.scale, norm and norm.shift, out, taps,
    )  # fmt: skip
    return out, taps


def _unpool(grad: torch.Tensor, taps: torch.Tensor, stride: int, shape: torch.Size) -> torch.Tensor:
    steps, batch, channels, height, width = shape
    out = torch.empty((steps, batch, height, width, channels), dtype=grad.dtype).movedim(-1, 2)
    call(
        "pool_backward", grad.dtype, grad, taps, steps * batch, height, width, channels, stride, out
    )
    return out


fire: Callable[..., torch.Tensor] = Fire.apply
normalise: Callable[..., torch.Tensor] = Normalise.apply
pool: Callable[..., torch.Tensor] = Pool.apply
