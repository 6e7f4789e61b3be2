"""Sums of spikes that are stored as bytes."""

from collections.abc import Callable

import pytest
import torch

from trainables.model.spikes import SpikeTensor

VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "itself": lambda x: x,
    "transposed": lambda x: x.transpose(1, 2),
    "reordered": lambda x: x.permute(2, 0, 1).flatten(1),
    "part": lambda x: x[1:],
    "stepped": lambda x: x[:, ::2],
    "part of all": lambda x: x.transpose(0, 1)[0],
    "repeated": lambda x: x[:1].expand(3, -1, -1),
    "split": lambda x: x.split(2, dim=2)[1],
    "of itself and another": lambda x: x + x,
    "common": lambda x: x * x.flip(0),
}


def spikes() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 3, (3, 4, 5), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("first", [False, True], ids=["summed after", "summed before as well"])
@pytest.mark.parametrize("view", VIEWS)
def test_sums_are_those_of_the_numbers(view: str, *, first: bool) -> None:
    counts = spikes()
    seen = SpikeTensor(counts, torch.float32)
    if first:  # what is remembered must not be that of a part
        assert float(seen.sum()) == float(counts.sum())
    found, wanted = (VIEWS[view](x) for x in (seen, counts.double()))
    assert torch.equal(found.sum(dtype=torch.float64), wanted.sum())
    assert torch.equal(found.sum(-1, dtype=torch.float64), wanted.sum(-1))
    assert torch.equal(found.sum(dim=0, keepdim=True).double(), wanted.sum(dim=0, keepdim=True))
    assert float(seen.sum()) == float(counts.sum())


def test_a_sum_over_many_spikes_is_exact() -> None:
    counts = torch.full((2, 2**24 + 1), 1, dtype=torch.uint8)
    total = SpikeTensor(counts, torch.float32).sum(-1, dtype=torch.float64)
    assert total.tolist() == [2**24 + 1] * 2
