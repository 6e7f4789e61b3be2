"""1x1 gradients in bf16 from integer sums are the plain products, for any number of rows."""

import pytest
import torch

from trainables.model import compiled, integer, synapses
from trainables.model.spikes import SpikeTensor

pytestmark = pytest.mark.skipif(
    compiled.compiler() is None or not compiled.has_pairs(), reason="no units for it"
)

# Rows, inputs, outputs: pairs, vectors, tiles, panels, blocks and groups that are cut.
SHAPES = [
    (1, 1, 1), (7, 5, 3), (13, 33, 17), (255, 24, 40), (256, 16, 96), (257, 65, 97),
    (600, 130, 200), (97, 512, 300), (194, 128, 257),
]  # fmt: skip
WEIGHT_STEPS, GRADIENT_STEPS = 4095, 32767
BLOCK_ROWS, BLOCK_DEPTH = 256, 128


def gradients(rows: int, outputs: int) -> torch.Tensor:
    """Of sizes that differ by row and by output."""
    scales = torch.logspace(-3, 3, outputs) * torch.logspace(-2, 2, rows).unsqueeze(1)
    return (torch.randn(rows, outputs) * scales).bfloat16()


def block_steps(x: torch.Tensor, block: int, most: int) -> torch.Tensor:
    """Of rows, in blocks of so many, each value's step."""
    parts = [part.abs().amax(0).expand_as(part) for part in x.double().split(block)]
    return torch.cat(parts) / most


@pytest.mark.parametrize("highest", [1, 3, 255])
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_gradients(shape: tuple[int, int, int], highest: int) -> None:
    torch.manual_seed(0)
    rows, inputs, outputs = shape
    counts = torch.randint(0, highest + 1, (rows, inputs), dtype=torch.uint8)
    grad = gradients(rows, outputs)
    found = integer.weight_gradient(counts, grad)
    wanted = grad.double().t() @ counts.double()
    # each gradient half a step of its block's, then rounding of sums in float32
    step = block_steps(grad, BLOCK_ROWS, GRADIENT_STEPS)
    sizes = grad.double().abs().t() @ counts.double()
    allowed = 0.501 * step.t() @ counts.double() + 2**-20 * sizes
    assert found.dtype == torch.float32
    assert ((found.double() - wanted).abs() <= allowed).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_input_gradients(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    rows, inputs, outputs = shape
    grad, weight = gradients(rows, outputs), torch.randn(outputs, inputs)
    found = integer.multiply(grad, weight)
    wanted = grad.double() @ weight.double()
    # each operand half a step, then rounding to bf16
    of_grad = block_steps(grad.t(), BLOCK_DEPTH, WEIGHT_STEPS).t()
    of_weight = block_steps(weight, outputs, WEIGHT_STEPS)
    allowed = 0.51 * (of_grad @ weight.double().abs() + grad.double().abs() @ of_weight)
    allowed += 2**-8 * wanted.abs() + 0.26 * of_grad @ of_weight
    assert found.dtype == torch.bfloat16
    assert ((found.double() - wanted).abs() <= allowed).all()


def test_largest_sums_fit_32_bits() -> None:
    counts = torch.full((512, 3), 255, dtype=torch.uint8)
    ones = torch.ones(512, 5, dtype=torch.bfloat16)
    wanted = torch.full((5, 3), 255.0 * 512)
    torch.testing.assert_close(integer.weight_gradient(counts, ones), wanted, rtol=1e-5, atol=0)
    found = integer.multiply(torch.ones(3, 512, dtype=torch.bfloat16), torch.full((512, 4), -1.0))
    torch.testing.assert_close(found.float(), torch.full((3, 4), -512.0), rtol=2**-8, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 3])
def test_a_gradient_that_is_no_number_shows(value: float, at: int) -> None:
    torch.manual_seed(0)
    grad = torch.randn(6, 4).bfloat16()
    grad[1, at] = value
    counts = torch.ones(6, 5, dtype=torch.uint8)
    assert integer.weight_gradient(counts, grad).isfinite().all(1).tolist() == [
        n != at for n in range(4)
    ]
    found = integer.multiply(grad, torch.randn(4, 5))
    assert found.isfinite().all(1).tolist() == [row != 1 for row in range(6)]


def test_without_gradients_there_are_none() -> None:
    counts, none = torch.ones(6, 5, dtype=torch.uint8), torch.zeros(6, 4, dtype=torch.bfloat16)
    assert not integer.weight_gradient(counts, none).any()
    assert not integer.multiply(none, torch.randn(4, 5)).any()
    assert not integer.multiply(torch.ones_like(none), torch.zeros(4, 5)).any()


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layers_take_this_way_in_bf16_and_1x1_alone(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, size: int
) -> None:
    taken = []

    def watch(name: str) -> None:
        plain = getattr(integer, name)

        def watched(*x: torch.Tensor) -> torch.Tensor:
            taken.append(name)
            return torch.as_tensor(plain(*x))

        monkeypatch.setattr(integer, name, watched)

    watch("multiply")
    watch("weight_gradient")
    counts = torch.randint(0, 2, (2, 2, 5, 5, 8), dtype=torch.uint8).movedim(-1, 2)
    spikes = SpikeTensor(counts, dtype).requires_grad_()
    weight = torch.randn(4, 8, size, size, requires_grad=True)
    currents = synapses.convolve(spikes, weight, None, dtype)
    grad = torch.randn_like(currents)
    currents.backward(grad)
    wants_both = dtype == torch.bfloat16 and size == 1
    assert taken == (["multiply", "weight_gradient"] if wants_both else [])
    if not wants_both:
        return
    rows, seen = grad.movedim(2, -1).flatten(0, 3), counts.movedim(2, -1).flatten(0, 3)
    wanted = (rows.double().t() @ seen.double()).view_as(weight)
    torch.testing.assert_close(weight.grad, wanted.float(), rtol=1e-3, atol=1e-3)
