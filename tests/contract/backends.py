"""Networks computed by a backend, for the suites that hold backends to the same results."""

import pytest
import torch
from emulation import EmulatedLoader
from torch import nn

from trainables.config import TrainConfig
from trainables.model import compiled
from trainables.model.backends import Backed
from trainables.model.engines import ENGINES
from trainables.model.launched import Launched
from trainables.model.selection import BACKENDS, use_backend
from trainables.model.spikes import SpikeTensor

# `cuda-emulated` is the backend of GPUs with its kernels' threads run one after the other.
KERNELS = ("cpp", "cuda-emulated")
CPU_BACKENDS = ("torch", *KERNELS)
CPU = torch.device("cpu")
_ENGINES = {"cpp": ENGINES["cpu"], "cuda-emulated": Launched(EmulatedLoader())}


def use_kernels(name: str) -> None:
    """Let tensors of the CPU be computed by these kernels, until the next call."""
    if name in KERNELS and compiled.compiler() is None:
        pytest.skip("no C++ compiler")  # torch computes there, which other tests cover
    ENGINES["cpu"] = _ENGINES.get(name, _ENGINES["cpp"])


def computed_by(backend: str, model: nn.Module) -> nn.Module:
    """The network, on a backend that this machine has; the test skips where it has not."""
    use_kernels(backend)
    if backend == "cuda-emulated":
        emulated = BACKENDS["cuda"]()
        for module in model.modules():
            if isinstance(module, Backed):
                module.backend = emulated
        return model
    train = TrainConfig.model_validate({"neuron_backend": backend})
    assert use_backend(model, train, CPU) == backend
    return model


def gradient(x: torch.Tensor) -> torch.Tensor:
    """What has been propagated back to a tensor."""
    assert x.grad is not None
    return x.grad


def stood_for(spikes: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """What a backend's spikes stand for."""
    assert isinstance(spikes, SpikeTensor)
    return spikes.dense(dtype)
