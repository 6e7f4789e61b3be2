"""Operation counts against SpikingJelly's, layer by layer, and the papers' budgets."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf
from torch.utils.flop_counter import FlopCounterMode

from trainables.config import EnergyConfig, ModelConfig
from trainables.energy import E_MAC_PJ, EnergyProbe, EnergyReport
from trainables.model import build_model
from trainables.model.embedding import PatchEmbedding
from trainables.model.neurons import make_neuron

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from spikingjelly.activation_based.op_counter import (
        DispatchCounterMode,
        MACCounter,
        SynOpCounter,
    )

BATCH = 2
CASES = [
    (backbone, attention, event)
    for backbone, modes in {
        "sdt": ("statten", "sdt", "ssa"),
        "spikformer": ("statten", "ssa"),
    }.items()
    for attention in modes
    for event in (False, True)
]


class Counted:
    """One evaluation counted by the probe and by SpikingJelly, with every layer's input."""

    def __init__(self, config: ModelConfig) -> None:
        torch.manual_seed(0)
        self.model: Any = build_model(config)
        channels = config.in_channels
        if config.event_data:
            x = torch.randint(0, 5, (BATCH, config.timesteps, channels, 16, 16)).float()
        else:
            x = torch.randn(BATCH, channels, 16, 16)
        self._calibrate(x)
        self.inputs: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        self.modules = dict(self.model.named_modules())
        handles = [
            module.register_forward_hook(self._keeper(name))
            for name, module in self.modules.items()
            if isinstance(module, nn.Conv2d | nn.Linear)
        ]
        with torch.no_grad():
            with EnergyProbe(self.model, EnergyConfig()) as probe:
                self.model(x)
            for handle in handles:
                handle.remove()
            synops, macs = SynOpCounter(), MACCounter()
            with DispatchCounterMode([synops, macs]):
                self.model(x)
        self.report: EnergyReport = probe.report()
        root = f"{type(self.model).__name__}."
        names = [*self.inputs, *(n for n in self.modules if n.endswith("attn.product"))]
        self.synops = {n: sum(synops.records[root + n].values()) for n in names}
        self.macs = {n: sum(macs.records[root + n].values()) for n in names}

    def ours(self, name: str) -> float:
        return self.report.layer_ops[name] * BATCH

    def _keeper(self, name: str):  # type: ignore[no-untyped-def]
        def keep(_module: nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> None:
            self.inputs[name], self.outputs[name] = args[0], out

        return keep

    def _calibrate(self, x: torch.Tensor) -> None:
        """Batch norm statistics of real activations: a fresh network hardly fires."""
        for name, module in self.model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
                nn.init.constant_(module.bias, 1.5 if "attn" in name else 0.5)
        self.model.train()
        with torch.no_grad():
            self.model(x)
        self.model.eval()


@pytest.fixture(scope="module", params=CASES, ids=lambda c: "-".join(map(str, c)))
def counted(request: pytest.FixtureRequest) -> Counted:
    backbone, attention, event = request.param
    return Counted(
        ModelConfig(
            backbone=backbone,
            attention=attention,
            event_data=event,
            in_channels=2 if event else 3,
            width=32,
            heads=4,
            depth=2,
            image_size=16,
            pooling="1100",
        )
    )


def is_spikes(x: torch.Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())


def test_layers_that_see_the_image_are_macs_in_both(counted: Counted) -> None:
    for name in counted.model.analog_layers:
        assert not is_spikes(counted.inputs[name])
        assert counted.synops[name] == 0
        assert counted.ours(name) == pytest.approx(counted.macs[name], rel=1e-12)


def test_pointwise_and_linear_layers_count_the_same(counted: Counted) -> None:
    compared = 0
    for name, x in counted.inputs.items():
        layer = counted.modules[name]
        if name in counted.model.analog_layers or getattr(layer, "padding", None) == (1, 1):
            continue
        assert float(x.sum()) > 0, f"{name} must see spikes to prove anything"
        if is_spikes(x):
            compared += 1
            assert counted.ours(name) == pytest.approx(counted.synops[name], rel=1e-12)
            assert counted.macs[name] == 0
        else:  # SpikingJelly calls it dense MACs; a count of n is n accumulates to us
            dense = counted.outputs[name].numel() * layer.weight[0].numel()
            assert (counted.synops[name], counted.macs[name]) == (0, dense)
            assert counted.ours(name) == pytest.approx(
                float(x.sum(dtype=torch.float64)) * layer.weight.shape[0], rel=1e-12
            )
    assert compared >= 4


def test_only_added_spikes_are_no_spikes(counted: Counted) -> None:
    config = counted.model.config
    mixed = {
        name
        for name, x in counted.inputs.items()
        if name not in counted.model.analog_layers and not is_spikes(x)
    }
    if config.backbone == "spikformer":
        assert mixed == {
            f"block.{i}.{layer}"
            for i in range(2)
            for layer in ("attn.q_conv", "attn.k_conv", "attn.v_conv", "mlp.fc1_conv")
        }
    elif config.attention == "statten" and config.event_data:
        assert mixed == {"block.0.attn.proj_conv", "block.1.attn.proj_conv"}
    else:
        assert not mixed


def test_padded_layers_differ_by_their_borders_only(counted: Counted) -> None:
    for name, x in counted.inputs.items():
        layer = counted.modules[name]
        if name in counted.model.analog_layers or getattr(layer, "padding", None) != (1, 1):
            continue
        reached = nnf.conv2d(x.double(), torch.ones_like(layer.weight[:1]).double(), padding=1)
        exact = float(reached.sum()) * layer.weight.shape[0]
        assert counted.synops[name] == pytest.approx(exact, rel=1e-12)
        dense = float(x.sum(dtype=torch.float64)) * 9 * layer.weight.shape[0]
        assert counted.ours(name) == pytest.approx(dense, rel=1e-12)
        assert 0.6 * dense < exact <= dense


def test_attention_products_count_the_same(counted: Counted) -> None:
    products = [name for name in counted.modules if name.endswith("attn.product")]
    assert len(products) == (0 if counted.model.config.attention == "sdt" else 2)
    for name in products:
        assert counted.synops[name] > 0
        assert counted.macs[name] == 0
        assert counted.ours(name) == pytest.approx(counted.synops[name], rel=1e-12)


def test_totals_are_the_sum_of_layers(counted: Counted) -> None:
    report = counted.report
    analog = sum(report.layer_ops[name] for name in counted.model.analog_layers)
    assert report.macs_g == pytest.approx(analog / 1e9)
    assert report.sops_g == pytest.approx((sum(report.layer_ops.values()) - analog) / 1e9)
    assert report.energy_mj == pytest.approx(sum(report.layer_mj.values()))
    assert report.convention == "first conv T times"


def test_macs_of_imagenet_8_768_are_the_papers_at_dispatch_level() -> None:
    config = ModelConfig(
        depth=8,
        width=768,
        num_classes=1000,
        image_size=224,
        pooling="1111",
        timesteps=1,
        block_size=1,
    )
    with torch.device("meta"):
        model = build_model(config).eval()
        x = torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(x)
    counts = flops.get_flop_counts()
    convolution = torch.ops.aten.convolution

    def giga(name: str) -> float:
        return float(counts[f"SpikingTransformer.{name}"][convolution]) / 2e9

    first = giga("patch_embed.proj_conv")
    assert first == pytest.approx(0.130, abs=5e-4)
    assert giga("patch_embed") - first == pytest.approx(7.28, abs=5e-3)
    assert sum(giga(f"block.{i}") for i in range(8)) == pytest.approx(11.10, abs=5e-3)


class FirstConvolution(nn.Module):
    """The first layer of 8-768, in its place, and a neuron."""

    def __init__(self) -> None:
        super().__init__()
        embedding = PatchEmbedding(ModelConfig(width=768, image_size=224, pooling="1111"))
        self.patch_embed = nn.ModuleDict({"proj_conv": embedding.get_submodule("proj_conv")})
        self.lif = make_neuron("lif")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames = x.expand(4, *x.shape) if x.dim() == 4 else x.transpose(0, 1)
        self.patch_embed["proj_conv"](frames.flatten(0, 1))
        return torch.as_tensor(self.lif(torch.zeros(4, x.shape[0], 10)))


@pytest.mark.parametrize(
    ("once", "shape", "mj", "words"),
    [
        (False, (1, 3, 224, 224), 2.393, "first conv T times"),
        (True, (1, 3, 224, 224), 0.598, "first conv once"),
        (True, (1, 4, 3, 224, 224), 2.393, "first conv T times"),  # four different frames
    ],
)
def test_first_convolution_once_or_t_times(
    once: bool, shape: tuple[int, ...], mj: float, words: str
) -> None:
    model = FirstConvolution().eval()
    with EnergyProbe(model, EnergyConfig(first_conv_once=once)) as probe, torch.no_grad():
        model(torch.zeros(shape))
    report = probe.report()
    assert report.layer_mj["patch_embed.proj_conv"] == pytest.approx(mj, abs=5e-4)
    assert report.macs_g * E_MAC_PJ == pytest.approx(mj, abs=5e-4)
    assert report.convention == words


def test_a_report_needs_a_batch() -> None:
    with (
        pytest.raises(RuntimeError, match="at least one batch"),
        EnergyProbe(nn.Identity(), EnergyConfig()) as probe,
    ):
        probe.report()
