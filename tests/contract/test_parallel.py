"""Several processes that share a trial do what one does: real processes, gloo, float64."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes

from trainables.config import TrialConfig, with_overrides
from trainables.errors import InputError
from trainables.launch import LOOPBACK
from trainables.loop import TrialRun
from trainables.parallel import World

STATIC = {
    "model": {
        "width": 16, "heads": 2, "depth": 2, "timesteps": 4, "block_size": 2, "image_size": 8,
        "in_channels": 1, "pooling": "0010", "mlp_ratio": 2,
    },
    "train": {
        "epochs": 2, "cooldown_epochs": 0, "warmup_epochs": 0, "batch_size": 1078, "lr": 5e-3,
        "device": "cpu", "precision": "float64", "eval_batch_size": 100,
    },
}  # fmt: skip
EVENTS: dict[str, Any] = {
    "model": {
        "width": 16, "heads": 2, "depth": 1, "timesteps": 4, "block_size": 4, "image_size": 16,
        "in_channels": 2, "pooling": "0011", "mlp_ratio": 1, "event_data": True,
    },
    "data": {"name": "digits_dvs"},
    "train": STATIC["train"],
}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (STATIC, {}),
    "mixed": (STATIC, {"train.mixup": 0.5, "train.cutmix": 1.0, "train.batch_size": 1075}),
    "tet": (STATIC, {"train.loss": "tet", "model.attention": "sdt", "model.neuron": "plif"}),
    "events": (EVENTS, {"train.accumulate": 1}),
}


def in_processes(size: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(world, ...)` returns in each of several new processes."""
    start_processes(_process, (size, folder, work, arguments), nprocs=size, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _process(
    rank: int, size: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import os

    os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    torch.save(work(World(rank, size), *arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()


def first_step(world: World, config: TrialConfig) -> dict[str, Any]:
    run = TrialRun(config, world)
    metrics, rates = run.step()
    return {
        "gradients": {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None},
        "buffers": dict(run.model.named_buffers()),
        "metrics": metrics,
        "rates": rates,
        "num_steps": run.num_steps,
    }


def config_of(case: str) -> TrialConfig:
    tree, overrides = CASES[case]
    return TrialConfig.model_validate(with_overrides(tree, overrides))


def all_steps(world: World) -> dict[str, Any]:
    """Everything that is compared, in one start of the processes: that takes longer than it all."""
    found: dict[str, Any] = {case: first_step(world, config_of(case)) for case in CASES}
    for is_synced in (True, False):
        tree = with_overrides(STATIC, {"train.sync_batchnorm": is_synced})
        found[f"synced={is_synced}"] = own_statistics(world, TrialConfig.model_validate(tree))
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_processes(2, tmp_path_factory.mktemp("shared"), all_steps)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_step_of_one(case: str, shared: list[dict[str, Any]]) -> None:
    alone = first_step(World(), config_of(case))
    assert alone["num_steps"] == 1
    for found in (process[case] for process in shared):
        assert found["gradients"].keys() == alone["gradients"].keys()
        for name, gradient in alone["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-9, atol=1e-12)
        for name, buffer in alone["buffers"].items():
            torch.testing.assert_close(found["buffers"][name], buffer, rtol=1e-9, atol=1e-12)
        for name in ("train_loss", "val_loss", "val_top1", "val_top5", "energy_mj", "firing_rate"):
            assert found["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-9), name
        assert found["rates"] == pytest.approx(alone["rates"], rel=1e-9)


def own_statistics(world: World, config: TrialConfig) -> list[torch.Tensor]:
    run = TrialRun(config, world)
    means: list[torch.Tensor] = []
    layer = next(m for m in run.model.modules() if isinstance(m, nn.BatchNorm2d))
    layer.register_forward_hook(
        lambda module, _args, out: means.append(out.detach().mean()) if module.training else None
    )
    run.step()
    assert layer.running_mean is not None
    return [*means[:1], layer.running_mean]


def test_without_synchronisation_each_process_normalises_its_own_share(
    shared: list[dict[str, Any]],
) -> None:
    (mean_0, running_0), (mean_1, running_1) = (process["synced=False"] for process in shared)
    assert abs(float(mean_0)) < 1e-9  # the mean over its own share is normalised away
    assert abs(float(mean_1)) < 1e-9
    assert torch.equal(running_0, running_1)  # averaged at the epoch's end
    assert abs(float(shared[0]["synced=True"][0])) > 1e-6  # only the mean over both shares is


@pytest.mark.parametrize(("batch", "size"), [(8, 1), (8, 2), (9, 2), (30, 4), (7, 3), (2, 1)])
def test_every_sample_goes_to_one_process_beside_its_mirror(batch: int, size: int) -> None:
    order = torch.randperm(100)[:batch]
    shares = [World(rank, size).share(order) for rank in range(size)]
    assert Counter(torch.cat(shares).tolist()) == Counter(order.tolist())
    mirror = dict(zip(order.tolist(), order.flip(0).tolist(), strict=True))
    for share in shares:
        assert [mirror[i] for i in share.tolist()] == share.flip(0).tolist()


def test_more_processes_than_samples_are_refused() -> None:
    config = TrialConfig.model_validate(with_overrides(STATIC, {"train.batch_size": 4}))
    with pytest.raises(InputError, match="processes must be at most 2"):
        TrialRun(config, World(0, 3))
