"""Optimisers, precision, accumulation, averaged weights, and resuming all of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from trainables import checkpoint as checkpoints
from trainables.config import TrialConfig, with_overrides
from trainables.loop import TrialRun
from trainables.model.neurons import SpikingNeuron
from trainables.reference import save_reference

BASE = {
    "model": {
        "width": 16, "heads": 2, "depth": 1, "timesteps": 2, "block_size": 2, "image_size": 8,
        "in_channels": 1, "pooling": "0010", "mlp_ratio": 1, "drop_path": 0.2,
    },
    "data": {"shift_px": 1, "val_frac": 0.1, "test_frac": 0.7},
    "train": {
        "epochs": 4, "cooldown_epochs": 1, "warmup_epochs": 1, "batch_size": 100, "lr": 5e-3,
        "warmup_lr": 4e-3, "device": "cpu",
    },
}  # fmt: skip


def config(**train: Any) -> TrialConfig:
    overrides = {f"train.{key}": value for key, value in train.items()}
    return TrialConfig.model_validate(with_overrides(BASE, overrides))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_the_optimiser_is_timms(name: str) -> None:
    run = TrialRun(config(optimizer=name, weight_decay=0.3))
    ours = run.optimization.optimizer
    fused = {"fused": True} if name == "adamw" else {}
    theirs = create_optimizer_v2(run.model, opt=name, lr=5e-3, weight_decay=0.3, **fused)
    assert type(ours) is type(theirs)

    def settings(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
        return {
            id(p): {k: v for k, v in group.items() if k != "params"}
            for group in optimizer.param_groups
            for p in group["params"]
        }

    assert settings(ours) == settings(theirs)
    decayed = [p for g in ours.param_groups if g["weight_decay"] for p in g["params"]]
    assert {p.dim() for p in decayed} == {2, 4}
    assert not any(n.endswith("talking_heads.weight") and p.requires_grad
                   for n, p in run.model.named_parameters())  # fmt: skip


def test_one_call_for_all_parameters_improves_as_a_loop_does() -> None:
    run = TrialRun(config(precision="float64", weight_decay=0.3))
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    twins = [nn.Parameter(p.detach().clone()) for p in parameters]
    ours = run.optimization.optimizer
    pairs = {id(p): twin for p, twin in zip(parameters, twins, strict=True)}
    groups = [g | {"params": [pairs[id(p)] for p in g["params"]]} for g in ours.param_groups]
    theirs = torch.optim.AdamW([g | {"fused": False} for g in groups])
    inputs, labels = run.splits.train.batch(torch.arange(50), run.device)
    for _ in range(3):
        run.optimization.step(inputs.double(), labels, 1.0)
        for p, twin in zip(parameters, twins, strict=True):
            twin.grad = p.grad
        theirs.step()
    for p, twin in zip(parameters, twins, strict=True):
        torch.testing.assert_close(p.detach(), twin.detach(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "train",
    [
        {"optimizer": "lamb"},
        {"mixup": 0.5, "cutmix": 1.0, "mixup_off_epoch": 2},
        {"ema_decay": 0.9},
        {"precision": "bf16"},
        {"precision": "fp16", "lr": 2e-2},
        {"accumulate": 3, "loss": "tet"},
        {"channels_last": True},
        {"start_timesteps": 1},
        {"start_timesteps": 1, "start_frac": 0.3, "ema_decay": 0.9},
        {"optimizer": "lamb", "precision": "fp16", "ema_decay": 0.9, "mixup": 0.5},
    ],
    ids=lambda train: "-".join(map(str, train)),
)
def test_a_resumed_run_is_the_uninterrupted_one(train: dict[str, Any], tmp_path: Path) -> None:
    whole = TrialRun(config(**train))
    reports = [whole.step() for _ in range(3)]
    for stop in (1, 2):
        first = TrialRun(config(**train))
        for _ in range(stop):
            first.step()
        folder = tmp_path / str(stop)
        first.save(folder)
        found = checkpoints.last_good(folder)
        assert found is not None
        torch.rand(7)  # what else a process has drawn must not matter
        resumed = TrialRun(config(**train))
        resumed.restore(found)
        for metrics, rates in reports[stop:]:
            again, rates_again = resumed.step()
            assert {k: v for k, v in again.items() if k in SAME} == {
                k: v for k, v in metrics.items() if k in SAME
            }
            assert rates_again == rates
        assert_same(whole, resumed)


SAME = ("epoch", "train_loss", "val_loss", "val_top1", "val_top5", "energy_mj", "firing_rate")


def assert_same(one: TrialRun, other: TrialRun) -> None:
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    mine, theirs = (run.optimization.optimizer.state_dict() for run in (one, other))
    assert mine["param_groups"] == theirs["param_groups"]
    for index, slots in mine["state"].items():
        for slot, value in slots.items():
            assert torch.equal(
                torch.as_tensor(value), torch.as_tensor(theirs["state"][index][slot])
            )
    assert one.optimization.scaler.state_dict() == other.optimization.scaler.state_dict()
    assert one.optimization.num_steps == other.optimization.num_steps
    if one.optimization.average is not None:
        assert other.optimization.average is not None
        for name, value in one.optimization.average.items():
            assert torch.equal(value, other.optimization.average[name]), name


def test_fp16_scales_its_gradients_and_backs_off() -> None:
    run = TrialRun(config(precision="fp16"))
    run.optimization.scaler.load_state_dict(
        {**run.optimization.scaler.state_dict(), "scale": 2.0**40}
    )
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    inputs, labels = run.splits.train.batch(torch.arange(64), run.device)
    run.optimization.step(inputs, labels, 1.0)
    assert run.optimization.scaler.get_scale() == 2.0**39
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_membrane_potentials_stay_float32(precision: str) -> None:
    run = TrialRun(config(precision=precision))
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    for module in run.model.modules():
        if isinstance(module, SpikingNeuron):
            module.register_forward_hook(
                lambda _m, args, out: seen.append((args[0].dtype, out.dtype))
            )
    inputs, labels = run.splits.train.batch(torch.arange(32), run.device)
    run.optimization.step(inputs, labels, 1.0)
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    assert half in {x for x, _ in seen}  # the convolutions did compute in half precision
    assert {out for _, out in seen} == {torch.float32}


def test_parts_of_a_batch_give_the_gradient_of_the_whole() -> None:
    def gradients(**train: Any) -> dict[str, torch.Tensor]:
        run = TrialRun(config(precision="float64", **train))
        # running statistics: batch norm of a part is of that part
        run.model.eval()
        inputs, labels = run.splits.train.batch(torch.arange(50), run.device)
        run.optimization.step(inputs.double(), labels, 1.0)
        return {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None}

    whole, parts = gradients(), gradients(accumulate=4)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-9, atol=1e-12)


def test_the_average_is_what_is_evaluated_and_exported(tmp_path: Path) -> None:
    plain, averaged = TrialRun(config()), TrialRun(config(ema_decay=0.5))
    for run in (plain, averaged):
        for _ in range(3):
            metrics, _ = run.step()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, averaged.model.state_dict()[name])  # training is the same
    assert plain.metrics["val_loss"] != metrics["val_loss"]
    saved = checkpoints.load(averaged.save(tmp_path))
    assert saved.average is not None
    twin = TrialRun(config())
    twin.model.load_state_dict(dict(saved.evaluated))
    assert twin.evaluate(twin.splits.val).loss == metrics["val_loss"]
    save_reference(tmp_path / "theirs.pth.tar", saved)
    content = torch.load(tmp_path / "theirs.pth.tar", weights_only=False)
    assert torch.equal(content["state_dict_ema"]["head.weight"], saved.average["head.weight"])


def test_channels_last_lays_out_weights_and_images() -> None:
    run = TrialRun(config(channels_last=True))
    convolutions = [m for m in run.model.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)
    seen: list[bool] = []
    run.model.register_forward_pre_hook(
        lambda _m, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    inputs, labels = run.splits.train.batch(torch.arange(8), run.device)
    run.optimization.step(inputs.expand(-1, 1, -1, -1), labels, 1.0)
    assert seen == [True]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own doings
def test_a_compiled_network_trains_as_the_plain_one() -> None:
    plain, compiled = TrialRun(config()), TrialRun(config(compile=True))
    for run in (plain, compiled):
        run.step()
    assert compiled.metrics["train_loss"] == pytest.approx(plain.metrics["train_loss"], rel=1e-3)
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
