"""Seeded, stratified splits: every decision of a search is made on validation, never on test.

Shapes: N samples, B batch, T timesteps, C channels, H W image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from trainables.errors import InputError

# What turns stored samples into network input, and what alters them in training.
Finish = Callable[[torch.Tensor], torch.Tensor]
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]

# Of a data set that stays on the GPU.
RESIDENT_BYTES = 2**30
MAX_RESIDENT = 2
_RESIDENT: dict[tuple[object, ...], tuple[torch.Tensor, torch.Tensor]] = {}


class Split(Protocol):
    """Labelled samples that are handed out in batches, wherever they are stored."""

    @property
    def labels(self) -> torch.Tensor:
        """Class indices `[N]`, on the CPU."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one input: `(C, H, W)` of images or `(T, C, H, W)` of frames."""

    @property
    def decodes(self) -> bool:
        """Whether a batch is work for the CPU, worth preparing while the network trains."""

    def __len__(self) -> int:
        """Number of samples."""

    def batch(
        self,
        indices: torch.Tensor,
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Some samples as the network takes them.

        Args:
            indices: which samples `[B]`, on the CPU.
            device: where the batch goes.
            generator: the one source of randomness of training augmentation; None for evaluation.

        Returns:
            Normalised float32 inputs `[B,C,H,W]` or `[B,T,C,H,W]`, and labels `[B]`.
        """


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """A split whose samples are one tensor, in memory or mapped from a file.

    Attributes:
        inputs: samples as stored; integers are converted a batch at a time.
        labels: class indices `[N]`.
        finish: makes network input of a stored batch.
        augments: applied in this order in training, after `finish`.
        rows: which `[N]` of the inputs are this split's; all of them unless given.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    finish: Finish = torch.Tensor.float
    augments: tuple[Augment, ...] = ()
    rows: torch.Tensor | None = None

    decodes = False

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.finish(self.inputs[:1]).shape[1:])

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.labels.shape[0])

    def batch(
        self,
        indices: torch.Tensor,
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Some samples as the network takes them; see Split."""
        rows = indices if self.rows is None else self.rows[indices]
        stored = resident(self.inputs, device)
        x = self.finish(stored[rows.to(stored.device)].to(device))
        if generator is not None:
            for augment in self.augments:
                x = augment(x, generator)
        return x, self.labels[indices].to(device)


def resident(inputs: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Samples where they are used: a small set's stay on the GPU, as they are stored.

    All splits and all trials of a process share the copy; there are at most two, as of data sets.
    """
    if device.type == "cpu" or inputs.nbytes > RESIDENT_BYTES:
        return inputs
    key = (inputs.data_ptr(), tuple(inputs.shape), inputs.dtype, device)
    if key not in _RESIDENT:
        while len(_RESIDENT) >= MAX_RESIDENT:
            _RESIDENT.pop(next(iter(_RESIDENT)))
        # the original is kept too: at its address nothing else may come to lie
        _RESIDENT[key] = (inputs, inputs.to(device))
    return _RESIDENT[key][1]


@dataclass(frozen=True)
class DataSplits:
    """Train, validation and test data of one data set."""

    train: Split
    val: Split
    test: Split


def stratified_indices(
    labels: np.ndarray, val_frac: float, test_frac: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split sample indices so that each class keeps its share in every part.

    Args:
        labels: class a sample, `[N]`.
        val_frac: share of all samples for validation.
        test_frac: share of all samples for test.
        seed: the same seed gives the same split on every machine.

    Returns:
        Sorted indices of train, validation and test.

    Raises:
        InputError: a class has too few samples to be in every part.
    """
    rest, test = _held_out(np.arange(len(labels)), labels, test_frac, seed)
    train, val = _held_out(rest, labels, val_frac / (1.0 - test_frac), seed)
    return np.sort(train), np.sort(val), np.sort(test)


def hold_out(
    pool: np.ndarray, labels: np.ndarray, val_frac: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split the training samples of a data set that has its own test samples.

    Args:
        pool: indices of all training samples.
        labels: class of every sample of the data set.
        val_frac: share of the pool for validation.
        seed: the same seed gives the same split on every machine.

    Returns:
        Sorted indices of train and validation.

    Raises:
        InputError: a class has too few samples to be in both parts.
    """
    train, val = _held_out(pool, labels, val_frac, seed)
    return np.sort(train), np.sort(val)


def _held_out(
    pool: np.ndarray, labels: np.ndarray, frac: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    # scikit-learn's train_test_split would do; importing it takes seconds in every worker.
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels[pool], return_counts=True)
    shares = counts * frac
    quota = np.floor(shares).astype(int)
    missing = round(len(pool) * frac) - int(quota.sum())
    quota[np.argsort(quota - shares, kind="stable")[:missing]] += 1  # largest remainders first
    if (quota < 1).any() or (quota >= counts).any():
        raise InputError(
            f"every class must have enough samples to hold {frac:.3g} of them out, "
            f"but got {len(pool)} samples of {len(classes)} classes, the smallest of {counts.min()}"
        )
    held = [
        rng.permutation(pool[labels[pool] == label])[:number]
        for label, number in zip(classes, quota, strict=True)
    ]
    chosen = np.concatenate(held)
    return np.setdiff1d(pool, chosen), chosen
