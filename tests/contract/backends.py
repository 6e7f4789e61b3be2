"""Networks computed by a backend, for the suites that hold backends to the same results."""

import pytest
import torch
from torch import nn

from trainables.config import TrainConfig
from trainables.model import compiled
from trainables.model.selection import use_backend

CPU_BACKENDS = ("torch", "cpp")
CPU = torch.device("cpu")


def computed_by(backend: str, model: nn.Module) -> nn.Module:
    """The network, on a backend that this machine has; the test skips where it has not."""
    if backend == "cpp" and compiled.compiler() is None:
        pytest.skip("no C++ compiler")
    train = TrainConfig.model_validate({"neuron_backend": backend})
    assert use_backend(model, train, CPU) == backend
    return model
