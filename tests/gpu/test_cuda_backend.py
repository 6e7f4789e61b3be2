"""The CUDA backend on a GPU computes what plain torch and the papers' reference do."""

import copy
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backends import gradient, stood_for
from golden_cases import golden_module, model_config
from test_backends import CASES, assert_equal, inputs, network, outcome
from test_fused import layouts
from torch import nn
from torch.nn import functional as nnf

from trainables.config import ModelConfig, TrainConfig
from trainables.losses import LOSSES
from trainables.memory import peak_memory_mib, reset_peak_memory
from trainables.model import build_model, launched
from trainables.model.fused import Firing, fire, normalise, pool, statistics
from trainables.model.launched import HEADER
from trainables.model.neurons import make_neuron
from trainables.model.selection import pick_backend, use_backend
from trainables.model.spikes import SpikeTensor
from trainables.optimization import Optimization
from trainables.parallel import ALONE

GPU = torch.device("cuda")
GOLDEN = golden_module()
BACKENDS = ("torch", "cuda")
HALVES = (torch.float16, torch.bfloat16)


def computed_by(backend: str, model: nn.Module) -> nn.Module:
    model.to(GPU)
    train = TrainConfig.model_validate({"neuron_backend": backend})
    assert use_backend(model, train, GPU) == backend
    return model


def test_auto_is_cuda_here() -> None:
    assert pick_backend(TrainConfig(), GPU) == "cuda"


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("case", sorted(CASES))
def test_a_step_is_plain_torchs(case: str, train: bool) -> None:
    x = inputs(case).to(GPU)
    wanted, found = (outcome(computed_by(b, network(case)), x, train=train) for b in BACKENDS)
    assert_equal(found, wanted)


@pytest.mark.skipif(GOLDEN is None, reason="no golden results beside the project")
@pytest.mark.parametrize("name", GOLDEN.cases() if GOLDEN else [])
def test_logits_loss_and_gradients_equal_the_reference(name: str) -> None:
    assert GOLDEN is not None
    case = GOLDEN.load(name)
    model = build_model(model_config(case.config)).double()
    model.load_state_dict({k: torch.from_numpy(np.asarray(v)) for k, v in case.state_dict.items()})
    computed_by("cuda", model)
    x = torch.from_numpy(case.input).double().to(GPU)
    target = torch.from_numpy(case.target).long().to(GPU)
    tet = case.config["tet"]
    train = TrainConfig(loss="tet" if tet else "ce", label_smoothing=0.0)
    with torch.no_grad():
        logits = model.eval()(x).cpu()
    train_logits = model.train()(x)
    loss = LOSSES[train.loss](train_logits, target, train)
    loss.backward()
    seen = train_logits.detach().cpu()
    assert not GOLDEN.check(
        case,
        logits_eval=(logits if tet else logits.mean(0)).numpy(),
        logits_train=(seen if tet else seen.mean(0)).numpy(),
        loss=loss.item(),
        grads={
            key: None if p.grad is None else p.grad.cpu().numpy()
            for key, p in model.named_parameters()
        },
    )


@pytest.mark.parametrize("layout", ["planes", "channels last", "slice"])
@pytest.mark.parametrize("channels", [1, 5, 600])
@pytest.mark.parametrize("steps", [1, 4, 9, 17, 70])
@pytest.mark.parametrize("kind", ["lif", "plif"])
def test_norm_and_neuron_are_torchs(kind: str, steps: int, channels: int, layout: str) -> None:
    torch.manual_seed(channels)
    norms = [nn.BatchNorm2d(channels).double().to(GPU) for _ in "ab"]
    neurons = [make_neuron(kind, 0.5).double().to(GPU) for _ in "ab"]
    base = torch.randn(steps, 2, channels, 3, 5, dtype=torch.float64, device=GPU) * 2 + 1
    xs = [layouts(base)[layout].detach().requires_grad_() for _ in "ab"]
    grad = torch.randn_like(base)
    plain = neurons[0](norms[0](xs[0].flatten(0, 1)).unflatten(0, (steps, 2)))
    plain.backward(grad)
    stats = statistics(norms[1], xs[1], steps)
    how = Firing(steps, 0.5, 0.5, stats)
    fast = fire(xs[1], norms[1].weight, norms[1].bias, neurons[1].leak, how)
    fast.backward(grad)
    assert torch.equal(stood_for(fast), plain)
    torch.testing.assert_close(xs[1].grad, xs[0].grad, rtol=1e-9, atol=1e-12)
    for mine, theirs in zip(norms[1].parameters(), norms[0].parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-12)
    for mine, theirs in zip(neurons[1].parameters(), neurons[0].parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(norms[1].state_dict(), norms[0].state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("static", [False, True])
def test_neurons_of_half_currents_compute_in_float32(static: bool, precision: torch.dtype) -> None:
    torch.manual_seed(0)
    currents = (torch.randn(1 if static else 4, 3, 64, 9, 9, device=GPU) * 2).to(precision)
    grad = torch.randn(4, 3, 64, 9, 9, device=GPU).to(precision)
    found = []
    for dtype in (precision, torch.float32):
        norm, x = nn.BatchNorm2d(64).to(GPU), currents.to(dtype, copy=True).requires_grad_()
        stats = statistics(norm, x, 4)
        out = fire(x, norm.weight, norm.bias, None, Firing(4, 1.0, 0.5, stats))
        out.backward(grad.to(dtype))
        found.append((stood_for(out, torch.float32), gradient(x).float(), gradient(norm.weight)))
    (half, half_x, half_w), (wide, wide_x, wide_w) = found
    assert torch.equal(half, wide)
    torch.testing.assert_close(half_x, wide_x, rtol=2**-6, atol=2**-8)
    torch.testing.assert_close(half_w, wide_w, rtol=1e-2, atol=1e-1)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [5, 8])
def test_pooling_is_torchs_with_its_ties(channels: int, stride: int) -> None:
    torch.manual_seed(0)
    counts = torch.randint(0, 3, (2, 3, channels, 4, 7), device=GPU).to(torch.uint8)
    norms = [nn.BatchNorm2d(channels).double().to(GPU) for _ in "ab"]
    dense = counts.double().requires_grad_()
    spikes = SpikeTensor(counts, torch.float64).requires_grad_()
    normed = [torch.randn_like(dense).requires_grad_()]
    normed.append(normed[0].detach().clone().requires_grad_())
    plain = [nnf.max_pool2d(x.flatten(0, 1), 3, stride, 1) for x in (dense, norms[0](normed[0][0]))]
    stats = statistics(norms[1], normed[1][:1], 1)
    fast = [
        pool(spikes, stride),
        normalise(normed[1][:1], norms[1].weight, norms[1].bias, stats, stride),
    ]
    for mine, theirs in zip(fast, plain, strict=True):
        grad = torch.randn_like(theirs)
        torch.testing.assert_close((mine * 1.0).reshape(theirs.shape), theirs)
        theirs.backward(grad)
        mine.backward(grad.view(mine.shape))
    torch.testing.assert_close(spikes.grad, dense.grad)
    torch.testing.assert_close(normed[1].grad, normed[0].grad)


def gradients(backend: str, precision: torch.dtype | None) -> torch.Tensor:
    model = computed_by(backend, network("static", depth=1).float()).train()
    x = inputs("static", 8).float().to(GPU)
    with torch.autocast("cuda", dtype=precision, enabled=precision is not None):
        logits = model(x)
    scale = 1024.0  # what a gradient scaler is for
    (scale * nnf.cross_entropy(logits.float().mean(0), torch.arange(8, device=GPU) % 5)).backward()
    found = [p.grad.flatten() / scale for p in model.parameters() if p.grad is not None]
    return torch.cat(found).double().cpu()


@pytest.fixture
def _exact_float32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("_exact_float32")
def test_float32_is_near_float64() -> None:
    model = network("static", depth=1)
    x = inputs("static", 8)
    wide, near = (copy.deepcopy(model).to(dtype) for dtype in (torch.float64, torch.float32))
    exact, found = (
        computed_by("cuda", m).eval()(x.to(GPU, p.dtype)).double()
        for m, p in ((wide, next(wide.parameters())), (near, next(near.parameters())))
    )
    flipped = (exact - found).abs().amax(dim=(0, 2)) > 1e-3
    assert int(flipped.sum()) <= 2  # of 8 samples: one flipped spike goes far


@pytest.mark.usefixtures("_exact_float32")
@pytest.mark.parametrize("precision", HALVES)
def test_halves_are_as_far_from_float32_as_plain_ones_are(precision: torch.dtype) -> None:
    exact = gradients("torch", None)
    near = [gradients(name, precision) for name in BACKENDS]
    plain, fast = (float(nnf.cosine_similarity(found, exact, dim=0)) for found in near)
    assert fast > plain - 0.15  # flipped spikes go far in both


def step(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(5)  # drop path
    nnf.cross_entropy(
        model(x).mean(0), torch.zeros(len(x), dtype=torch.long, device=GPU)
    ).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_a_step_is_the_same_bits_every_time_and_on_every_stream() -> None:
    torch.backends.cudnn.deterministic = True
    model, x = computed_by("cuda", network("plif").float()), inputs("plif").float().to(GPU)
    twins = [copy.deepcopy(model) for _ in "abc"]
    first, second = (step(twin, x) for twin in twins[:2])
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    late = torch.empty_like(x)
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)  # whoever does not wait for this stream sees no input yet
        late.copy_(x)
        third = step(twins[2], late)
    side.synchronize()
    torch.backends.cudnn.deterministic = False
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("case", ["static", "plif", "events", "spikformer", "static sdt"])
def test_a_step_waits_for_nothing(case: str) -> None:
    model, x = computed_by("cuda", network(case).float()), inputs(case).float().to(GPU)
    step(model, x)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_steps_of_training_lower_the_loss(precision: str) -> None:
    torch.manual_seed(0)
    fields = {"width": 64, "heads": 4, "depth": 1, "image_size": 16, "timesteps": 4}
    model = build_model(ModelConfig.model_validate(fields | {"num_classes": 4})).to(GPU)
    train = TrainConfig.model_validate({"precision": precision, "neuron_backend": "cuda"})
    assert use_backend(model, train, GPU) == "cuda"
    model.train()
    optimization = Optimization(model, train, GPU, ALONE)
    optimization.set_rate(3e-3)
    x, y = torch.randn(16, 3, 16, 16, device=GPU), torch.arange(16, device=GPU) % 4
    losses = [float(optimization.step(x, y, 1.0)) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    assert precision != "fp16" or optimization.scaler.get_scale() > 1.0


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_less_memory_is_taken_than_by_torch(precision: str) -> None:
    fields = {"width": 128, "heads": 8, "depth": 2, "image_size": 32, "timesteps": 4}
    peaks = []
    for backend in BACKENDS:
        model = build_model(ModelConfig.model_validate(fields | {"pooling": "0011"})).to(GPU)
        train = TrainConfig.model_validate({"precision": precision, "neuron_backend": backend})
        assert use_backend(model.train(), train, GPU) == backend
        optimization = Optimization(model, train, GPU, ALONE)
        x, y = torch.randn(32, 3, 32, 32, device=GPU), torch.arange(32, device=GPU) % 10
        optimization.step(x, y, 1.0)
        torch.cuda.synchronize()
        reset_peak_memory(GPU)
        optimization.step(x, y, 1.0)
        peaks.append(peak_memory_mib(GPU))
        del model, optimization
    plain, fast = peaks
    assert fast < 0.8 * plain


@pytest.mark.parametrize("kind", ["no CuPy", "broken kernels"])
def test_torch_is_used_where_kernels_cannot_be_had(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "no CuPy":
        monkeypatch.setitem(sys.modules, "cupy", None)
    else:
        for source in launched.SOURCES.glob("*.cu*"):
            (tmp_path / source.name).write_text(f'#include "{HEADER}"\nno C++ at all;\n')
        (tmp_path / HEADER).write_text("")
        monkeypatch.setattr(launched, "SOURCES", tmp_path)
    launched.available.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            picked: list[Any] = [pick_backend(TrainConfig(), GPU) for _ in "ab"]
    finally:
        launched.available.cache_clear()
    assert picked == ["torch", "torch"]
    (line,) = [r.getMessage() for r in caplog.records if "neuron_backend" in r.getMessage()]
    wanted = "CuPy cannot be imported" if kind == "no CuPy" else "cannot be compiled"
    assert wanted in line
