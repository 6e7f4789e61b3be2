"""Several processes that train one network together: who has which samples, and shared statistics.

torch.distributed must be initialised before a World of more than one process is used.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """The processes that train one network; one alone unless told otherwise.

    Attributes:
        rank: this process, 0 to size - 1; rank 0 reports and writes checkpoints.
        size: how many there are.
        device_index: which of the CUDA devices that this process sees is its own.
    """

    rank: int = 0
    size: int = 1
    device_index: int = 0

    @property
    def is_shared(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of a CPU tensor over all processes, each of which must call this."""
        if not self.is_shared:
            return x
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        summed = x.to(device, copy=True)
        dist.all_reduce(summed)
        return summed.to(x.device)

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """This process's part of a batch's indices `[B]`: every sample goes to exactly one.

        Samples that mirror each other (the first and the last, ...) stay together, so that a batch
        that is mixed with its own reverse is mixed as it would be in one process.
        """
        size = len(batch)
        front = torch.arange((size + 1) // 2)[self.rank :: self.size]
        back = (size - 1 - front).flip(0)
        return batch[torch.cat([front, back[back > front[-1]]])]


ALONE = World()


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the statistics of all processes' samples, as one process would have them.

    Works on every device and in every precision; torch's own works on CUDA only.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalised `[B,C,H,W]`."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes, shape = (0, 2, 3), (1, -1, 1, 1)
        count = all_reduce(x.new_tensor([x.numel() / x.shape[1]]))
        mean = all_reduce(x.sum(axes)) / count
        centred = x - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        shifted = centred * scale.view(shape) + self.bias.view(shape)
        return torch.as_tensor(shifted).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean_C: torch.Tensor, variance_C: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance_C.to(self.running_var.dtype), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def distributed(
    model: nn.Module, world: World, device: torch.device, *, sync_batchnorm: bool
) -> nn.Module:
    """The network as all processes train it: its gradients are averaged over them.

    The network itself keeps its parameters and state-dict keys.
    """
    if not world.is_shared:
        return model
    if sync_batchnorm:
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SyncedBatchNorm2d
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


@torch.no_grad()
def average_buffers(model: nn.Module, world: World) -> None:
    """Give every process the mean of all processes' running statistics.

    They differ where batch norm is not synchronised; timm calls this `dist-bn reduce`.
    """
    if not world.is_shared:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer.mul_(1.0 / world.size)
