"""Differentiable steps of the network on our kernels: batch norm, neurons, pooling.

Currents are `[T,B,C,H,W]` in channels-last memory. Kept for the backward are currents as they came
and bytes; membrane potentials are computed again. Shapes: T timesteps, B batch, C channels, H W
grid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from trainables.model.engines import engine_of
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
    engine, dtype = engine_of(x_TBCHW), x_TBCHW.dtype
    x, sums, rows, parts, channels = x_TBCHW, None, 1, 0, x_TBCHW.shape[2]
    if norm.training:
        layout = by_channel(x_TBCHW)
        x, rows = layout.x, layout.steps * layout.rows
        parts, _ = engine.num_partials(rows, channels)
        sums = x.new_empty(parts, 2, channels, dtype=torch.float64)
        engine.call("moments", dtype, rows, channels, layout.pitch_row, x, sums)
    batch_mean, inverse = x.new_empty(2, channels, dtype=torch.float64)
    engine.call(
        "finish_statistics", dtype, parts, channels, sums, x, rows, num_steps // len(x_TBCHW),
        norm.eps, float(norm.momentum or 0.0), mean, variance, norm.num_batches_tracked, batch_mean,
        inverse,
    )  # fmt: skip
    return Statistics(batch_mean, inverse, of_batch=norm.training)


class Norm(NamedTuple):
    """A batch norm as the kernels are given it; all `[C]`, or None where there is none.

    Attributes:
        mean: that is subtracted; float64.
        inverse: of the standard deviation; float64.
        weight: in the dtype that kernels compute in.
        bias: in the same.
    """

    mean: torch.Tensor | None
    inverse: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None


NO_NORM = Norm(None, None, None, None)


def _norm(stats: Statistics | None, weight: Any, bias: Any, dtype: torch.dtype) -> Norm:
    if stats is None:
        return NO_NORM
    return Norm(stats.mean, stats.inverse, weight.to(dtype), bias.to(dtype))


def _norm_gradient(
    stats: Statistics,
    weight: torch.Tensor,
    layout: Layout,
    sums: torch.Tensor,
    grad: torch.Tensor,
    out: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of currents, weight and bias.

    Args:
        stats: the norm's.
        weight: the norm's, `[C]`.
        layout: the currents.
        sums: partial sums `[P,2,C]` of the normalised currents' gradient, and of it times
            `x - mean`.
        grad: the normalised currents' gradient.
        out: for the currents' gradient; may be `grad`.
    """
    engine, dtype, channels = engine_of(grad), layout.x.dtype, layout.channels
    rows, wide = layout.steps * layout.rows, wide_dtype(layout.x)
    coefficients = grad.new_empty(3, channels, dtype=wide)
    grad_weight, grad_bias = (grad.new_empty(channels, dtype=wide) for _ in "wb")
    engine.call(
        "finish_gradient", dtype, len(sums), channels, sums, rows, int(stats.of_batch), stats.mean,
        stats.inverse, weight.to(wide), coefficients, grad_weight, grad_bias,
    )  # fmt: skip
    engine.call(
        "combine", dtype, rows, channels, layout.pitch_row, layout.x, grad, coefficients, out
    )
    return out, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


@dataclass(frozen=True)
class Firing:
    """How a neuron layer fires.

    Attributes:
        steps: T; the currents have either as many timesteps, or one that is seen at all.
        threshold: of the membrane potential.
        rate: 1/tau where it is not learnt.
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
        """Spikes `[T,...]`; `leak` is PLIF's w, of which the rate is the sigmoid."""
        layout = by_value(x) if how.stats is None else by_channel(x)
        wide = wide_dtype(x)
        if how.stats is None:
            counts = torch.empty_like(layout.x, dtype=torch.uint8)
        else:
            counts = channels_last(x.expand(how.steps, *x.shape[1:]), x.shape[2], torch.uint8)
        engine_of(x).call(
            "fire", x.dtype, layout.rows, layout.channels, layout.pitch_row, layout.x,
            layout.pitch_t if len(x) == how.steps else 0, how.steps,
            *_norm(how.stats, weight_C, bias_C, wide), None if leak is None else leak.to(wide),
            how.rate, how.threshold, counts,
        )  # fmt: skip
        ctx.how = how
        ctx.save_for_backward(layout.x, weight_C, bias_C, leak)
        return SpikeTensor(counts, x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Gradients of currents, norm and leak."""
        x, weight_C, bias_C, leak = ctx.saved_tensors
        how: Firing = ctx.how
        if how.stats is None:
            layout, grad = by_value(x), aligned(grads[0], x)
            grad_x = torch.empty_like(x)
        else:
            layout = by_channel(x)
            grad = by_channel(grads[0].to(x.dtype)).x
            grad = grad if grad.movedim(2, -1).is_contiguous() else compact(grad)
            grad_x = channels_last(x, x.shape[2])
        engine, wide = engine_of(x), wide_dtype(x)
        parts, parts_rate = engine.num_partials(layout.rows, layout.channels)
        sums = x.new_empty(parts, 2, layout.channels, dtype=torch.float64)
        w = None if leak is None else leak.to(wide)
        is_learnt = ctx.needs_input_grad[3]
        sums_rate = x.new_empty(parts_rate, dtype=torch.float64) if is_learnt else None
        engine.call(
            "fire_backward", x.dtype, layout.rows, layout.channels, layout.pitch_row, layout.x,
            layout.pitch_t if len(x) == how.steps else 0, how.steps,
            *_norm(how.stats, weight_C, bias_C, wide), w, how.rate, how.threshold, grad, grad_x,
            sums, sums_rate,
        )  # fmt: skip
        grad_leak = None
        if w is not None and is_learnt:
            grad_w = torch.empty_like(w)
            engine.call("finish_rate", x.dtype, parts_rate, 1, sums_rate, w, grad_w)
            grad_leak = grad_w.to(leak.dtype)
        if how.stats is None:
            return grad_x, None, None, grad_leak, None
        found = _norm_gradient(how.stats, weight_C, layout, sums, grad_x, grad_x)
        return *found, grad_leak, None


def compact(x_TBCHW: torch.Tensor) -> torch.Tensor:
    """The same in channels-last memory without gaps."""
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
        norm = _norm(stats, weight_C, bias_C, wide_dtype(x))
        taps = None
        if stride:
            layout = by_channel(compact(x))
            out, taps = _pool(layout.x, stride, norm)
        else:
            out = channels_last(x, x.shape[2])
            rows = layout.steps * layout.rows
            engine_of(x).call(
                "affine", x.dtype, rows, layout.channels, layout.pitch_row, layout.x, *norm, out
            )
        ctx.stats, ctx.stride = stats, stride
        ctx.save_for_backward(layout.x, weight_C, bias_C, taps)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Gradients of currents and norm."""
        x, weight_C, _, taps = ctx.saved_tensors
        layout = by_channel(x)
        grad = compact(grads[0].to(x.dtype))
        if taps is not None:
            grad = _unpool(grad, taps, ctx.stride, x.shape)
        engine, rows = engine_of(x), layout.steps * layout.rows
        parts, _ = engine.num_partials(rows, layout.channels)
        sums = x.new_empty(parts, 2, layout.channels, dtype=torch.float64)
        engine.call(
            "gradient_moments", x.dtype, rows, layout.channels, layout.pitch_row, layout.x, grad,
            ctx.stats.mean, sums,
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
        counts, taps = _pool(compact(spikes.counts), stride, NO_NORM)
        ctx.shape, ctx.stride = spikes.shape, stride
        ctx.save_for_backward(taps)
        return SpikeTensor(counts, spikes.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Gradient of the spikes that won."""
        (taps,) = ctx.saved_tensors
        return _unpool(compact(grads[0]), taps, ctx.stride, ctx.shape), None


def _pool(x_TBCHW: torch.Tensor, stride: int, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
    steps, batch, channels, height, width = x_TBCHW.shape
    size = (steps, batch, (height - 1) // stride + 1, (width - 1) // stride + 1, channels)
    out = x_TBCHW.new_empty(size)
    taps = x_TBCHW.new_empty(size, dtype=torch.uint8)
    engine_of(out).call(
        "pool", out.dtype, out.numel() // channels, channels, x_TBCHW, height, width, stride, *norm,
        out, taps,
    )  # fmt: skip
    return out.movedim(-1, 2), taps.movedim(-1, 2)


def _unpool(grad: torch.Tensor, taps: torch.Tensor, stride: int, shape: torch.Size) -> torch.Tensor:
    steps, batch, channels, height, width = shape
    out = grad.new_empty((steps, batch, height, width, channels))
    engine_of(out).call(
        "pool_backward", out.dtype, out.numel() // channels, channels, grad, taps, height, width,
        stride, out,
    )  # fmt: skip
    return out.movedim(-1, 2)


fire: Callable[..., torch.Tensor] = Fire.apply
normalise: Callable[..., torch.Tensor] = Normalise.apply
pool: Callable[..., torch.Tensor] = Pool.apply
