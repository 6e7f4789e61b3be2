"""Weights are rounded and turned in one pass as torch does it in several."""

import pytest
import torch

from trainables.model import compiled, synapses

pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler")

ODD = [0.0, -0.0, 1e-40, -1e-45, 3.4e38, float("inf"), float("-inf"), float("nan")]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [1, 3])
def test_rounded_weights_are_torchs(size: int, memory: torch.memory_format) -> None:
    torch.manual_seed(0)
    weight = torch.randn(35, 67, size, size)
    weight.view(-1)[: len(ODD)] = torch.tensor(ODD)
    ties = torch.arange(1000, dtype=torch.int32) * 2**15 + 0x3F800000  # half a step of bf16
    weight.view(-1)[-1000:] = ties.view(torch.float32)
    weight = weight.contiguous(memory_format=memory)
    found = synapses._rounded(weight, torch.bfloat16)
    wanted = weight.bfloat16().float()
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(0.0), wanted.nan_to_num(0.0))
    assert torch.equal(found.signbit() & ~found.isnan(), wanted.signbit() & ~wanted.isnan())


def test_a_view_of_weights_is_rounded_as_it_is_seen() -> None:
    weight = torch.randn(6, 10, 3, 3)
    found = synapses._rounded(weight[::2, 1:], torch.bfloat16)
    assert torch.equal(found, weight[::2, 1:].bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_others_are_left_as_they_are(dtype: torch.dtype) -> None:
    weight = torch.randn(4, 5, 3, 3, dtype=dtype)
    assert torch.equal(synapses._rounded(weight, dtype), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (16, 32), (35, 67)])
def test_turned_weights_are_torchs(outputs: int, inputs: int, dtype: torch.dtype) -> None:
    weight = torch.randn(outputs, inputs, 3, 3, dtype=dtype)
    found = synapses._turned(weight.contiguous(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, weight.flip(2, 3).transpose(0, 1))
