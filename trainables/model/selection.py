"""Which neuron backend a network computes with."""

import logging
from collections.abc import Callable, Mapping

import torch
from torch import nn

from trainables.config import TrainConfig
from trainables.model import compiled, launched
from trainables.model.arena import use_arena
from trainables.model.backend_fused import FusedBackend
from trainables.model.backends import TORCH, Backed, TorchBackend

log = logging.getLogger(__name__)

BACKENDS: Mapping[str, Callable[[], TorchBackend]] = {
    "torch": lambda: TORCH,
    "cpp": lambda: FusedBackend(torch.bfloat16),
    "cuda": lambda: FusedBackend(torch.bfloat16, torch.float16),
}
# The backend of a kind of device.
_OF_DEVICE = {"cpu": "cpp", "cuda": "cuda"}


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
    fitting = _OF_DEVICE.get(device.type, "torch")
    if name not in ("auto", fitting):
        log.warning("neuron_backend %s does not run on %s, torch is used", name, device.type)
        return "torch"
    if fitting == "torch":
        return "torch"
    can_run = compiled.available() if fitting == "cpp" else launched.available(device)
    return fitting if can_run else "torch"


def use_backend(model: nn.Module, train: TrainConfig, device: torch.device) -> str:
    """Let a network compute with a backend; parameters and state-dict keys stay.

    Returns:
        The backend's name, as `pick_backend` has it.
    """
    picked = pick_backend(train, device)
    if picked == "cpp":
        use_arena()
    backend = BACKENDS[picked]()
    for module in model.modules():
        if isinstance(module, Backed):
            module.backend = backend
    return picked
