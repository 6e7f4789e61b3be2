"""Currents in bf16 from integer sums are a convolution's, for any grid and number of channels."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as nnf

from trainables.model import compiled, integer, synapses
from trainables.model.spikes import SpikeTensor

pytestmark = pytest.mark.skipif(
    compiled.compiler() is None or not compiled.has_pairs(), reason="no units for it"
)

# Timesteps and batch, inputs, outputs, height, width, size: pairs and vectors cut, several panels
# and several bands of an image.
SHAPES = [
    (1, 1, 1, 1, 1, 1), (2, 3, 5, 4, 4, 3), (3, 17, 33, 7, 5, 3), (1, 64, 130, 1, 9, 1),
    (2, 16, 65, 30, 2, 3), (1, 31, 16, 80, 70, 3), (2, 200, 96, 20, 30, 1),
]  # fmt: skip


def spikes(shape: tuple[int, ...], highest: int) -> torch.Tensor:
    steps, inputs, _, height, width, _ = shape
    size = (steps, 2, height, width, inputs)
    return torch.randint(0, highest + 1, size, dtype=torch.uint8).movedim(-1, 2)


def weights(shape: tuple[int, ...]) -> torch.Tensor:
    _, inputs, outputs, _, _, size = shape
    scale = torch.logspace(-3, 2, outputs).view(-1, 1, 1, 1)
    return (torch.randn(outputs, inputs, size, size) * scale).bfloat16().float()


def convolved(
    counts: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    way: Callable[..., None] = integer.convolve,
) -> torch.Tensor:
    steps, batch, _, height, width = counts.shape
    out = torch.empty(steps, batch, height, width, len(weight), dtype=torch.bfloat16)
    way(counts, weight, bias, out.movedim(-1, 2))
    return out.movedim(-1, 2)


def plain(counts: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    wide = None if bias is None else bias.double()
    pad = weight.shape[-1] // 2
    images = counts.flatten(0, 1).double()
    found: torch.Tensor = nnf.conv2d(images, weight.double(), wide, padding=pad)
    return torch.as_tensor(found.unflatten(0, counts.shape[:2]))


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("highest", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_currents_are_a_convolutions(shape: tuple[int, ...], highest: int, has_bias: bool) -> None:
    torch.manual_seed(0)
    counts, weight = spikes(shape, highest), weights(shape)
    bias = torch.randn(len(weight)) if has_bias else None
    assert integer.can_convolve(counts, weight)
    wanted = plain(counts, weight, bias)
    # each spike half a step of its output's, then bf16's rounding
    spikes_seen = plain(counts, torch.ones_like(weight), None)
    step = weight.flatten(1).abs().amax(1).double().view(1, 1, -1, 1, 1) / 32767
    allowed = 0.501 * step * spikes_seen + 2**-8 * wanted.abs() + 1e-7
    assert ((convolved(counts, weight, bias).double() - wanted).abs() <= allowed).all()


def test_no_sum_can_exceed_32_bits() -> None:
    counts = torch.full((1, 1, 128, 2, 2), 255, dtype=torch.uint8)
    counts = counts.contiguous().movedim(2, -1).contiguous().movedim(-1, 2)
    weight = torch.ones(4, 128, 3, 3)
    assert not integer.can_convolve(counts, weight)
    assert integer.can_convolve(counts // 255, weight)
    few = torch.full((1, 1, 1, 1, 257), 255, dtype=torch.uint8).movedim(-1, 2)
    most = torch.ones(3, 257, 1, 1)
    assert integer.can_convolve(few, most)
    torch.testing.assert_close(
        convolved(few, most, None).float(), plain(few, most, None).float(), rtol=2**-8, atol=0
    )
    assert not integer.can_convolve(few, torch.ones(3, 258, 1, 1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize(("way", "size"), [(integer.convolve, 1), (integer.convolve_by_points, 3)])
def test_a_weight_that_is_no_number_shows(
    way: Callable[..., None], size: int, value: float, at: int
) -> None:
    counts = torch.ones(1, 1, 3, 3, 4, dtype=torch.uint8).movedim(-1, 2)
    weight = torch.randn(3, 4, size, size)
    weight[1, at, size // 2, size // 2] = value
    found = convolved(counts, weight, None, way)
    assert not found[:, :, 1].isfinite().any()
    assert found[:, :, [0, 2]].isfinite().all()


@pytest.mark.parametrize("way", [integer.convolve, integer.convolve_by_points])
def test_outputs_without_weights_are_their_bias(way: Callable[..., None]) -> None:
    counts = torch.ones(1, 1, 2, 2, 4, dtype=torch.uint8).movedim(-1, 2)
    found = convolved(counts, torch.zeros(2, 4, 3, 3), torch.tensor([1.0, -2.0]), way)
    assert found[0, 0, :, 0, 0].tolist() == [1.0, -2.0]


@pytest.mark.parametrize(("way", "num_inputs"), [("convolve", 8), ("convolve_by_points", 32)])
def test_layers_take_this_way_in_bf16_alone(
    monkeypatch: pytest.MonkeyPatch, way: str, num_inputs: int
) -> None:
    taken = []
    monkeypatch.setattr(integer, way, lambda *_: taken.append(True))
    counts = spikes((2, num_inputs, 4, 5, 5, 3), 1)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        weight = torch.randn(4, num_inputs, 3, 3)
        synapses.convolve(SpikeTensor(counts, dtype), weight, None, dtype)
        assert bool(taken) == (dtype == torch.bfloat16)
