"""Training and evaluating one network in plain torch: no Ray, no Optuna, no MLflow.

Shapes: T timesteps, B batch, K classes, N samples.
"""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from trainables import checkpoint as checkpoints
from trainables.config import TrainConfig, TrialConfig
from trainables.cost import parameter_count
from trainables.data import DataSplits, Split, check_data
from trainables.data.feeding import feed
from trainables.errors import CheckpointError, InputError, TrialFailedError
from trainables.memory import peak_memory_mib, reset_peak_memory
from trainables.mixing import mix
from trainables.model import build_model
from trainables.model.arena import trim_arena
from trainables.model.recompute import set_recompute
from trainables.model.selection import use_backend
from trainables.model.timesteps import run_at, shown_in
from trainables.optimization import Optimization
from trainables.parallel import ALONE, World
from trainables.scoring import Evaluation, Scorer


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


def pick_device(train: TrainConfig, index: int = 0) -> torch.device:
    """CUDA when asked for or, with `auto`, when there is one.

    Raises:
        TrialFailedError: CUDA is asked for and absent.
    """
    if train.device == "cuda" and not torch.cuda.is_available():
        raise TrialFailedError("no_device", "train.device is cuda, but torch finds no CUDA device")
    if train.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", index)


class TrialRun:
    """One trial in progress: network, optimiser, data and the number of finished epochs.

    Everything random in an epoch is seeded by (seed, epoch), so a run that is resumed after an
    epoch continues exactly as an uninterrupted one. In a shared world every process has a run; all
    of them must make the same calls.
    """

    def __init__(self, config: TrialConfig, world: World = ALONE) -> None:
        """Load the data and build the network at its seeded start.

        Raises:
            InputError: the data are missing, do not fit the network or are too few for the world.
            TrialFailedError: the device asked for is absent.
        """
        self.config = config
        self.world = world
        self.epoch = 0
        self.timesteps = config.model.timesteps
        self.metrics: Mapping[str, float] = {}
        self.device = pick_device(config.train, world.device_index)
        self.splits: DataSplits = check_data(config)
        _check_share(config, self.splits, world)
        self._dtype = torch.float64 if config.train.precision == "float64" else torch.float32
        torch.manual_seed(config.train.seed)
        self.model: nn.Module = build_model(config.model).to(self.device, self._dtype)
        use_backend(self.model, config.train, self.device)
        set_recompute(self.model, recompute=config.train.recompute)
        self.optimization = Optimization(self.model, config.train, self.device, world)
        trim_arena()  # the trial before may have been larger
        reset_peak_memory(self.device)

    def step(self) -> tuple[dict[str, float], dict[str, float]]:
        """Train one epoch, then evaluate on validation, with the epoch's timesteps.

        Returns:
            The reported metrics, and the firing rate a neuron layer.

        Raises:
            TrialFailedError: the loss became NaN or infinite (`nan_loss`).
        """
        start = time.perf_counter()
        self._run_at(self.config.timesteps_at(self.epoch))
        train_loss = self._train_epoch()
        trained_s = time.perf_counter() - start
        val = self.evaluate(self.splits.val)
        if not math.isfinite(val.loss):
            raise TrialFailedError("nan_loss", f"validation loss is {val.loss} at {self.epoch + 1}")
        self.epoch += 1
        self.metrics = {
            "epoch": self.epoch,
            "timesteps": self.timesteps,
            "train_loss": train_loss,
            "val_loss": val.loss,
            "val_top1": val.top1,
            "val_top5": val.top5,
            "energy_mj": val.energy.energy_mj,
            "sops_g": val.energy.sops_g,
            "firing_rate": val.energy.firing_rate,
            "params_m": parameter_count(self.config.model) / 1e6,
            "images_per_s": self._images_an_epoch / trained_s,
            "peak_memory_mib": peak_memory_mib(self.device),
            "epoch_s": time.perf_counter() - start,
        }
        return dict(self.metrics), val.energy.layer_rates

    def evaluate(self, split: Split) -> Evaluation:
        """Accuracy, loss and energy on a split; the network's mode is restored after."""
        train = self.config.train
        mine = torch.arange(len(split))[self.world.rank :: self.world.size]
        batches = feed(split, mine.split(train.eval_batch_size), self.device)
        with Scorer(self.optimization.evaluated, self.config.energy, train.precision) as scorer:
            for inputs, labels in batches:
                scorer.add(self._input(inputs), labels)
        if self.world.is_shared:
            scorer.gather(self.world)
        return scorer.result()

    def save(self, folder: Path) -> Path:
        """Write the epoch's checkpoint, the best one when it is better, and drop older ones.

        Raises:
            OSError: the disk is full or read-only.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = checkpoints.epoch_path(folder, self.epoch)
        checkpoints.save(path, self._checkpoint())
        is_better = self.metrics.get("val_top1", 0.0) > checkpoints.best_top1(folder)
        if is_better or self._has_new_timesteps:
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
        self.epoch = state.epoch
        if state.optimizer is not None:
            self.optimization.restore(state.optimizer, state.scaler, state.average, self.num_steps)
        self._run_at(self.config.timesteps_at(max(0, self.epoch - 1)))
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

    @property
    def _has_new_timesteps(self) -> bool:
        """Whether earlier epochs' accuracies are of fewer timesteps."""
        at = self.config.timesteps_at
        return self.epoch > 1 and at(self.epoch - 1) != at(self.epoch - 2)

    def _run_at(self, timesteps: int) -> None:
        if timesteps == self.timesteps:
            return
        self.timesteps = timesteps
        for network in (self.model, self.optimization.evaluated):
            run_at(network, self.config.model, timesteps)

    def _input(self, inputs: torch.Tensor) -> torch.Tensor:
        return shown_in(inputs, self.timesteps).to(self._dtype)

    def _checkpoint(self) -> checkpoints.Checkpoint:
        return checkpoints.Checkpoint(
            config=self.config,
            epoch=self.epoch,
            model=self.model.state_dict(),
            optimizer=self.optimization.optimizer.state_dict(),
            metrics=self.metrics,
            versions=checkpoints.versions(),
            scaler=self.optimization.scaler.state_dict(),
            average=self.optimization.average,
        )

    def _train_epoch(self) -> float:
        train = self.config.train
        self.model.train()
        self.optimization.set_rate(learning_rate(train, self.epoch))
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for inputs, target in self._batches():
            share = len(inputs) * self.world.size / train.batch_size
            total += self.optimization.step(inputs, target, share)
        self.optimization.end_epoch()
        num_batches = self._images_an_epoch // train.batch_size
        mean = float(self.world.total(total.cpu())) / (num_batches * self.world.size)
        if not math.isfinite(mean):
            raise TrialFailedError("nan_loss", f"training loss is {mean} at epoch {self.epoch + 1}")
        return mean

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This process's inputs and targets of an epoch, augmented and mixed."""
        train, rank = self.config.train, self.world.rank
        generator = torch.Generator().manual_seed(_epoch_seed(train.seed, self.epoch))
        order = torch.randperm(len(self.splits.train), generator=generator)
        batches = order[: self._images_an_epoch].split(train.batch_size)
        if self.world.is_shared:
            # One order for all, but each process's own augmentation and drop path.
            batches = tuple(self.world.share(batch) for batch in batches)
            generator.manual_seed(_epoch_seed(train.seed, self.epoch, rank))
        torch.manual_seed(_epoch_seed(train.seed, self.epoch, rank))
        mixing = np.random.default_rng([train.seed, self.epoch])
        is_mixed = train.mixes(self.epoch)
        for inputs, labels in feed(self.splits.train, batches, self.device, generator):
            x = self._input(inputs)
            if is_mixed:
                yield mix(x, labels, self.config.model.num_classes, train, mixing)
            else:
                yield x, labels


def _epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    return (seed * 1_000_003 + epoch + rank * 0x9E37_79B9_7F4A_7C15) % 2**63


def _check_share(config: TrialConfig, splits: DataSplits, world: World) -> None:
    smallest = min((config.train.batch_size + 1) // 2, len(splits.val), len(splits.test))
    if world.size > smallest:
        raise InputError(
            f"processes must be at most {smallest} (half of train.batch_size and the samples of "
            f"validation and test), but got {world.size}"
        )
