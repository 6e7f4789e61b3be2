"""3x3 currents in bf16 by integer points are a convolution's, for any grid and channels."""

import pytest
import torch
from test_integer import convolved, plain, spikes, weights

from trainables.model import compiled, integer

pytestmark = pytest.mark.skipif(
    compiled.compiler() is None or not compiled.has_pairs(), reason="no units for it"
)

# As in `test_integer`: tiles, pairs, vectors, panels and groups of tiles that are cut.
SHAPES = [
    (1, 1, 1, 1, 1, 3), (2, 3, 5, 4, 4, 3), (3, 17, 33, 7, 5, 3), (1, 64, 130, 1, 9, 3),
    (2, 33, 65, 30, 2, 3), (1, 31, 16, 41, 30, 3), (2, 200, 96, 9, 10, 3), (1, 300, 64, 16, 16, 3),
]  # fmt: skip


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
    assert (
        (convolved(counts, weight, bias, integer.convolve_by_points).double() - wanted).abs()
        <= allowed
    ).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_largest_sums_fit_32_bits(sign: float) -> None:
    weight = torch.full((3, 32, 3, 3), sign)
    counts = spikes((1, 32, 3, 6, 6, 3), 0)
    most = (2**31 - 1) // (4 * 32 * 9 * 32767)
    assert integer.can_convolve_by_points(counts + most, weight)
    assert not integer.can_convolve_by_points(counts + most + 1, weight)
    # alternating weights have the largest multiples: their sums at the points are no larger
    weight *= torch.tensor([[1.0, -1, 1], [1, 1, 1], [-1, 1, 1]])
    wanted = plain(counts + most, weight, None).float()
    found = convolved(counts + most, weight, None, integer.convolve_by_points).float()
    torch.testing.assert_close(found, wanted, rtol=2**-8, atol=most)


def test_kernels_of_few_inputs_or_one_tap_go_another_way() -> None:
    counts = spikes((1, 32, 4, 5, 5, 3), 1)
    assert integer.can_convolve_by_points(counts, torch.ones(4, 32, 3, 3))
    assert not integer.can_convolve_by_points(counts, torch.ones(4, 32, 1, 1))
    assert not integer.can_convolve_by_points(counts[:, :, :31], torch.ones(4, 31, 3, 3))
