"""Convolutions by Winograd's points are convolutions, for any grid and number of channels."""

import pytest
import torch
from torch.nn import functional as nnf

from trainables.model import compiled, winograd

pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler")

# Images, inputs, outputs, height, width: vectors' tails, cut tiles, several chunks.
SHAPES = [(2, 3, 5, 4, 4), (3, 17, 33, 7, 5), (1, 64, 40, 1, 9), (70, 48, 64, 12, 12)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-5, torch.bfloat16: 2**-7}


def rows(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    images, channels, height, width = shape
    return torch.randn(images, height, width, channels).to(dtype).movedim(-1, 1)


def assert_near(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    error = (found.double() - wanted).abs().max() / wanted.abs().max()
    assert error < TOLERANCE[dtype]


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@pytest.fixture(params=["in cache", "in chunks"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in chunks":
        monkeypatch.setattr(winograd, "_MOST_CACHED", 0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_convolution(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images, inputs, outputs, height, width = shape
    x = rows(images, inputs, height, width, dtype=dtype)
    weight = torch.randn(outputs, inputs, 3, 3, dtype=wide(dtype))
    out = rows(images, outputs, height, width, dtype=dtype)
    winograd.convolve(x, weight, out)
    assert_near(out, nnf.conv2d(x.double(), weight.double(), padding=1), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_of_a_weight(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images, inputs, outputs, height, width = shape
    counts = rows(images, inputs, height, width, dtype=torch.float32).abs().to(torch.uint8)
    grads = rows(images, outputs, height, width, dtype=dtype)
    weight = torch.zeros(outputs, inputs, 3, 3, dtype=torch.float64, requires_grad=True)
    nnf.conv2d(counts.double(), weight, padding=1).backward(grads.double())
    found = winograd.weight_gradient(counts, grads, weight.detach().to(wide(dtype)))
    assert weight.grad is not None
    assert_near(found, weight.grad, wide(dtype))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_counts_of_any_byte(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    counts = torch.randint(0, 256, (2, 8, 8, 48), dtype=torch.uint8).movedim(-1, 1)
    grads = rows(2, 5, 8, 8, dtype=dtype)
    weight = torch.zeros(5, 48, 3, 3, dtype=torch.float64, requires_grad=True)
    nnf.conv2d(counts.double(), weight, padding=1).backward(grads.double())
    found = winograd.weight_gradient(counts, grads, weight.detach().to(wide(dtype)))
    assert weight.grad is not None
    assert_near(found, weight.grad, wide(dtype))
