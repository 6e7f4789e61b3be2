"""Accuracy, loss and energy of a network, batch by batch.

Shapes: T timesteps, B batch, C channels, H W image, K classes.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import nn
from torch.nn import functional as nnf

from trainables.config import EnergyConfig, Precision
from trainables.energy import EnergyProbe, EnergyReport
from trainables.parallel import World

HALF: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and cost of a network on one split.

    Attributes:
        loss: cross-entropy of the time-averaged logits, no smoothing.
        top1: %.
        top5: %.
        energy: firing rates, operations and mJ.
    """

    loss: float
    top1: float
    top5: float
    energy: EnergyReport


class Scorer:
    """Context manager that scores a network in evaluation mode; the mode is restored after."""

    def __init__(self, model: nn.Module, energy: EnergyConfig, precision: Precision) -> None:
        """Keep the network; nothing is hooked before the context is entered."""
        self._model = model
        self._precision = precision
        self._probe = EnergyProbe(model, energy)
        self._was_training = model.training
        self._loss_sum = 0.0
        self._top1, self._top5, self._total = 0, 0, 0

    def __enter__(self) -> Self:
        """Switch to evaluation and hook the network."""
        self._was_training = self._model.training
        self._model.eval()
        self._probe.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks and restore the mode."""
        self._probe.__exit__(kind, error, trace)
        self._model.train(self._was_training)

    @torch.no_grad()
    def add(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Run the network on a batch.

        Args:
            inputs: images `[B,C,H,W]` or frames `[B,T,C,H,W]`.
            labels: class indices `[B]`.
        """
        with autocast(inputs.device, self._precision):
            logits_TBK = self._model(inputs)
        logits_BK = wide(logits_TBK).mean(dim=0)
        self._loss_sum += float(nnf.cross_entropy(logits_BK, labels, reduction="sum"))
        best = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        self._top1 += int(hits[:, 0].sum())
        self._top5 += int(hits.any(dim=1).sum())
        self._total += len(labels)

    def gather(self, world: World) -> None:
        """Add what the other processes scored; all of them must call this."""
        counts = [self._loss_sum, float(self._top1), float(self._top5), float(self._total)]
        loss, top1, top5, total = world.total(torch.tensor(counts, dtype=torch.float64)).tolist()
        self._loss_sum, self._top1, self._top5, self._total = loss, int(top1), int(top5), int(total)
        self._probe.gather(world)

    def result(self) -> Evaluation:
        """Averages over all batches.

        Raises:
            RuntimeError: no batch was added.
        """
        energy = self._probe.report()
        total = self._total
        return Evaluation(
            self._loss_sum / total, 100.0 * self._top1 / total, 100.0 * self._top5 / total, energy
        )


def wide(x: torch.Tensor) -> torch.Tensor:
    """The tensor in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Context in which a network computes in half precision, when it is to."""
    if precision not in HALF:
        return nullcontext()
    return torch.autocast(device.type, dtype=HALF[precision])
