"""3x3 currents in bf16 by integer points are a convolution's, for any grid and channels."""

import pytest
import torch
from test_integer import plain

from trainables.model import compiled, integer, synapses
from trainables.model.spikes import SpikeTensor

pytestmark = pytest.mark.skipif(
    compiled.compiler() is None or not compiled.has_pairs(), reason="no units for it"
)

# Timesteps and batch, inputs, outputs, height, width: tiles, pairs, vectors, panels and groups of
# tiles that are cut.
SHAPES = [
    (1, 1, 1, 1, 1), (2, 3, 5, 4, 4), (3, 17, 33, 7, 5), (1, 64, 130, 1, 9), (2, 33, 65, 30, 2),
    (1, 31, 16, 41, 30), (2, 200, 96, 9, 10), (1, 300, 64, 16, 16),
]  # fmt: skip


def spikes(shape: tuple[int, ...], highest: int) -> torch.Tensor:
    steps, inputs, _, height, width = shape
    size = (steps, 2, height, width, inputs)
    return torch.randint(0, highest + 1, size, dtype=torch.uint8).movedim(-1, 2)


def weights(shape: tuple[int, ...]) -> torch.Tensor:
    _, inputs, outputs, _, _ = shape
    scale = torch.logspace(-3, 2, outputs).view(-1, 1, 1, 1)
    return (torch.randn(outputs, inputs, 3, 3) * scale).bfloat16().float()


def convolved(
    counts: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    steps, batch, _, height, width = counts.shape
    out = torch.empty(steps, batch, height, width, len(weight), dtype=torch.bfloat16)
    integer.convolve_by_points(counts, weight, bias, out.movedim(-1, 2))
    return out.movedim(-1, 2)


def steps_of(weight: torch.Tensor) -> torch.Tensor:
    """Of each output: the largest sum of its weights at a point, in so many steps."""
    along = weight.new_tensor([[1, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 1]], dtype=torch.float64)
    points = along @ weight.double() @ along.t()
    return points.abs().flatten(1).amax(1) / 32760


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("highest", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_currents_are_a_convolutions(shape: tuple[int, ...], highest: int, has_bias: bool) -> None:
    torch.manual_seed(0)
    counts, weight = spikes(shape, highest), weights(shape)
    bias = torch.randn(len(weight)) if has_bias else None
    wanted = plain(counts, weight, bias)
    # each spike half a step of its output's, then bf16's rounding
    spikes_seen = plain(counts, torch.ones_like(weight), None)
    allowed = 0.501 * steps_of(weight).view(1, 1, -1, 1, 1) * spikes_seen
    allowed += 2**-8 * wanted.abs() + 1e-7
    assert ((convolved(counts, weight, bias).double() - wanted).abs() <= allowed).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_largest_sums_fit_32_bits(sign: float) -> None:
    weight = torch.full((3, 32, 3, 3), sign)
    counts = spikes((1, 32, 3, 6, 6), 0)
    most = (2**31 - 1) // (4 * 32 * 9 * 32767)
    assert integer.can_convolve_by_points(counts + most, weight)
    assert not integer.can_convolve_by_points(counts + most + 1, weight)
    # alternating weights have the largest multiples: their sums at the points are no larger
    weight *= torch.tensor([[1.0, -1, 1], [1, 1, 1], [-1, 1, 1]])
    wanted = plain(counts + most, weight, None).float()
    found = convolved(counts + most, weight, None).float()
    torch.testing.assert_close(found, wanted, rtol=2**-8, atol=most)


def test_kernels_of_few_inputs_or_one_tap_go_another_way() -> None:
    counts = spikes((1, 32, 4, 5, 5), 1)
    assert integer.can_convolve_by_points(counts, torch.ones(4, 32, 3, 3))
    assert not integer.can_convolve_by_points(counts, torch.ones(4, 32, 1, 1))
    assert not integer.can_convolve_by_points(counts[:, :, :31], torch.ones(4, 31, 3, 3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 3])
def test_a_weight_that_is_no_number_shows(value: float, at: int) -> None:
    counts = torch.ones(1, 1, 3, 3, 4, dtype=torch.uint8).movedim(-1, 2)
    weight = torch.randn(3, 4, 3, 3)
    weight[1, at, 1, 1] = value
    found = convolved(counts, weight, None)
    assert not found[:, :, 1].isfinite().any()
    assert found[:, :, [0, 2]].isfinite().all()


def test_outputs_without_weights_are_their_bias() -> None:
    counts = torch.ones(1, 1, 2, 2, 4, dtype=torch.uint8).movedim(-1, 2)
    found = convolved(counts, torch.zeros(2, 4, 3, 3), torch.tensor([1.0, -2.0]))
    assert found[0, 0, :, 0, 0].tolist() == [1.0, -2.0]


def test_layers_take_this_way_in_bf16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(integer, "convolve_by_points", lambda *_: taken.append(True))
    counts = spikes((2, 32, 4, 5, 5), 1)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        synapses.convolve(SpikeTensor(counts, dtype), torch.randn(4, 32, 3, 3), None, dtype)
        assert bool(taken) == (dtype == torch.bfloat16)
