"""Each step on kernels is torch's, in float64; spikes are the floats they stand for."""

from collections.abc import Callable

import pytest
import torch
from backends import KERNELS, stood_for, use_kernels
from torch import nn
from torch.nn import functional as nnf

from trainables.model.fused import Firing, fire, normalise, pool, statistics
from trainables.model.neurons import make_neuron
from trainables.model.spikes import SpikeTensor


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same currents `[T,B,C,H,W]` as they may lie in memory."""
    last = x.movedim(2, -1).contiguous().movedim(-1, 2)
    wide = torch.cat([last, last * 2, last * 3], dim=2)
    return {"planes": x.contiguous(), "channels last": last, "slice": wide[:, :, : x.shape[2]]}


@pytest.mark.parametrize("layout", ["planes", "channels last", "slice"])
@pytest.mark.parametrize(
    ("channels", "size"), [(1, (3, 5)), (5, (3, 5)), (600, (3, 5)), (8, (4, 4)), (24, (4, 5))]
)
@pytest.mark.parametrize("kind", ["lif", "plif"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_norm_and_neuron_are_torchs(
    kernels: str, kind: str, channels: int, size: tuple[int, int], layout: str
) -> None:
    use_kernels(kernels)
    torch.manual_seed(channels)
    norms = [nn.BatchNorm2d(channels).double() for _ in "ab"]
    neurons = [make_neuron(kind, 0.5).double() for _ in "ab"]
    base = torch.randn(3, 2, channels, *size, dtype=torch.float64) * 2 + 1
    xs = [layouts(base)[layout].requires_grad_() for _ in "ab"]
    grad = torch.randn_like(base)
    plain = neurons[0](norms[0](xs[0].flatten(0, 1)).unflatten(0, (3, 2)))
    plain.backward(grad)
    stats = statistics(norms[1], xs[1], 3)
    leak = neurons[1].leak
    how = Firing(3, 0.5, 0.5, stats)
    fast = fire(xs[1], norms[1].weight, norms[1].bias, leak, how)
    fast.backward(grad)
    assert torch.equal(stood_for(fast), plain)
    torch.testing.assert_close(xs[1].grad, xs[0].grad, rtol=1e-9, atol=1e-12)
    pairs = [*zip(norms[1].parameters(), norms[0].parameters(), strict=True)]
    pairs += zip(neurons[1].parameters(), neurons[0].parameters(), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(norms[1].state_dict(), norms[0].state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("is_normed", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 5, 9, 17, 33, 70])
@pytest.mark.parametrize("kernels", KERNELS)
def test_any_number_of_timesteps(kernels: str, steps: int, is_normed: bool) -> None:
    use_kernels(kernels)
    torch.manual_seed(steps)
    norm, neuron = nn.BatchNorm2d(8).double(), make_neuron("plif").double()
    xs = [torch.randn(steps, 3, 8, 3, 3, dtype=torch.float64) * 2 + 0.5 for _ in "a"]
    xs = [x.requires_grad_() for x in (xs[0], xs[0].clone())]
    grad = torch.randn_like(xs[0])
    plain = neuron(norm(xs[0].flatten(0, 1)).view_as(xs[0]) if is_normed else xs[0])
    plain.backward(grad)
    wanted = [
        p.grad.clone() for p in (*norm.parameters(), *neuron.parameters()) if p.grad is not None
    ]
    norm.zero_grad()
    neuron.zero_grad()
    stats = statistics(norm, xs[1], steps) if is_normed else None
    affine = (norm.weight, norm.bias) if is_normed else (None, None)
    fast = fire(xs[1], *affine, neuron.leak, Firing(steps, 1.0, 0.5, stats))
    fast.backward(grad)
    assert torch.equal(stood_for(fast), plain)
    torch.testing.assert_close(xs[1].grad, xs[0].grad, rtol=1e-9, atol=1e-12)
    found = [p.grad for p in (*norm.parameters(), *neuron.parameters()) if p.grad is not None]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_gradients_far_from_the_threshold_are_0_not_subnormal() -> None:
    use_kernels("cpp")
    far = torch.linspace(0.0, 60.0, 4096).view(1, 1, 64, 8, 8)
    x = torch.cat([far, -far]).flatten(0, 1).unsqueeze(0).requires_grad_()
    fire(x, None, None, None, Firing(1, 1.0, 0.5, None)).backward(torch.full_like(x, 1e-10))
    assert x.grad is not None
    u = x.detach().double() / 2
    sigma = torch.sigmoid(4 * (u - 1))
    exact = 2e-10 * sigma * (1 - sigma)
    torch.testing.assert_close(x.grad.double(), exact, rtol=1e-5, atol=1e-23)
    assert not ((x.grad != 0) & (x.grad.abs() < torch.finfo(torch.float32).tiny)).any()
    assert 0 < int((x.grad == 0).sum()) < x.numel()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (4, 7), (5, 6)])
@pytest.mark.parametrize("channels", [1, 5, 8, 70])
@pytest.mark.parametrize("kernels", KERNELS)
def test_pooling_is_torchs_with_its_ties(
    kernels: str, channels: int, stride: int, size: tuple[int, int]
) -> None:
    use_kernels(kernels)
    torch.manual_seed(0)
    counts = torch.randint(0, 3, (2, 3, channels, *size)).to(torch.uint8)
    counts[0, 0, 0] += 253  # the largest that a byte holds
    dense = counts.double().requires_grad_()
    wanted = nnf.max_pool2d(dense.flatten(0, 1), 3, stride, 1).unflatten(0, (2, 3))
    grad = torch.randn_like(wanted)
    wanted.backward(grad)
    spikes = SpikeTensor(counts, torch.float64).requires_grad_()
    out = pool(spikes, stride)
    out.backward(grad)
    assert torch.equal(stood_for(out), wanted.detach())
    torch.testing.assert_close(spikes.grad, dense.grad, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("stride", [0, 1, 2])
@pytest.mark.parametrize("kernels", KERNELS)
def test_normalised_currents_are_pooled_as_torch_does(kernels: str, stride: int) -> None:
    use_kernels(kernels)
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(6).double() for _ in "ab"]
    for norm in norms:
        norm.weight.data = torch.tensor([1.0, -1.0, 0.0, 2.0, -0.5, 1.0]).double()
    xs = [torch.randn(2, 3, 6, 5, 4, dtype=torch.float64).requires_grad_() for _ in "a"]
    xs.append(xs[0].detach().clone().requires_grad_())
    wanted = norms[0](xs[0].flatten(0, 1))
    wanted = nnf.max_pool2d(wanted, 3, stride, 1) if stride else wanted
    grad = torch.randn_like(wanted)
    wanted.backward(grad)
    stats = statistics(norms[1], xs[1], 2)
    out = normalise(xs[1], norms[1].weight, norms[1].bias, stats, stride)
    out.backward(grad.unflatten(0, (2, 3)))
    torch.testing.assert_close(out.detach().flatten(0, 1), wanted.detach())
    torch.testing.assert_close(xs[1].grad, xs[0].grad)
    for mine, theirs in zip(norms[1].parameters(), norms[0].parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


OPERATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "view": lambda x: x.flatten(1).unflatten(1, (4, 3))[:, 1],
    "product": lambda x: x * x.roll(1, 0) + x,
    "scaled": lambda x: x * 0.5 + 1.0,
    "matmul": lambda x: x.transpose(-2, -1) @ x,
    "sum": lambda x: x.sum(-1, keepdim=True, dtype=torch.float64),
    "mean": lambda x: x.mean(0),
    "where": lambda x: torch.where(x > 0, x, x.exp()),
}


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_spikes_are_the_floats_they_stand_for(operation: str) -> None:
    counts = torch.randint(0, 3, (4, 3, 4)).to(torch.uint8)
    spikes = SpikeTensor(counts, torch.float64).requires_grad_()
    dense = counts.double().requires_grad_()
    outs = [OPERATIONS[operation](x) for x in (spikes, dense)]
    assert torch.equal(outs[0] * 1.0, outs[1])
    for out in outs:
        (out * 1.0).square().sum().backward()
    torch.testing.assert_close(spikes.grad, dense.grad)


def test_spikes_are_not_changed_in_place() -> None:
    spikes = SpikeTensor(torch.ones(3, dtype=torch.uint8), torch.float32)
    with pytest.raises(RuntimeError, match="must not be changed in place"):
        spikes.mul_(2.0)
