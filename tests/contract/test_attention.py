"""Every attention mode, in shapes the golden results do not have, against a step-by-step oracle."""

import math
from typing import Any, Literal, cast

import pytest
import torch

from trainables.config import ModelConfig
from trainables.cost import parameter_count
from trainables.model import build_model
from trainables.model.attention import ATTENTION_MODES, BlockProduct, make_attention
from trainables.model.neurons import make_neuron


def lif(current: torch.Tensor, threshold: float) -> torch.Tensor:
    """The neuron as the paper writes it, a timestep at a time."""
    potential = torch.zeros_like(current[0])
    spikes = []
    for x in current:
        potential = potential + (x - potential) / 2.0
        spike = (potential >= threshold).to(current.dtype)
        potential = potential * (1.0 - spike)
        spikes.append(spike)
    return torch.stack(spikes)


@pytest.mark.parametrize("threshold", [1.0, 0.5])
@pytest.mark.parametrize("timesteps", [1, 4, 7, 16])
def test_lif_equals_its_definition(threshold: float, timesteps: int) -> None:
    current = torch.randn(timesteps, 3, 5, dtype=torch.float64) * 2
    assert torch.equal(make_neuron("lif", threshold)(current), lif(current, threshold))


def test_surrogate_gradient_is_a_sigmoid_of_slope_4_with_detached_reset() -> None:
    current = torch.randn(3, 8, dtype=torch.float64).requires_grad_()
    make_neuron("lif")(current).sum().backward()
    spikes = lif(current.detach(), 1.0)
    potential = torch.zeros(8, dtype=torch.float64)
    seen = []
    for x, spike in zip(current.detach(), spikes, strict=True):
        u = potential + (x - potential) / 2.0
        seen.append(u)
        potential = u * (1.0 - spike)
    wanted = torch.zeros_like(current)
    carried = torch.zeros(8, dtype=torch.float64)
    for t in reversed(range(3)):
        sigma = torch.sigmoid(4.0 * (seen[t] - 1.0))
        grad_u = 4.0 * sigma * (1.0 - sigma) + carried
        wanted[t] = grad_u / 2.0
        carried = grad_u / 2.0 * (1.0 - spikes[t - 1]) if t else carried
    assert current.grad is not None
    assert torch.allclose(current.grad, wanted, atol=1e-12)


def test_plif_starts_as_lif_and_learns_its_leak() -> None:
    current = torch.randn(5, 2, 6, dtype=torch.float64)
    neuron = make_neuron("plif").double()
    assert torch.equal(neuron(current), lif(current, 1.0))
    neuron(current).sum().backward()
    (leak,) = neuron.parameters()
    assert leak.grad is not None
    assert leak.grad.abs() > 0


def test_no_state_survives_a_call() -> None:
    config = ModelConfig(width=32, depth=1, heads=4, image_size=8, timesteps=2)
    model = build_model(config).eval()
    x = torch.randn(2, 3, 8, 8)
    first = model(x)
    model(torch.randn(5, 3, 8, 8))  # another batch size, other content
    assert torch.equal(model(x), first)


def naive_statten(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, c: int, s: float
) -> torch.Tensor:
    """Sum over every pair of tokens of a block, in loops."""
    out = torch.zeros_like(q)
    timesteps, num_tokens = q.shape[0], q.shape[3]
    for start in range(0, timesteps, c):
        for t in range(start, start + c):
            for n in range(num_tokens):
                for u in range(start, start + c):
                    for m in range(num_tokens):
                        weight = (q[t, :, :, n] * k[u, :, :, m]).sum(-1, keepdim=True)
                        out[t, :, :, n] += weight * v[u, :, :, m] * s
    return out


@pytest.mark.parametrize(("timesteps", "c"), [(3, 3), (6, 3), (8, 8), (4, 1), (16, 16)])
@pytest.mark.parametrize("event", [False, True])
def test_block_product_is_attention_within_a_block(timesteps: int, c: int, event: bool) -> None:
    config = ModelConfig(
        width=48, heads=2, timesteps=timesteps, block_size=c, event_data=event, image_size=8
    )
    grid = 2
    q, k, v = (torch.randint(0, 2, (timesteps, 2, 2, grid * grid, 24)).double() for _ in "qkv")
    scale = 1 / (grid * grid * c) if event else 1 / grid
    product = BlockProduct(config)(q, k, v, grid)
    assert torch.allclose(product, naive_statten(q, k, v, c, scale), atol=1e-12)


def test_frames_of_one_column_are_scaled_by_their_height() -> None:
    config = ModelConfig(width=16, heads=2, depth=1, timesteps=8, block_size=4, image_size=32)
    torch.manual_seed(0)
    model = build_model(config).double()
    seen: list[tuple[torch.Tensor, ...]] = []
    product = model.get_submodule("block.0.attn.product")
    product.register_forward_hook(lambda _, given, out: seen.append((*given[:3], out)))
    model(torch.randn(2, 8, 3, 32, 1).double() * 3).sum().backward()
    ((q, k, v, out),) = seen
    assert q.shape == (8, 2, 2, 8, 8)  # a grid of 8x1
    assert out.abs().sum() > 0
    assert torch.allclose(out, naive_statten(q, k, v, 4, 1 / 8), atol=1e-12)


@pytest.mark.parametrize("attention", sorted(ATTENTION_MODES))
@pytest.mark.parametrize("event", [False, True])
@pytest.mark.parametrize(
    ("width", "heads", "ratio", "size", "timesteps", "c"),
    [(32, 2, 1, 48, 3, 3), (48, 6, 2, 16, 8, 8), (48, 8, 1, 16, 16, 16), (32, 8, 2, 12, 1, 1)],
)
def test_every_mode_trains_in_every_shape(
    attention: Literal["statten", "sdt", "ssa"],
    event: bool,
    width: int,
    heads: int,
    ratio: int,
    size: int,
    timesteps: int,
    c: int,
) -> None:
    config = ModelConfig(
        attention=attention,
        event_data=event,
        width=width,
        heads=heads,
        mlp_ratio=ratio,
        image_size=size,
        timesteps=timesteps,
        block_size=c,
        depth=2,
        in_channels=2,
        num_classes=5,
    )
    torch.manual_seed(0)
    model = build_model(config)
    x = torch.randn(2, timesteps, 2, size, size) * 3 if event else torch.randn(2, 2, size, size)
    logits = model(x)
    assert logits.shape == (timesteps, 2, 5)
    logits.mean(0).logsumexp(1).sum().backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert sum(p.numel() for p in model.parameters()) == parameter_count(config)


def test_mlp_of_ratio_one_has_an_inner_residual() -> None:
    config = ModelConfig(width=16, heads=2, mlp_ratio=1, depth=1, image_size=8, timesteps=2)
    mlp = cast(Any, build_model(config).get_submodule("block.0.mlp").double().eval())
    x = torch.randn(2, 1, 16, 2, 2, dtype=torch.float64) * 2
    inner = mlp.fc1_bn(mlp.fc1_conv(lif(x, 1.0).flatten(0, 1))).view_as(x) + x
    wanted = mlp.fc2_bn(mlp.fc2_conv(lif(inner, 1.0).flatten(0, 1))).view_as(x) + inner
    branch, identity = mlp(x)
    assert torch.allclose(branch + identity, wanted, atol=1e-12)


def test_drop_path_drops_whole_samples_in_training_only() -> None:
    config = ModelConfig(width=16, heads=2, depth=2, drop_path=0.5, image_size=8, timesteps=2)
    drop = build_model(config).get_submodule("block.1.drop_path")
    x = torch.ones(2, 400, 1, 1, 1)
    drop.train()
    kept = drop(x)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(kept[0], kept[1])
    assert 120 < int((kept[0] == 0).sum()) < 280
    assert torch.equal(drop.eval()(x), x)


def test_unknown_names_list_the_valid_ones() -> None:
    config = ModelConfig().model_copy(update={"attention": "self"})
    with pytest.raises(ValueError, match=r"sdt.*ssa.*statten.*'self'"):
        make_attention(config)
    with pytest.raises(ValueError, match=r"lif.*plif.*'izhikevich'"):
        make_neuron("izhikevich")


def test_bf16_autocast_keeps_membrane_state_wide() -> None:
    seen: list[torch.dtype] = []
    config = ModelConfig(width=32, depth=1, heads=4, image_size=8, timesteps=2)
    model = build_model(config)
    model.get_submodule("head_lif").register_forward_hook(
        lambda _m, _a, out: seen.append(out.dtype)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(torch.randn(2, 3, 8, 8))
    assert math.isfinite(float(logits.detach().float().sum()))
    assert seen == [torch.float32]
