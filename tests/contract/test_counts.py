"""Sums and maxima of many values: every one counts, wherever it lies."""

import pytest
import torch

from trainables.model import compiled, synapses

pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler")


@pytest.mark.parametrize("size", [1, 63, 64, 200, 100_001])
def test_the_largest_byte_is_found_anywhere(size: int) -> None:
    for at in {0, size // 2, size - 1}:
        counts = torch.ones(size, dtype=torch.uint8)
        counts[at] = 200
        assert compiled.largest_count(counts) == 200


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 3, 5, 7, 4), (3, 2, 70, 30, 20)])
def test_sums_of_channels(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    steps, batch, channels, height, width = shape
    x = torch.randn(steps, batch, height, width, channels).to(dtype).movedim(-1, 2)
    found = synapses._channel_sums(x)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    wanted = x.double().sum((0, 1, 3, 4))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-3)
