"""A trained network as MLflow's pyfunc flavour loads it: by this module's name, never unpickled.

Shapes: T timesteps, B batch, C channels, H W image, K classes.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from trainables import checkpoint as checkpoints
from trainables.checkpoint import Checkpoint
from trainables.loop import pick_device
from trainables.model.selection import use_backend
from trainables.model.weights import load_model
from trainables.scoring import autocast, wide

Network = nn.Module  # for annotations where torch is not imported
WEIGHTS = f"network{checkpoints.SUFFIX}"


class ServedNetwork:
    """Answers batches with logits.

    Attributes:
        checkpoint: configuration, weights and versions.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Build the network around its weights, on the device that its configuration asks for."""
        self.checkpoint = checkpoint
        train = checkpoint.config.train
        self._device = pick_device(train)
        self._network = built(checkpoint, self._device)

    @torch.no_grad()
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Logits `[B,K]`, averaged over timesteps.

        Args:
            inputs: normalised images `[B,C,H,W]` or frames `[B,T,C,H,W]`, float32.
        """
        train = self.checkpoint.config.train
        parts = []
        for x in torch.as_tensor(inputs).split(train.eval_batch_size):
            with autocast(self._device, train.precision):
                logits_TBK = self._network(x.to(self._device))
            parts.append(wide(logits_TBK).mean(dim=0).cpu())
        return np.asarray(torch.cat(parts).numpy())


def built(checkpoint: Checkpoint, device: torch.device) -> nn.Module:
    """A checkpoint's network in evaluation mode with the evaluated weights.

    Raises:
        CheckpointError: the weights are of another network.
    """
    network = load_model(checkpoint.config.model, checkpoint.evaluated, device)
    use_backend(network, checkpoint.config.train, device)
    return network


def load_network(path: Path, device: str = "cpu") -> Network:
    """The network of a checkpoint's file in evaluation mode; nothing is unpickled.

    It computes in float32, whatever precision it was trained in.

    Raises:
        CheckpointError: the file is missing, altered or not ours.
    """
    return built(checkpoints.load(path, device), torch.device(device))


def export_network(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write what is served of a checkpoint: the evaluated weights, without the optimiser.

    Raises:
        OSError: the disk is full or read-only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WEIGHTS
    served = Checkpoint(
        config=checkpoint.config,
        epoch=checkpoint.epoch,
        model=checkpoint.evaluated,
        optimizer=None,
        metrics=checkpoint.metrics,
        versions=checkpoint.versions,
    )
    checkpoints.save(path, served)
    return path


def _load_pyfunc(path: str) -> ServedNetwork:
    """Load a folder that `export_network` wrote; MLflow asks for this name.

    Raises:
        CheckpointError: the weights are missing, altered or of another network.
    """
    return ServedNetwork(checkpoints.load(Path(path) / WEIGHTS))
