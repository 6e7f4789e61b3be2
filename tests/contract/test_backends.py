"""Every backend of the CPU computes what plain torch does: the same list for each."""

import copy
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from backends import KERNELS, computed_by, gradient, stood_for, use_kernels
from torch import nn
from torch.nn import functional as nnf

from trainables.config import EnergyConfig, ModelConfig
from trainables.energy import EnergyProbe
from trainables.model import build_model, synapses
from trainables.model.backends import Synapses
from trainables.model.fused import Firing, fire, statistics
from trainables.model.neurons import LIFNeuron
from trainables.model.spikes import SpikeTensor
from trainables.parallel import SyncedBatchNorm2d

SMALL = {
    "width": 48, "heads": 6, "depth": 2, "timesteps": 4, "block_size": 2, "image_size": 12,
    "in_channels": 3, "num_classes": 5, "pooling": "0110", "mlp_ratio": 2,
}  # fmt: skip
EVENTS = {"event_data": True, "in_channels": 2, "pooling": "1001", "block_size": 4}
CASES: dict[str, dict[str, Any]] = {
    "static": {},
    "static sdt": {"attention": "sdt", "mlp_ratio": 1},
    "static ssa": {"attention": "ssa", "width": 32, "heads": 2},
    "one timestep": {"timesteps": 1, "block_size": 1, "pooling": "1111"},
    "plif": {"neuron": "plif", "drop_path": 0.5},
    "events": EVENTS,
    "events sdt": EVENTS | {"attention": "sdt", "timesteps": 7, "block_size": 7},
    "events ssa plif": EVENTS | {"attention": "ssa", "neuron": "plif"},
    "spikformer": {"backbone": "spikformer"},
    "spikformer ssa": {"backbone": "spikformer", "attention": "ssa", "drop_path": 0.3},
    "spikformer events": EVENTS | {"backbone": "spikformer"},
    "columns": {"timesteps": 12, "block_size": 3, "pooling": "0011"},
}
# Every layer adds up rows of weights, or makes dense products, plain or by points, whatever its
# rate and size: the rates above which it does, and how many connections repay points.
PATHS = {"sparse": (1e9, 1e9), "dense": (-1.0, 1e9), "points": (-1.0, 0.0)}
# GPUs make plain dense products always.
WAYS = (("cpp", "sparse"), ("cpp", "dense"), ("cpp", "points"), ("cuda-emulated", "dense"))


def take(path: str, patch: pytest.MonkeyPatch) -> None:
    rate, connections = PATHS[path]
    for name in ("DENSE_RATE", "DENSE_GRADIENT_RATE", "POINTS_RATE"):
        patch.setattr(synapses, name, rate)
    patch.setattr(synapses, "FEW_CONNECTIONS", connections)
    patch.setattr(synapses, "INTEGER_RATE", 1e9)  # `test_integer.py` has them


def network(case: str, **fields: Any) -> nn.Module:
    """A network in float64 whose layers all fire, with running statistics of its own."""
    torch.manual_seed(0)
    model = build_model(ModelConfig.model_validate(SMALL | CASES[case] | fields)).double()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.6)
            nn.init.normal_(module.bias, 0.8 if "attn" in name else 0.3, 0.3)
            nn.init.normal_(module.get_buffer("running_mean"), 0.0, 0.1)
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.1)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.5)
    return model


def inputs(case: str, batch: int = 3) -> torch.Tensor:
    config = ModelConfig.model_validate(SMALL | CASES[case])
    generator = torch.Generator().manual_seed(1)
    if case == "columns":  # frames that are no squares
        return torch.randn(batch, 12, 3, 12, 1, dtype=torch.float64, generator=generator)
    if config.event_data:
        shape = (batch, config.timesteps, 2, 12, 12)
        return torch.randint(0, 4, shape, generator=generator).double()
    return torch.randn(batch, 3, 12, 12, dtype=torch.float64, generator=generator)


def outcome(model: nn.Module, x: torch.Tensor, *, train: bool) -> dict[str, torch.Tensor]:
    """Two accumulated passes: logits, gradients, running statistics."""
    model.train(train)
    torch.manual_seed(5)  # drop path
    found: dict[str, torch.Tensor] = {}
    for number, part in enumerate((x, x.flip(0) * 0.7)):
        logits = model(part)
        target = torch.arange(len(part), device=x.device) % logits.shape[-1]
        nnf.cross_entropy(logits.mean(0), target).backward()
        found[f"logits {number}"] = logits.detach()
    found["random"] = torch.rand(3)
    found |= {f"grad {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found | dict(model.named_buffers())


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        named = partial("{}: {}".format, name)
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10, msg=named)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("backend", "path"), WAYS)
@pytest.mark.parametrize("case", sorted(CASES))
def test_a_step_is_plain_torchs(
    case: str, backend: str, path: str, train: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(path, monkeypatch)
    plain, fast = network(case), network(case)
    computed_by(backend, fast)
    x = inputs(case)
    assert_equal(outcome(fast, x, train=train), outcome(plain, x, train=train))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("case", sorted(CASES))
@torch.no_grad()
def test_the_energy_probe_counts_the_same(case: str, backend: str) -> None:
    reports = []
    for name in ("torch", backend):
        model = computed_by(name, network(case)).eval()
        with EnergyProbe(model, EnergyConfig(first_conv_once=True)) as probe:
            model(inputs(case))
        reports.append(probe.report())
    plain, fast = reports
    assert plain.firing_rate > 0.02
    for name in ("layer_rates", "layer_ops", "layer_mj"):
        assert getattr(fast, name) == pytest.approx(getattr(plain, name), rel=1e-12), name
    assert fast.energy_mj == pytest.approx(plain.energy_mj, rel=1e-12)


@pytest.mark.parametrize("backend", KERNELS)
def test_hooks_see_spikes_and_currents_of_every_layer(backend: str) -> None:
    seen: dict[str, dict[str, torch.Tensor]] = {}
    for each in ("torch", backend):
        model = computed_by(each, network("static")).eval()
        values = seen.setdefault(each, {})
        for name, module in model.named_modules():
            if isinstance(module, LIFNeuron | Synapses):
                module.register_forward_hook(
                    lambda m, args, out, name=name, values=values: values.update(
                        # a fused neuron is given currents as they were before batch norm
                        {f"{name} in": args[0] * 1.0 if isinstance(m, Synapses) else torch.ones(1)}
                        | {f"{name} out": out * 1.0}
                    )
                )
        model(inputs("static"))
    assert seen[backend].keys() == seen["torch"].keys()
    for name, value in seen["torch"].items():
        torch.testing.assert_close(seen[backend][name].reshape(value.shape), value)


@pytest.mark.parametrize("backend", KERNELS)
def test_keys_parameters_and_copies_are_those_of_the_network(backend: str) -> None:
    plain, fast = network("plif"), network("plif")
    computed_by(backend, fast)
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in plain.named_parameters()]
    x = inputs("plif")
    twin = copy.deepcopy(fast).eval()  # as averaged weights are kept
    assert torch.equal(twin(x), fast.eval()(x))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("kind", ["synchronised", "hooked"])
def test_batch_norms_that_are_not_torchs_own_are_asked(kind: str, backend: str) -> None:
    calls: list[str] = []
    plain, fast = network("static"), network("static")
    computed_by(backend, fast)
    for name, module in fast.named_modules():
        if type(module) is nn.BatchNorm2d and kind == "hooked":
            module.register_forward_hook(lambda _m, _a, _o, name=name: calls.append(name))
        elif type(module) is nn.BatchNorm2d:
            module.__class__ = Mine
    Mine.calls.clear()
    x = inputs("static")
    assert_equal(outcome(fast, x, train=True), outcome(plain, x, train=True))
    assert len(calls or Mine.calls) == 2 * (5 + 2 * 6)


class Mine(SyncedBatchNorm2d):
    """Counts its calls; alone, it is an ordinary batch norm."""

    calls: ClassVar[list[int]] = []

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.calls.append(1)
        return nn.BatchNorm2d.forward(self, input)


@pytest.mark.parametrize(("backend", "threads"), [("cpp", 1), ("cpp", 3), ("cuda-emulated", 1)])
def test_a_step_is_the_same_bits_every_time(backend: str, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = computed_by(backend, network("plif")).float()
        found = [outcome(copy.deepcopy(model), inputs("plif").float(), train=True) for _ in "ab"]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def kept_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """What autograd keeps for the backward."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x: torch.Tensor) -> torch.Tensor:
        store = x.counts if isinstance(x, SpikeTensor) else x
        storage = store.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        alive = model(x)
        total = sum(size for at, size in kept.items() if at not in own)
    del alive
    return total


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("case", ["static", "events"])
def test_little_is_kept_for_the_backward(case: str, backend: str) -> None:
    x = inputs(case, batch=4).float()
    plain = kept_bytes(network(case).float(), x)
    fast = kept_bytes(computed_by(backend, network(case).float()), x)
    assert fast < 0.45 * plain


def test_bf16_rounds_operands_and_results_only() -> None:
    torch.manual_seed(0)
    spikes = (torch.rand(2, 3, 24, 5, 6) < 0.2).to(torch.uint8)
    weight = torch.randn(40, 24, 3, 3)
    grad = torch.randn(2, 3, 40, 5, 6).bfloat16()
    rounded = weight.bfloat16().float().requires_grad_()
    dense = spikes.float().requires_grad_()
    wanted = nnf.conv2d(dense.flatten(0, 1), rounded, padding=1).unflatten(0, (2, 3))
    wanted.backward(grad.float())
    for path in PATHS:
        with pytest.MonkeyPatch.context() as patch:
            take(path, patch)
            x = SpikeTensor(spikes, torch.bfloat16).requires_grad_()
            w = weight.clone().requires_grad_()
            out = synapses.convolve(x, w, None, torch.bfloat16)
            out.backward(grad)
        assert out.dtype == gradient(x).dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), wanted.detach(), rtol=2**-8, atol=1e-5)
        torch.testing.assert_close(w.grad, rounded.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient(x).float(), dense.grad, rtol=2**-8, atol=1e-4)


def gradients(backend: str, precision: torch.dtype | None) -> torch.Tensor:
    model = computed_by(backend, network("static", depth=1).float()).train()
    with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
        logits = model(inputs("static", 8).float())
    nnf.cross_entropy(logits.float().mean(0), torch.arange(8) % 5).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("cpp", torch.bfloat16), ("cuda-emulated", torch.bfloat16), ("cuda-emulated", torch.float16)],
)
def test_halves_are_as_far_from_float32_as_plain_ones_are(
    backend: str, precision: torch.dtype
) -> None:
    exact = gradients("torch", None)
    near = [gradients(name, precision) for name in ("torch", backend)]
    plain, fast = (float(nnf.cosine_similarity(found, exact, dim=0)) for found in near)
    assert fast > plain - 0.1  # flipped spikes go far in both
    assert plain > 0.5


def test_a_cpus_fp16_is_left_to_torch() -> None:
    plain, fast = (gradients(name, torch.float16) for name in ("torch", "cpp"))
    # fp16 rounds by 2^-11, on every processor elsewhere; one other spike makes tenths of difference
    assert float((fast - plain).norm()) < 2**-8 * float(plain.norm())


@pytest.mark.parametrize(
    ("kernels", "precision"),
    [("cpp", torch.bfloat16), ("cuda-emulated", torch.bfloat16), ("cuda-emulated", torch.float16)],
)
@pytest.mark.parametrize("static", [False, True])
def test_neurons_of_half_currents_compute_in_float32(
    static: bool, kernels: str, precision: torch.dtype
) -> None:
    use_kernels(kernels)
    torch.manual_seed(0)
    currents = (torch.randn(1 if static else 4, 3, 24, 5, 5) * 2).to(precision)
    grad = torch.randn(4, 3, 24, 5, 5).to(precision)
    found = []
    for dtype in (precision, torch.float32):
        norm, x = nn.BatchNorm2d(24), currents.to(dtype, copy=True).requires_grad_()
        stats = statistics(norm, x, 4)
        out = fire(x, norm.weight, norm.bias, None, Firing(4, 1.0, 0.5, stats))
        out.backward(grad.to(dtype))
        found.append((stood_for(out, torch.float32), gradient(x).float(), gradient(norm.weight)))
    (half, half_x, half_w), (wide, wide_x, wide_w) = found
    assert torch.equal(half, wide)
    torch.testing.assert_close(half_x, wide_x, rtol=2**-6, atol=2**-8)
    torch.testing.assert_close(half_w, wide_w, rtol=1e-2, atol=1e-1)
