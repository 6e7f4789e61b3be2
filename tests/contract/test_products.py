"""Attention from bytes is attention, forward and backward, for any heads, blocks and grids."""

from collections.abc import Callable

import pytest
import torch
from backends import computed_by, gradient

from trainables.config import ModelConfig
from trainables.model import backend_fused, build_model, compiled, products
from trainables.model.attention import split_heads
from trainables.model.backends import TORCH, grid_mean
from trainables.model.spikes import SpikeTensor

pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler")

# Timesteps, batch, heads, tokens, head dim, block size: vectors, tiles and panels that are cut.
SHAPES = [
    (1, 1, 1, 1, 1, 1), (4, 2, 3, 7, 5, 2), (3, 2, 2, 9, 16, 3), (6, 1, 2, 8, 24, 2),
    (4, 2, 1, 5, 40, 4), (2, 1, 2, 11, 70, 1), (2, 2, 2, 3, 130, 2),
]  # fmt: skip
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7}


@pytest.mark.parametrize("is_split", [False, True], ids=["rows", "planes"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_and_their_gradients(
    shape: tuple[int, ...], dtype: torch.dtype, is_split: bool
) -> None:
    torch.manual_seed(0)
    steps, batch, heads, tokens, dim, block = shape
    size = (steps, batch, tokens, heads, dim)
    counts = [torch.randint(0, 3, size, dtype=torch.uint8).transpose(2, 3) for _ in "qkv"]
    counts = [x.contiguous() for x in counts] if is_split else counts
    spikes = [SpikeTensor(x, dtype).requires_grad_() for x in counts]
    plain = q, k, v = [x.double().requires_grad_() for x in counts]
    assert products.can_attend(*spikes)
    found = products.attend(*spikes, block, 0.3)
    wanted = TORCH.attend(q, k, v, block, 0.3)
    grad = torch.randn(wanted.shape).to(dtype)
    found.backward(grad)
    wanted.backward(grad.double())
    assert found.dtype == dtype
    gradients = [(gradient(a), gradient(b)) for a, b in zip(spikes, plain, strict=True)]
    for mine, theirs in [(found, wanted), *gradients]:
        error = (mine.double() - theirs).abs().max()
        assert error <= TOLERANCE[dtype] * theirs.abs().max()


@pytest.mark.parametrize(
    ("backbone", "event"), [("sdt", False), ("sdt", True), ("spikformer", False)]
)
def test_networks_take_this_way(
    backbone: str, event: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def attend(*given: torch.Tensor) -> torch.Tensor:
        taken.append(True)
        return products.attend(*given)

    monkeypatch.setattr(backend_fused, "attend", attend)
    fields = {"width": 16, "heads": 2, "depth": 1, "image_size": 8, "timesteps": 2, "block_size": 2}
    config = ModelConfig.model_validate(fields | {"backbone": backbone, "event_data": event})
    model = computed_by("cpp", build_model(config))
    model(torch.randn(2, 2, 3, 8, 8)).sum().backward()
    assert taken == [True]


WAYS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "heads": lambda x: split_heads(x, 2),
    "mean": grid_mean,
}


@pytest.mark.parametrize("way", WAYS)
def test_gradients_keep_the_memory_order_of_what_was_given(way: str) -> None:
    rows = torch.randn(2, 3, 4, 4, 8).movedim(-1, 2)
    for x in (rows, rows.contiguous()):
        leaf = x.clone().requires_grad_()
        assert leaf.stride() == x.stride()
        seen: list[tuple[int, ...]] = []
        currents = leaf * 1.0
        currents.register_hook(lambda grad, seen=seen: seen.append(grad.stride()))
        out = WAYS[way](currents)
        out.backward(torch.randn(out.shape))
        assert seen == [x.stride()]
