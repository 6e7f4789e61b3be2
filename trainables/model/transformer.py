"""The STAtten-SDT network: patch embedding, blocks, head.

Shapes: T timesteps, B batch, C channels, D width, H W image, K classes.
"""

from typing import ClassVar

import torch
from torch import nn

from trainables.config import ModelConfig
from trainables.model.backends import Backed, grid_mean
from trainables.model.block import Block
from trainables.model.embedding import PatchEmbedding, as_frames
from trainables.model.neurons import make_neuron
from trainables.model.recompute import Stack
from trainables.model.spikformer import Spikformer


class SpikingTransformer(Backed):
    """Spike-driven transformer with a choice of spike attention.

    Source: Yao et al., NeurIPS 2023; Lee et al., CVPR 2025. Differs from the reference by applying
    drop path and by PLIF neurons everywhere when asked for. State-dict keys are the reference's.

    Attributes:
        analog_layers: layers whose input is not spikes: the image.
    """

    analog_layers: ClassVar[frozenset[str]] = frozenset({"patch_embed.proj_conv"})

    def __init__(self, config: ModelConfig) -> None:
        """Build and initialise the network of a configuration."""
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config)
        rates = torch.linspace(0.0, config.drop_path, config.depth, device="cpu").tolist()
        self.block = Stack(Block(config, rate) for rate in rates)
        self.head_lif = make_neuron(config.neuron)
        self.head = nn.Linear(config.width, config.num_classes)
        self.apply(_init_weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits a timestep; averaging over T is the caller's.

        Args:
            x: images `[B,C,H,W]`, shown at every timestep, or frames `[B,T,C,H,W]`.

        Returns:
            Logits `[T,B,K]`.

        Raises:
            ValueError: the shape or the number of timesteps does not fit the configuration.
        """
        currents = self.block.through(self.patch_embed(as_frames(x, self.config)))
        pooled_TBD = grid_mean(currents)
        return torch.as_tensor(self.head(self.backend.fire(self.head_lif, pooled_TBD)))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build_model(config: ModelConfig) -> nn.Module:
    """Build the network a configuration describes, freshly initialised from torch's global RNG.

    Raises:
        ValueError: the backbone, attention mode or neuron is unknown.
    """
    if config.backbone not in BACKBONES:
        raise ValueError(
            f"backbone must be one of {sorted(BACKBONES)}, but got {config.backbone!r}"
        )
    return BACKBONES[config.backbone](config)


BACKBONES: dict[str, type[nn.Module]] = {
    "sdt": SpikingTransformer,
    "spikformer": Spikformer,
}
