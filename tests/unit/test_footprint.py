"""Peak memory counted from a configuration: what it must grow with, and that of a measured one."""

import subprocess
import sys
from typing import Any

import pytest

from trainables.config import TrialConfig
from trainables.footprint import predicted_memory


def likely_mib(model: dict[str, Any] | None = None, **train: Any) -> float:
    network = {"width": 128, "depth": 2, "timesteps": 4, "heads": 4, "image_size": 16}
    network |= model or {}
    train = {"batch_size": 64, "eval_batch_size": 64, "neuron_backend": "cpp"} | train
    config = TrialConfig.model_validate({"model": network, "train": train})
    found = predicted_memory(config, "cpu")
    assert found.safe_mib > found.likely_mib
    return found.likely_mib


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize(
    "larger",
    [
        {"width": 256}, {"depth": 3}, {"timesteps": 8}, {"image_size": 32},
        {"mlp_ratio": 8},
    ],
    ids=lambda larger: next(iter(larger)),
)  # fmt: skip
def test_a_larger_network_takes_more(backend: str, larger: dict[str, Any]) -> None:
    assert likely_mib(larger, neuron_backend=backend) > likely_mib(neuron_backend=backend)


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize(
    "more",
    [{"batch_size": 128}, {"ema_decay": 0.999}, {"eval_batch_size": 4096}],
    ids=lambda more: next(iter(more)),
)
def test_larger_batches_and_averages_take_more(backend: str, more: dict[str, Any]) -> None:
    assert likely_mib(neuron_backend=backend, **more) > likely_mib(neuron_backend=backend)


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize(
    "less",
    [{"recompute": True}, {"accumulate": 2}, {"precision": "bf16"}],
    ids=lambda less: next(iter(less)),
)
def test_what_saves_memory_is_seen(backend: str, less: dict[str, Any]) -> None:
    assert likely_mib(neuron_backend=backend, **less) < likely_mib(neuron_backend=backend)


def test_our_kernels_take_less_than_plain_torch() -> None:
    assert likely_mib() < 0.5 * likely_mib(neuron_backend="torch")
    assert likely_mib(neuron_backend="auto") == likely_mib()
    assert likely_mib(neuron_backend="auto", compile=True) == likely_mib(neuron_backend="torch")


def test_it_needs_no_torch() -> None:
    program = "import sys, trainables.footprint; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
