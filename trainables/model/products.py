"""Attention in its linear form on spikes as bytes, without copies of their blocks, on a CPU.

Shapes: T timesteps, B batch, A heads, N tokens, d head dim, c timesteps of a block; memory is
`[T,B,N,A,d]`.
"""

from collections.abc import Callable
from typing import Any

import torch

from trainables.model.engines import engine_of
from trainables.model.spikes import SpikeTensor


def can_attend(*spikes: torch.Tensor) -> bool:
    """Whether all are bytes that there are kernels for."""
    return all(isinstance(x, SpikeTensor) and not engine_of(x).is_dense for x in spikes)


class Attend(torch.autograd.Function):
    """`q (k^T v s)` with the tokens of c consecutive timesteps together."""

    @staticmethod
    def forward(
        ctx: Any,
        q: SpikeTensor,
        k: SpikeTensor,
        v: SpikeTensor,
        block_size: int,
        scale: float,
    ) -> torch.Tensor:
        """Product `[T,B,A,N,d]` of spikes of that shape; half precision rounds only it.

        Args:
            ctx: torch's.
            q: queries.
            k: keys.
            v: values.
            block_size: c, a divisor of T.
            scale: s.
        """
        rows = [x.counts.transpose(2, 3).contiguous() for x in (q, k, v)]
        out = torch.empty_like(rows[0], dtype=q.dtype)
        ctx.sizes = _sizes(rows[0], block_size)
        ctx.scale = scale
        ctx.save_for_backward(*rows)
        engine_of(out).call("attend", out.dtype, *ctx.sizes, scale, *rows, out)
        return out.transpose(2, 3)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Gradients of q, k and v."""
        rows, grad = ctx.saved_tensors, grads[0].transpose(2, 3).contiguous()
        found = [torch.empty_like(grad) for _ in rows]
        engine_of(grad).call(
            "attend_backward", grad.dtype, *ctx.sizes, ctx.scale, *rows, grad, *found
        )
        return *(x.transpose(2, 3) for x in found), None, None


def _sizes(rows_TBNAd: torch.Tensor, block_size: int) -> tuple[int, ...]:
    steps, batch, tokens, heads, dim = rows_TBNAd.shape
    return steps // block_size, block_size, batch, tokens, heads, dim


attend: Callable[..., torch.Tensor] = Attend.apply
