"""Dense 3x3 convolutions by Winograd's F(4x4, 3x3): a quarter of the products, on a CPU.

It takes 36 products where 16 pixels need 144, and rounds otherwise: by some 1e-5 of the largest
value in float32, where a plain sum has 2e-6. So it serves gradients; spikes, which a rounding can
turn, never come from it. Source: Lavin and Gray, CVPR 2016 (arXiv 1509.09308).

Shapes: I images, K input channels, N output channels, H W grid, P tiles; all in channels-last
memory.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from trainables.model import matrix
from trainables.model.engines import engine_of

TILE = 4
_POINTS = 36
# Of points at a time: what fits in a CPU's caches.
_CHUNK_BYTES = 2**24
# Filters of so many connections stay in a cache beside the points of some tiles, which then need no
# other memory.
_MOST_CACHED = 128 * 64
_FILTER = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)


class _Chunk(NamedTuple):
    """Some images, and room for their points `[36,P,K]` and `[36,P,N]`."""

    at: slice
    grid: tuple[int, int, int]
    of_inputs: torch.Tensor
    of_outputs: torch.Tensor


def convolve(images: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """Convolve images `[I,K,H,W]` with `[N,K,3,3]` and padding 1 into `[I,N,H,W]`.

    Half-precision images and results go with a float32 weight.
    """
    num_outputs, num_inputs = weight.shape[:2]
    filters, engine = _filters(weight), engine_of(out)
    if num_inputs * num_outputs <= _MOST_CACHED:
        num_images, _, height, width = images.shape
        engine.call(
            "winograd_convolve", out.dtype, images, num_images, height, width, num_inputs,
            num_outputs, matrix.panels(filters), out,
        )  # fmt: skip
        return
    for chunk in _chunks(images, num_inputs, num_outputs, weight):
        engine.call(
            "winograd_input", images.dtype, images[chunk.at], *chunk.grid, num_inputs,
            chunk.of_inputs,
        )  # fmt: skip
        torch.bmm(chunk.of_inputs, filters, out=chunk.of_outputs)
        engine.call(
            "winograd_output", out.dtype, chunk.of_outputs, *chunk.grid, num_outputs, out[chunk.at]
        )


def weight_gradient(
    counts: torch.Tensor, grads: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """The gradient `[N,K,3,3]` of a convolution's weight.

    Args:
        counts: what was convolved, bytes `[I,K,H,W]`.
        grads: gradients of the result `[I,N,H,W]`.
        weight: says the shape and the dtype.
    """
    num_outputs, num_inputs = weight.shape[:2]
    total = weight.new_zeros(_POINTS, num_outputs, num_inputs)
    if num_inputs * num_outputs <= _MOST_CACHED:
        num_images, _, height, width = grads.shape
        engine_of(grads).call(
            "winograd_weight", grads.dtype, counts, num_images, height, width, num_inputs,
            num_outputs, grads, total,
        )  # fmt: skip
    else:
        _add_points(counts, grads, total)
    along = weight.new_tensor(_FILTER).t()
    half = (along @ total.view(6, -1)).view(3, 6, -1)
    return torch.matmul(along, half).view(3, 3, num_outputs, num_inputs).permute(2, 3, 0, 1)


def _add_points(counts: torch.Tensor, grads: torch.Tensor, total: torch.Tensor) -> None:
    _, num_outputs, num_inputs = total.shape
    engine = engine_of(grads)
    for chunk in _chunks(grads, num_inputs, num_outputs, total):
        engine.call(
            "winograd_counts", total.dtype, counts[chunk.at], *chunk.grid, num_inputs,
            chunk.of_inputs,
        )  # fmt: skip
        engine.call(
            "winograd_gradient", grads.dtype, grads[chunk.at], *chunk.grid, num_outputs,
            chunk.of_outputs,
        )  # fmt: skip
        total.baddbmm_(chunk.of_outputs.transpose(1, 2), chunk.of_inputs)


def _chunks(
    images: torch.Tensor, num_inputs: int, num_outputs: int, weight: torch.Tensor
) -> Iterator[_Chunk]:
    num_images, _, height, width = images.shape
    tiles = -(-height // TILE) * -(-width // TILE)
    an_image = _POINTS * tiles * (num_inputs + num_outputs)
    size = min(num_images, max(1, _CHUNK_BYTES // (an_image * weight.dtype.itemsize)))
    scratch = weight.new_empty(size * an_image)
    for first in range(0, num_images, size):
        count = min(size, num_images - first)
        rows, split = count * tiles, _POINTS * count * tiles * num_inputs
        yield _Chunk(
            slice(first, first + count),
            (count, height, width),
            scratch[:split].view(_POINTS, rows, num_inputs),
            scratch[split : count * an_image].view(_POINTS, rows, num_outputs),
        )


def _filters(weight: torch.Tensor) -> torch.Tensor:
    """`[36,K,N]` of `[N,K,3,3]`."""
    num_outputs, num_inputs = weight.shape[:2]
    along = weight.new_tensor(_FILTER)
    half = (along @ weight.permute(2, 3, 1, 0).reshape(3, -1)).view(6, 3, -1)
    return torch.matmul(along, half).view(_POINTS, num_inputs, num_outputs)
