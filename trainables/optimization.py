"""Optimisation steps: optimiser, precision, accumulation, data parallel, averaged weights.

Shapes: T timesteps, B batch, C channels, H W image, K classes.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from trainables.config import TrainConfig
from trainables.errors import TrialFailedError
from trainables.losses import LOSSES
from trainables.parallel import World, average_buffers, distributed
from trainables.scoring import autocast, wide


class Optimization:
    """Improves one network batch by batch.

    Attributes:
        optimizer: AdamW or LAMB.
        scaler: gradient scaler; does nothing but in fp16.
        num_steps: steps taken.
    """

    def __init__(
        self, model: nn.Module, train: TrainConfig, device: torch.device, world: World
    ) -> None:
        """Wrap the network as the configuration says; its state-dict keys do not change.

        Args:
            model: the network, on its device.
            train: what is asked for.
            device: where it is.
            world: the processes that train it.
        """
        self._model = model
        self._train = train
        self._device = device
        self._world = world
        if train.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._wrapped = distributed(model, world, device, sync_batchnorm=train.sync_batchnorm)
        self._forward = (
            torch.compile(self._wrapped, dynamic=False) if train.compile else self._wrapped
        )
        self.optimizer = make_optimizer(model, train)
        self.scaler = GradScaler(device.type, enabled=train.precision == "fp16")
        self._ema = _average(model, train)
        self.num_steps = 0

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate: the average where there is one."""
        return self._model if self._ema is None else self._ema.module

    @property
    def average(self) -> Mapping[str, torch.Tensor] | None:
        """State dict of the averaged network; None without averaging."""
        return None if self._ema is None else self._ema.module.state_dict()

    def restore(
        self,
        optimizer: Mapping[str, Any],
        scaler: Mapping[str, Any],
        average: Mapping[str, torch.Tensor] | None,
        num_steps: int,
    ) -> None:
        """Continue after `num_steps` steps; the network's own weights are the caller's."""
        self.optimizer.load_state_dict(dict(optimizer))
        if scaler:
            self.scaler.load_state_dict(dict(scaler))
        if self._ema is not None and average is not None:
            self._ema.module.load_state_dict(dict(average))
        self.num_steps = num_steps

    def set_rate(self, rate: float) -> None:
        """Learning rate of the steps to come."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def step(self, inputs: torch.Tensor, target: torch.Tensor, share: float) -> torch.Tensor:
        """Take one step.

        Args:
            inputs: this process's images `[B,C,H,W]` or frames `[B,T,C,H,W]`.
            target: class indices `[B]` or soft labels `[B,K]`.
            share: this process's part of the step's samples, times the number of processes.

        Returns:
            This process's mean loss times `share`; detached.

        Raises:
            TrialFailedError: the network cannot be compiled (`compile_failed`).
        """
        if self._train.channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        parts = list(
            zip(
                inputs.chunk(self._train.accumulate),
                target.chunk(self._train.accumulate),
                strict=True,
            )
        )
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for number, (x, y) in enumerate(parts, start=1):
            with self._gradients_kept(is_last=number == len(parts)):
                loss = self._loss(x, y) * (share * len(x) / len(inputs))
                self.scaler.scale(loss).backward()
            total = total + loss.detach()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.num_steps += 1
        if self._ema is not None:
            self._ema.update(self._model, step=self.num_steps)
        return total

    def end_epoch(self) -> None:
        """Let all processes have the same running statistics."""
        if not self._train.sync_batchnorm:
            average_buffers(self._model, self._world)
            if self._ema is not None:
                average_buffers(self._ema.module, self._world)

    def _loss(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with autocast(self._device, self._train.precision):
            logits_TBK = self._compiled_forward(x) if self._train.compile else self._forward(x)
        return LOSSES[self._train.loss](wide(logits_TBK), target, self._train)

    def _compiled_forward(self, x: torch.Tensor) -> torch.Tensor:
        from torch._dynamo.exc import TorchDynamoException  # importing it takes a second

        try:
            return torch.as_tensor(self._forward(x))
        except TorchDynamoException as error:
            raise TrialFailedError(
                "compile_failed",
                f"torch.compile failed ({str(error).splitlines()[0]}); set train.compile: false",
            ) from error

    def _gradients_kept(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Let processes exchange gradients once a step, with its last part."""
        if isinstance(self._wrapped, DistributedDataParallel) and not is_last:
            return self._wrapped.no_sync()
        return nullcontext()


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser a configuration names; weights decay, biases and 1-D parameters do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[train.optimizer](groups, train.lr)


def _adamw(groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    # A CPU's loop makes a dozen passes a parameter; a GPU's default is few calls already. The one
    # call pairs values as they lie in memory, which a checkpoint's may do in another order.
    parameters = [p for group in groups for p in group["params"]]
    is_fused = all(p.device.type == "cpu" and p.is_contiguous() for p in parameters)
    return torch.optim.AdamW(groups, lr=rate, fused=is_fused or None)


def _lamb(groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    from timm.optim.lamb import Lamb  # importing timm takes seconds

    lamb: torch.optim.Optimizer = Lamb(groups, lr=rate)
    return lamb


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "lamb": _lamb,
}


def _average(model: nn.Module, train: TrainConfig) -> Any:
    """Exponential moving average of weights and statistics by timm, or None.

    Its warm-up keeps the first epochs' average from being the initial weights.
    """
    if train.ema_decay == 0.0:
        return None
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(model, decay=train.ema_decay, use_warmup=True)
