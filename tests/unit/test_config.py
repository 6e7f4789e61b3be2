"""The configuration: strict, frozen, and without an option that nothing reads."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from trainables.config import ModelConfig, TrialConfig, flatten, with_overrides
from trainables.energy import EnergyProbe
from trainables.loop import TrialRun, learning_rate

TINY = TrialConfig.model_validate(
    {
        "model": {
            "width": 16,
            "heads": 2,
            "depth": 2,
            "timesteps": 2,
            "block_size": 1,
            "image_size": 8,
            "in_channels": 1,
            "pooling": "0010",
            "mlp_ratio": 2,
        },
        "train": {
            "epochs": 3,
            "cooldown_epochs": 1,
            "warmup_epochs": 1,
            "batch_size": 128,
            "lr": 5e-3,
            "warmup_lr": 4e-3,
            "device": "cpu",
        },
    }
)
CHANGES: dict[str, Any] = {
    "model.timesteps": 4,
    "model.depth": 1,
    "model.width": 32,
    "model.heads": 4,
    "model.block_size": 2,
    "model.attention": "sdt",
    "model.mlp_ratio": 3,
    "model.pooling": "0001",
    "model.image_size": 12,
    "model.num_classes": 11,
    "model.neuron": "plif",
    "model.backbone": "spikformer",
    "model.drop_path": 0.5,
    "data.val_frac": 0.3,
    "data.test_frac": 0.3,
    "data.split_seed": 1,
    "data.shift_px": 2,
    "train.epochs": 4,
    "train.batch_size": 64,
    "train.eval_batch_size": 100,
    "train.lr": 2e-3,
    "train.min_lr": 1e-4,
    "train.warmup_lr": 1e-3,
    "train.warmup_epochs": 2,
    "train.cooldown_epochs": 2,
    "train.weight_decay": 0.5,
    "train.optimizer": "lamb",
    "train.loss": "tet",
    "train.mixup": 0.5,
    "train.cutmix": 1.0,
    "train.ema_decay": 0.5,
    "train.accumulate": 2,
    "train.start_timesteps": 1,
    "train.label_smoothing": 0.3,
    "train.precision": "bf16",
    "train.seed": 7,
    "energy.first_conv_once": True,
}
ELSEWHERE = {
    "recipe": "a label",
    "model.in_channels": "the data decide it: check_data refuses another",
    "model.event_data": "the data decide it: check_data refuses another",
    "data.name": "tests/contract/test_datasets.py",
    "data.root": "tests/contract/test_datasets.py",
    "data.hflip": "tests/unit/test_augment.py",
    "data.crop_scale": "tests/unit/test_augment.py",
    "data.randaugment": "tests/unit/test_augment.py",
    "data.dvs_augment": "tests/unit/test_augment.py",
    "data.crop_pct": "tests/contract/test_datasets.py",
    "data.eval_size": "tests/contract/test_datasets.py",
    "train.mixup_prob": "read with mixup, below",
    "train.mixup_switch_prob": "read with mixup, below",
    "train.mixup_off_epoch": "read with mixup, below",
    "train.neuron_backend": "tests/contract/test_backends.py",
    "train.recompute": "tests/contract/test_recompute.py",
    "train.start_frac": "read with start_timesteps, below",
    "train.channels_last": "tests/unit/test_optimization.py",
    "train.compile": "tests/unit/test_optimization.py",
    "train.sync_batchnorm": "tests/contract/test_parallel.py",
    "train.tet_lambda": "read with loss=tet, below",
    "train.tet_mean": "read with loss=tet, below",
    "train.device": "decides where, not what",
}


def changed(config: TrialConfig, **overrides: Any) -> TrialConfig:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return TrialConfig.model_validate(with_overrides(config.model_dump(), dotted))


def fingerprint(config: TrialConfig) -> Iterator[Any]:
    """Everything a short run lets one see."""
    torch.set_num_threads(1)
    run = TrialRun(config)
    batches: list[int] = []
    run.model.register_forward_hook(lambda _m, args, _out: batches.append(len(args[0])))
    yield [learning_rate(config.train, epoch) for epoch in range(config.train.total_epochs)]
    for _ in range(2):
        metrics, rates = run.step()
        yield {k: v for k, v in metrics.items() if k not in ("images_per_s", "epoch_s")} | {
            "peak_memory_mib": 0
        }
        yield rates
    yield batches
    yield {name: x.double().sum().item() for name, x in run.model.state_dict().items()}
    with torch.no_grad(), EnergyProbe(run.model, config.energy) as probe:
        run.model.eval()
        run.model(torch.ones(2, 1, config.model.image_size, config.model.image_size) * 3)
    yield probe.report().energy_mj


@pytest.fixture(scope="module")
def base() -> list[Any]:
    return list(fingerprint(TINY))


def test_every_field_is_looked_at() -> None:
    assert flatten(TINY.model_dump()).keys() == CHANGES.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("key", sorted(CHANGES))
def test_every_field_changes_something(base: list[Any], key: str) -> None:
    overrides = {key: CHANGES[key]}
    if key == "model.block_size":
        overrides["model.timesteps"] = 2
    other = TrialConfig.model_validate(with_overrides(TINY.model_dump(), overrides))
    assert other.config_hash() != TINY.config_hash()
    assert list(fingerprint(other)) != base


@pytest.mark.parametrize("key", ["train.tet_lambda", "train.tet_mean"])
def test_tet_reads_its_settings(key: str) -> None:
    tet = changed(TINY, train__loss="tet", train__epochs=1, train__cooldown_epochs=0)
    other = TrialConfig.model_validate(with_overrides(tet.model_dump(), {key: 0.5}))
    (one, _), (two, _) = (TrialRun(config).step() for config in (tet, other))
    assert one["train_loss"] != two["train_loss"]


@pytest.mark.parametrize(
    ("key", "value"), [("mixup_prob", 0.5), ("mixup_switch_prob", 0.9), ("mixup_off_epoch", 1)]
)
def test_mixing_reads_its_settings(key: str, value: float) -> None:
    mixed = changed(TINY, train__mixup=0.5, train__cutmix=1.0)
    other = changed(mixed, **{f"train__{key}": value})
    assert list(fingerprint(mixed)) != list(fingerprint(other))


def test_fewer_timesteps_at_first_read_how_long() -> None:
    few = changed(TINY, train__start_timesteps=1)
    longer = changed(few, train__start_frac=0.7)
    assert list(fingerprint(few)) != list(fingerprint(longer))


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        ({"start_timesteps": 0}, [4] * 9),
        ({"start_timesteps": 4}, [4] * 9),
        ({"start_timesteps": 2}, [2, 2, 2, 2, 4, 4, 4, 4, 4]),
        ({"start_timesteps": 1}, [1, 1, 2, 2, 4, 4, 4, 4, 4]),
        ({"start_timesteps": 3, "start_frac": 0.25}, [3, 3, 4, 4, 4, 4, 4, 4, 4]),
        ({"start_timesteps": 1, "start_frac": 0.99}, [1, 1, 1, 1, 2, 2, 2, 4, 4]),
        ({"start_timesteps": 1, "start_frac": 0.2}, [1, 4, 4, 4, 4, 4, 4, 4, 4]),
    ],
)
def test_timesteps_double_in_equal_stages(train: dict[str, Any], steps: list[int]) -> None:
    shape = {"epochs": 8, "cooldown_epochs": 1}
    config = TrialConfig.model_validate({"train": shape | train, "model": {"timesteps": 4}})
    assert [config.timesteps_at(epoch) for epoch in range(9)] == steps


def test_the_same_configuration_gives_the_same_run(base: list[Any]) -> None:
    assert list(fingerprint(TINY)) == base


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"model": {"width": 60, "heads": 6}}, "width % 8 == 0"),
        ({"model": {"width": 64, "heads": 6}}, "width % heads == 0"),
        ({"model": {"timesteps": 4, "block_size": 3}}, "timesteps % block_size == 0"),
        ({"model": {"attention": "spiking"}}, "statten"),
        ({"model": {"width": "64"}}, "valid integer"),
        ({"model": {"pooling": "012"}}, "pattern"),
        ({"train": {"lr": float("nan")}}, "finite|greater"),
        ({"train": {"lear": 0.1}}, "not permitted"),
        ({"train": {"start_timesteps": 5}}, "train.start_timesteps <= model.timesteps"),
        ({"train": {"start_frac": 1.0}}, "less than 1"),
        (
            {
                "data": {"name": "seq_cifar10"},
                "model": {"timesteps": 32},
                "train": {"start_timesteps": 16},
            },
            "columns of the image",
        ),
        (
            {
                "data": {"name": "nmnist"},
                "model": {"timesteps": 12, "event_data": True},
                "train": {"start_timesteps": 2},
            },
            "frames are added up, but got 2 and 12",
        ),
        ({"data": {"val_frac": 0.6, "test_frac": 0.4}}, "val_frac"),
    ],
)
def test_what_does_not_fit_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrialConfig.model_validate(tree)


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TINY.model.width = 8  # type: ignore[misc]  # what is tested


def test_block_size_matters_to_statten_only() -> None:
    assert ModelConfig(attention="sdt", timesteps=4, block_size=3).block_size == 3


def test_the_schedule_is_the_papers() -> None:
    train = TINY.train.model_copy(
        update={"lr": 3e-4, "min_lr": 1e-5, "warmup_lr": 1e-6, "warmup_epochs": 20, "epochs": 200}
    )
    assert learning_rate(train, 0) == 1e-6
    assert learning_rate(train, 10) == pytest.approx(1e-6 + 10 * (3e-4 - 1e-6) / 20)
    assert learning_rate(train, 20) == pytest.approx(2.929e-4, rel=1e-4)  # below the peak already
    assert learning_rate(train, 100) == pytest.approx(1e-5 + 0.5 * (3e-4 - 1e-5))
    assert learning_rate(train, 205) == 1e-5
