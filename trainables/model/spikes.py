"""Spikes as bytes, seen by torch as the floats they stand for.

Shapes: anything; the bytes' strides are the tensor's.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from trainables.model.compiled import available, spike_count

aten = torch.ops.aten

# So many bytes sum up exactly in float32.
_EXACT = 2**24 // 255


class SpikeTensor(torch.Tensor):
    """Small counts (spikes: 0 or 1) that occupy a byte each, of a floating-point dtype.

    Autograd keeps the bytes where it would keep floats. Views stay bytes, products and sums of
    spikes too; every other operation sees a dense copy that is gone after it. Counts stay below
    256: they grow by one or two a residual block.
    """

    counts: torch.Tensor
    _total: list[int]

    @staticmethod
    def __new__(cls, counts: torch.Tensor, dtype: torch.dtype) -> "SpikeTensor":
        """Wrap bytes, which must not be changed after."""
        spikes: SpikeTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            counts.shape,
            strides=counts.stride(),
            storage_offset=counts.storage_offset(),
            dtype=dtype,
            device=counts.device,
        )
        spikes.counts = counts
        spikes._total = []
        return spikes

    def __repr__(self) -> str:  # type: ignore[override]
        """Say shape and dtype."""
        return f"SpikeTensor({tuple(self.shape)}, {self.dtype})"

    def total(self) -> int:
        """Sum of all counts; counted once, also for rearrangements of the same spikes."""
        if not self._total:
            self._total.append(_summed(self.counts))
        return self._total[0]

    def dense(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The same values as an ordinary tensor, detached."""
        return self.counts.to(dtype or self.dtype)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's is a plain function
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Work on the bytes where that is the same, else on a dense copy."""
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        found = handler(func, args, kwargs) if handler else NotImplemented
        if found is not NotImplemented:
            return found
        if func._schema.is_mutable and isinstance(args[0], SpikeTensor):
            raise RuntimeError(f"spikes must not be changed in place, but {func} would")
        args, kwargs = tree_map_only(SpikeTensor, SpikeTensor.dense, (args, kwargs))
        return func(*args, **kwargs)


Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def _rearrange(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    spikes = args[0]
    found = func(spikes.counts, *args[1:], **kwargs)
    if isinstance(found, torch.Tensor):
        return _like(spikes, found, spikes.dtype)
    return [SpikeTensor(part, spikes.dtype) for part in found]


def _convert(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    spikes, dtype = args[0], kwargs.get("dtype") or args[0].dtype
    if not dtype.is_floating_point:
        return NotImplemented
    return _like(spikes, spikes.counts, dtype)


def _like(spikes: SpikeTensor, counts: torch.Tensor, dtype: torch.dtype) -> SpikeTensor:
    """Spikes of their own that share what is known of the sum, where none is lost or repeated."""
    found = SpikeTensor(counts, dtype)
    if counts.numel() == spikes.counts.numel():
        found._total = spikes._total
    return found


def _summed(counts: torch.Tensor) -> int:
    # torch's own sums of bytes take twenty times as long
    if counts.device.type == "cpu" and available() and aten.is_non_overlapping_and_dense(counts):
        return spike_count(counts)
    return int(counts.sum(dtype=torch.int64))


def _combine(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    both = all(isinstance(x, SpikeTensor) for x in args[:2])
    if not both or len(args) > 2 or kwargs:
        return NotImplemented
    return SpikeTensor(func(args[0].counts, args[1].counts), args[0].dtype)


def _sum_all(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # without this, every float64 sum (the energy probe's) would first make a float64 copy
    spikes = args[0]
    dtype = kwargs.get("dtype") or spikes.dtype
    if spikes.device.type != "cpu":
        return spikes.counts.sum(dtype=torch.int64).to(dtype)
    return torch.tensor(spikes.total(), dtype=dtype)


def _sum_some(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    spikes = args[0]
    dtype = kwargs.get("dtype") or spikes.dtype
    axes = args[1] or range(spikes.dim())
    summed = math.prod(spikes.shape[axis] for axis in axes)
    exact = torch.float32 if summed <= _EXACT else torch.int64  # the former is twice as fast
    found = func(spikes.counts, *args[1:], dtype=exact)
    return found.to(dtype)


def _multiply(func: Any, args: tuple[Any, ...], _: dict[str, Any]) -> Any:
    if args[0].dtype not in (torch.bfloat16, torch.float16) or args[0].device.type == "cuda":
        return NotImplemented
    # Exact products, summed in float32: what a GPU's half-precision units do, on every processor.
    wide = [x.dense(torch.float32) if isinstance(x, SpikeTensor) else x.float() for x in args]
    return func(*wide).to(args[0].dtype)


_VIEWS = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.permute.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.expand.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.split.Tensor,
    aten.alias.default,
    aten.detach.default,
    aten.clone.default,
)
_HANDLERS: dict[Any, Handler] = {
    **dict.fromkeys(_VIEWS, _rearrange),
    aten._to_copy.default: _convert,
    aten.mul.Tensor: _combine,
    aten.add.Tensor: _combine,
    aten.sum.default: _sum_all,
    aten.sum.dim_IntList: _sum_some,
    aten.bmm.default: _multiply,
}
