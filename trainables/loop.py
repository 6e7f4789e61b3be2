"""Training and evaluating one network in plain torch: no Ray, no Optuna, no MLflow.

Shapes: T timesteps, B batch, K classes, N samples.
"""

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from trainables import checkpoint as checkpoints
from trainables.config import TrainConfig, TrialConfig
from trainables.cost import parameter_count
from trainables.data import DataSplits, Split, check_data
from trainables.data.feeding import feed
from trainables.errors import CheckpointError, TrialFailedError
from trainables.losses import LOSSES
from trainables.model import build_model
from trainables.scoring import Evaluation, Scorer, autocast

MIB = 2**20


def learning_rate(train: TrainConfig, epoch: int) -> float:
    """Rate of an epoch (0 for the first): linear warm-up, cosine, then the minimum.

    Source: timm's cosine schedule without warm-up prefix, per epoch, as the papers' recipes.
    """
    if epoch < train.warmup_epochs:
        return train.warmup_lr + epoch * (train.lr - train.warmup_lr) / train.warmup_epochs
    if epoch >= train.epochs:
        return train.min_lr
    cosine = 0.5 * (1.0 + math.cos(math.pi * epoch / train.epochs))
    return train.min_lr + (train.lr - train.min_lr) * cosine


def pick_device(train: TrainConfig) -> torch.device:
    """CUDA when asked for or, with `auto`, when there is one.

    Raises:
        TrialFailedError: CUDA is asked for and absent.
    """
    if train.device == "cuda" and not torch.cuda.is_available():
        raise TrialFailedError("no_device", "train.device is cuda, but torch finds no CUDA device")
    if train.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(train.device)


class TrialRun:
    """One trial in progress: network, optimiser, data and the number of finished epochs.

    Everything random in an epoch is seeded by (seed, epoch), so a run that is resumed after an
    epoch continues exactly as an uninterrupted one.
    """

    def __init__(self, config: TrialConfig) -> None:
        """Load the data and build the network at its seeded start.

        Raises:
            InputError: the data are missing or do not fit the network.
            TrialFailedError: the device asked for is absent.
        """
        self.config = config
        self.epoch = 0
        self.metrics: Mapping[str, float] = {}
        self.device = pick_device(config.train)
        self.splits: DataSplits = check_data(config)
        torch.manual_seed(config.train.seed)
        self.model: nn.Module = build_model(config.model).to(self.device)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, config.train.weight_decay), lr=config.train.lr
        )
        _reset_peak_memory(self.device)

    def step(self) -> tuple[dict[str, float], dict[str, float]]:
        """Train one epoch, then evaluate on validation.

        Returns:
            The reported metrics, and the firing rate a neuron layer.

        Raises:
            TrialFailedError: the loss became NaN or infinite (`nan_loss`).
        """
        start = time.perf_counter()
        train_loss = self._train_epoch()
        trained_s = time.perf_counter() - start
        val = self.evaluate(self.splits.val)
        if not math.isfinite(val.loss):
            raise TrialFailedError("nan_loss", f"validation loss is {val.loss} at {self.epoch + 1}")
        self.epoch += 1
        self.metrics = {
            "epoch": self.epoch,
            "train_loss": train_loss,
            "val_loss": val.loss,
            "val_top1": val.top1,
            "val_top5": val.top5,
            "energy_mj": val.energy.energy_mj,
            "sops_g": val.energy.sops_g,
            "firing_rate": val.energy.firing_rate,
            "params_m": parameter_count(self.config.model) / 1e6,
            "images_per_s": self._images_an_epoch / trained_s,
            "peak_memory_mib": _peak_memory_mib(self.device),
            "epoch_s": time.perf_counter() - start,
        }
        return dict(self.metrics), val.energy.layer_rates

    def evaluate(self, split: Split) -> Evaluation:
        """Accuracy, loss and energy on a split; the network's mode is restored after."""
        train = self.config.train
        batches = feed(split, torch.arange(len(split)), train.eval_batch_size, self.device)
        with Scorer(self.model, self.config.energy, train.precision) as scorer:
            for inputs, labels in batches:
                scorer.add(inputs, labels)
        return scorer.result()

    def save(self, folder: Path) -> Path:
        """Write the epoch's checkpoint, the best one when it is better, and drop older ones.

        Raises:
            OSError: the disk is full or read-only.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = checkpoints.epoch_path(folder, self.epoch)
        checkpoints.save(path, self._checkpoint())
        if self.metrics.get("val_top1", 0.0) > checkpoints.best_top1(folder):
            checkpoints.mark_best(path)
        checkpoints.prune(folder)
        return path

    def restore(self, state: checkpoints.Checkpoint) -> None:
        """Continue from a checkpoint of the same configuration.

        Raises:
            CheckpointError: it belongs to another configuration.
        """
        if state.config != self.config:
            raise CheckpointError("the checkpoint belongs to another configuration")
        self.model.load_state_dict(dict(state.model))
        if state.optimizer is not None:
            self.optimizer.load_state_dict(dict(state.optimizer))
        self.epoch = state.epoch
        self.metrics = dict(state.metrics)

    @property
    def done(self) -> bool:
        """Whether all epochs are finished."""
        return self.epoch >= self.config.train.total_epochs

    @property
    def num_steps(self) -> int:
        """Optimisation steps taken so far."""
        return self.epoch * (self._images_an_epoch // self.config.train.batch_size)

    @property
    def _images_an_epoch(self) -> int:
        batch = self.config.train.batch_size
        return len(self.splits.train) // batch * batch

    def _checkpoint(self) -> checkpoints.Checkpoint:
        return checkpoints.Checkpoint(
            config=self.config,
            epoch=self.epoch,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            metrics=self.metrics,
            versions=checkpoints.versions(),
        )

    def _train_epoch(self) -> float:
        train = self.config.train
        self.model.train()
        rate = learning_rate(train, self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss_function = LOSSES[train.loss]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        num_batches = 0
        for inputs, labels in self._batches():
            with autocast(self.device, train.precision):
                logits_TBK = self.model(inputs)
            loss = loss_function(logits_TBK.float(), labels, train)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
            num_batches += 1
        mean = float(total) / num_batches
        if not math.isfinite(mean):
            raise TrialFailedError("nan_loss", f"training loss is {mean} at epoch {self.epoch + 1}")
        return mean

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        train = self.config.train
        generator = torch.Generator().manual_seed(_epoch_seed(train.seed, self.epoch))
        torch.manual_seed(_epoch_seed(train.seed, self.epoch))
        order = torch.randperm(len(self.splits.train), generator=generator)
        chosen = order[: self._images_an_epoch]
        yield from feed(self.splits.train, chosen, train.batch_size, self.device, generator)


def _epoch_seed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % 2**63


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay on weights only: none on biases and 1-D parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        # "5" resets the peak of the resident set, so that a reused worker reports its own trial
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return


def _peak_memory_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    try:
        status = Path("/proc/self/status").read_text()
        return float(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
