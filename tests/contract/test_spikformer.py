"""Spikformer against a step-by-step oracle in float64, and what its place in the package asks."""

import itertools

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as nnf

from trainables.config import ATTENTION_OF, EnergyConfig, ModelConfig
from trainables.cost import macs_per_timestep, parameter_count, total_macs
from trainables.energy import E_AC_PJ, E_MAC_PJ, EnergyProbe
from trainables.model import build_model
from trainables.model.attention import ATTENTION_MODES
from trainables.model.spikformer import PRODUCTS

State = dict[str, torch.Tensor]


def lif(current: torch.Tensor, threshold: float = 1.0) -> torch.Tensor:
    potential, spikes = torch.zeros_like(current[0]), []
    for x in current:
        potential = potential + (x - potential) / 2.0
        spikes.append((potential >= threshold).to(current.dtype))
        potential = potential * (1.0 - spikes[-1])
    return torch.stack(spikes)


def layer(
    state: State, name: str, x: torch.Tensor, *, train: bool, suffix: str = ""
) -> torch.Tensor:
    """Convolution and batch norm a timestep at a time, statistics over all of them."""
    weight, bias = state[f"{name}_conv{suffix}.weight"], state.get(f"{name}_conv{suffix}.bias")
    out = torch.stack([nnf.conv2d(step, weight, bias, padding=weight.shape[-1] // 2) for step in x])
    norm = f"{name}_bn{suffix}"
    mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
    if train:
        mean = out.mean(dim=(0, 1, 3, 4))
        var = out.var(dim=(0, 1, 3, 4), unbiased=False)
    shape = (1, 1, -1, 1, 1)
    out = (out - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-5)
    return out * state[f"{norm}.weight"].view(shape) + state[f"{norm}.bias"].view(shape)


def attend(config: ModelConfig, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Sum over pairs of tokens of a block, head by head; `[T,B,D,H,W]` in and out."""
    is_ssa = config.attention == "ssa"
    c = 1 if is_ssa else config.block_size
    grid, d = q.shape[-1], config.width // config.heads
    scale = 1.0 / grid if not config.event_data else 1.0 / (grid * grid * c)
    out = torch.zeros_like(q)
    for start in range(0, config.timesteps, c):
        for head in range(config.heads):
            rows = slice(head * d, (head + 1) * d)
            block = range(start, start + c)
            for t, u in itertools.product(block, block):
                scores = torch.einsum("bdhw,bdxy->bhwxy", q[t, :, rows], k[u, :, rows])
                mixed = torch.einsum("bhwxy,bdxy->bdhw", scores, v[u, :, rows])
                out[t, :, rows] += mixed * (0.125 if is_ssa else scale)
    return out


def oracle(config: ModelConfig, state: State, frames: torch.Tensor, *, train: bool) -> torch.Tensor:
    x = frames
    for stage, pools in enumerate(config.pooling):
        x = lif(layer(state, "patch_embed.proj", x, train=train, suffix=str(stage or "")))
        if pools == "1":
            x = torch.stack([nnf.max_pool2d(step, 3, 2, 1) for step in x])
    x = lif(layer(state, "patch_embed.rpe", x, train=train)) + x
    for i in range(config.depth):
        q, k, v = (lif(layer(state, f"block.{i}.attn.{n}", x, train=train)) for n in "qkv")
        mixed = lif(attend(config, q, k, v), 0.5)
        x = x + lif(layer(state, f"block.{i}.attn.proj", mixed, train=train))
        hidden = lif(layer(state, f"block.{i}.mlp.fc1", x, train=train))
        x = x + lif(layer(state, f"block.{i}.mlp.fc2", hidden, train=train))
    return x.mean(dim=(3, 4)) @ state["head.weight"].T + state["head.bias"]


def config_of(attention: str, **fields: object) -> ModelConfig:
    small = {
        "backbone": "spikformer",
        "attention": attention,
        "width": 32,
        "heads": 4,
        "depth": 2,
        "image_size": 8,
        "timesteps": 4,
        "num_classes": 5,
        "pooling": "0010",
    }
    return ModelConfig.model_validate(small | fields)


def images(config: ModelConfig, batch: int) -> torch.Tensor:
    if config.event_data:
        return torch.randint(0, 4, (batch, config.timesteps, 2, 8, 8)).double()
    return torch.randn(batch, 3, 8, 8, dtype=torch.float64)


def lively(config: ModelConfig) -> torch.nn.Module:
    """A network whose every layer fires, with running statistics of its own."""
    torch.manual_seed(3)
    model = build_model(config).double()
    norms = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    for name, module in norms.items():
        torch.nn.init.uniform_(module.weight, 0.8, 1.6)
        torch.nn.init.normal_(module.bias, 1.5 if "attn" in name else 0.5, 0.2)
        module.momentum = 1.0
    with torch.no_grad():
        model.train()(images(config, 8))
    for module in norms.values():
        module.momentum = 0.1
    return model


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("event", [False, True])
@pytest.mark.parametrize("attention", sorted(PRODUCTS))
@torch.no_grad()
def test_logits_equal_the_oracle(attention: str, event: bool, train: bool) -> None:
    config = config_of(attention, event_data=event, in_channels=2 if event else 3)
    model = lively(config).train(train)
    state = {name: x.clone() for name, x in model.state_dict().items()}
    x = images(config, 2)
    frames = x.transpose(0, 1) if event else x.expand(4, -1, -1, -1, -1)
    rates: list[float] = []
    for name, module in model.named_modules():
        if name.endswith(("_lif", "_lif1", "_lif2", "_lif3")):
            module.register_forward_hook(lambda _m, _a, out: rates.append(float(out.mean())))
    logits = model(x)
    assert len(rates) == 5 + 7 * 2
    assert all(0.0 < rate < 1.0 for rate in rates)
    assert torch.allclose(logits, oracle(config, state, frames, train=train), atol=1e-9)


@pytest.mark.parametrize("neuron", ["lif", "plif"])
@pytest.mark.parametrize("attention", sorted(PRODUCTS))
def test_every_parameter_learns_and_is_counted(attention: str, neuron: str) -> None:
    config = config_of(attention, neuron=neuron, drop_path=0.2)
    model = lively(config)
    model(images(config, 4)).mean(0).logsumexp(1).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    grads = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    silent = [name for name, grad in grads if float(grad.abs().sum()) == 0.0]
    assert not silent
    assert sum(p.numel() for p in model.parameters()) == parameter_count(config)


@pytest.mark.parametrize(
    ("depth", "width", "classes", "millions"),
    [(4, 384, 10, 9.32), (8, 384, 1000, 16.81), (8, 512, 1000, 29.68), (8, 768, 1000, 66.34)],
)
def test_parameter_counts_are_the_papers(
    depth: int, width: int, classes: int, millions: float
) -> None:
    config = config_of("ssa", depth=depth, width=width, num_classes=classes)
    assert parameter_count(config) / 1e6 == pytest.approx(millions, abs=0.011)


@pytest.mark.parametrize("attention", sorted(PRODUCTS))
def test_macs_are_those_of_the_module(attention: str) -> None:
    config = config_of(attention, timesteps=1, block_size=1)
    model = build_model(config).eval()
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(
                lambda m, _a, out, name=name: found.update(
                    {name: out.numel() * m.weight[0].numel()}
                )
            )
    model(torch.randn(1, 3, 8, 8))
    told = macs_per_timestep(config)
    assert found == {name: macs for name, macs in told.items() if name in found}
    products = {name for name in told if name.endswith((".kv", ".qkv"))}
    assert told.keys() - found.keys() == products
    assert total_macs(config) == sum(told.values())


@pytest.mark.parametrize("attention", sorted(PRODUCTS))
def test_energy_counts_added_spikes_and_an_analog_head(attention: str) -> None:
    config = config_of(attention)
    model = lively(config)
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda _m, a, _o, name=name: seen.update({name: a[0]}))
    with EnergyProbe(model, EnergyConfig()) as probe, torch.no_grad():
        model.eval()(images(config, 3))
    report = probe.report()
    counts = seen["block.1.attn.q_conv"]
    assert float(counts.max()) >= 3.0  # counts add up over blocks
    assert report.layer_ops["block.1.attn.q_conv"] == pytest.approx(float(counts.sum()) * 32 / 3)
    assert report.layer_ops["head"] == 4 * 32 * 5
    macs = report.layer_ops["patch_embed.proj_conv"] + report.layer_ops["head"]
    assert report.macs_g == pytest.approx(macs / 1e9)
    wanted = E_MAC_PJ * report.macs_g + E_AC_PJ * report.sops_g
    assert report.energy_mj == pytest.approx(wanted)


def test_backbone_and_attention_must_fit() -> None:
    with pytest.raises(ValidationError, match=r"spikformer: statten or ssa.*attention=sdt"):
        config_of("sdt")
    config = config_of("ssa").model_copy(update={"attention": "sdt"})
    with pytest.raises(ValueError, match=r"ssa.*statten.*backbone=spikformer"):
        build_model(config)


def test_the_table_of_modes_is_what_the_backbones_have() -> None:
    assert sorted(ATTENTION_OF["sdt"]) == sorted(ATTENTION_MODES)
    assert sorted(ATTENTION_OF["spikformer"]) == sorted(PRODUCTS)
