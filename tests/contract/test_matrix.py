"""Products of rows are matrix products, for any number of rows and columns."""

import pytest
import torch

from trainables.model import compiled, matrix

pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler")

# Rows, inputs, outputs: tiles, vectors, panels and groups of rows that are cut.
SHAPES = [(1, 1, 1), (7, 5, 3), (13, 33, 17), (100, 24, 40), (200, 65, 130), (97, 512, 64)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_products(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows, inputs, outputs = shape
    x = torch.randn(rows, inputs).to(dtype)
    weight = torch.randn(inputs, outputs, dtype=torch.promote_types(dtype, torch.float32))
    found = matrix.multiply(x, weight)
    wanted = x.double() @ weight.double()
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max() / wanted.abs().max()) < TOLERANCE[dtype]


def test_bf16_rounds_results_only() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(50, 300).bfloat16(), torch.randn(300, 70)
    wanted = x.double() @ weight.double()
    found = matrix.multiply(x, weight).double()
    torch.testing.assert_close(found, wanted, rtol=2**-8, atol=1e-4)
