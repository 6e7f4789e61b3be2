"""Which neuron backend a network computes with."""

import logging
from collections.abc import Callable, Mapping

import torch
from torch import nn

from trainables.config import TrainConfig
from trainables.model import compiled
from trainables.model.backend_cpp import CppBackend
from trainables.model.backends import TORCH, Backed, TorchBackend

log = logging.getLogger(__name__)

BACKENDS: Mapping[str, Callable[[], TorchBackend]] = {
    "torch": lambda: TORCH,
    "cpp": CppBackend,
}


def pick_backend(train: TrainConfig, device: torch.device) -> str:
    """The backend that a trial gets on a device: torch where another cannot run.

    Raises:
        ValueError: the name is unknown; the message lists the valid ones.
    """
    name = train.neuron_backend
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"neuron_backend must be auto or {sorted(BACKENDS)}, but got {name!r}")
    if name == "torch" or train.compile:
        return "torch"
    if device.type != "cpu":
        if name == "cpp":
            log.warning("neuron_backend cpp does not run on %s, torch is used", device.type)
        return "torch"
    return "cpp" if compiled.available() else "torch"


def use_backend(model: nn.Module, train: TrainConfig, device: torch.device) -> str:
    """Let a network compute with a backend; parameters and state-dict keys stay.

    Returns:
        The backend's name, as `pick_backend` has it.
    """
    picked = pick_backend(train, device)
    backend = BACKENDS[picked]()
    for module in model.modules():
        if isinstance(module, Backed):
            module.backend = backend
    return picked
