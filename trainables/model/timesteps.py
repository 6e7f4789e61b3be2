"""Another number of timesteps for a network's weights, which do not depend on it.

Shapes: T timesteps, B batch, C channels, H W image.
"""

import torch
from torch import nn

from trainables.config import ModelConfig
from trainables.model.attention import BlockProduct


def at_timesteps(model: ModelConfig, timesteps: int) -> tuple[ModelConfig, str]:
    """Configuration of the same weights with fewer timesteps, and how it differs.

    STAtten's blocks must fill the timesteps: where the trained block size does not divide t, the
    largest divisor of t below it is taken. For event data the scale 1/(H^2 c) follows it, which
    keeps the product's size; the scale 1/H of static images does not.

    Raises:
        ValueError: there are fewer than one or more than the trained timesteps.
    """
    if not 1 <= timesteps <= model.timesteps:
        raise ValueError(
            f"`1 <= timesteps <= {model.timesteps}` must hold, but got timesteps={timesteps}"
        )
    block = max(c for c in range(1, model.block_size + 1) if timesteps % c == 0)
    is_blocked = model.attention == "statten"
    fields = model.model_dump() | {"timesteps": timesteps}
    if not is_blocked or block == model.block_size:
        return ModelConfig.model_validate(fields), ""
    scale = f"scale 1/(H^2*{block})" if model.event_data else "same scale 1/H"
    note = f"blocks of {block}, trained with {model.block_size} ({scale})"
    return ModelConfig.model_validate(fields | {"block_size": block}), note


def run_at(network: nn.Module, model: ModelConfig, timesteps: int) -> None:
    """Let a network have so many timesteps from now on; its weights stay where they are.

    Args:
        network: as `build_model` made it, or a copy of that.
        model: its configuration with all timesteps.
        timesteps: how many there shall be.

    Raises:
        ValueError: there are fewer than one or more than the configured timesteps.
    """
    config, _ = at_timesteps(model, timesteps)
    network.config = config  # type: ignore[assignment]  # what its input is checked against
    for module in network.modules():
        if isinstance(module, BlockProduct):
            module.block_size = config.block_size


def shown_in(inputs: torch.Tensor, timesteps: int) -> torch.Tensor:
    """Images as they are, frames with neighbours added up to so many.

    Frames of counts are then those that a recording gives when it is cut into fewer.

    Args:
        inputs: images `[B,C,H,W]` or frames `[B,T,C,H,W]`.
        timesteps: a divisor of T.
    """
    if inputs.dim() == 4 or inputs.shape[1] == timesteps:
        return inputs
    return inputs.unflatten(1, (timesteps, -1)).sum(dim=2)
