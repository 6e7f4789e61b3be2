"""Networks around weights that exist already."""

from collections.abc import Mapping

import torch
from torch import nn

from trainables.config import ModelConfig
from trainables.errors import CheckpointError
from trainables.model.transformer import build_model

_MAX_NAMED = 4


def state_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every entry of a network's state dict; nothing is allocated."""
    return {name: tuple(x.shape) for name, x in _skeleton(model).state_dict().items()}


def load_model(
    model: ModelConfig, state: Mapping[str, torch.Tensor], device: torch.device
) -> nn.Module:
    """Build a network in evaluation mode around weights, which are shared where they need no move.

    Raises:
        CheckpointError: the weights are of another network.
    """
    wanted = state_shapes(model)
    found = {name: tuple(x.shape) for name, x in state.items()}
    problems = [
        *(f"lacks {name}" for name in wanted.keys() - found.keys()),
        *(f"has an unknown {name}" for name in found.keys() - wanted.keys()),
        *(
            f"has {name} of shape {found[name]} instead of {wanted[name]}"
            for name in wanted.keys() & found.keys()
            if wanted[name] != found[name]
        ),
    ]
    if problems:
        more = len(problems) - _MAX_NAMED
        named = sorted(problems)[:_MAX_NAMED] + [f"{more} more"] * (more > 0)
        raise CheckpointError(f"the weights must fit the configured network: it {'; '.join(named)}")
    network = _skeleton(model)
    network.load_state_dict({name: x.to(device) for name, x in state.items()}, assign=True)
    return network.eval()


def _skeleton(model: ModelConfig) -> nn.Module:
    with torch.device("meta"):
        return build_model(model)
