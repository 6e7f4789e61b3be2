"""Where kernels run: C++ on a CPU's tensors, CUDA on a GPU's; the same names and arguments.

A kernel's first arguments are its rows and channels, and how far apart rows lie where that is not
the number of channels. Sums over rows come in parts, as many as an engine says, and kernels named
`finish_...` add them up.
"""

from typing import Protocol

import torch

from trainables.model.compiled import Compiled
from trainables.model.launched import CupyLoader, Launched

Argument = torch.Tensor | int | float | None


class Engine(Protocol):
    """Runs kernels on the tensors of a device."""

    @property
    def is_dense(self) -> bool:
        """Whether products of spikes are those of floats, in the currents' own dtype."""

    def num_partials(self, rows: int, channels: int) -> tuple[int, int]:
        """In how many parts sums of rows come: a channel's, and those of all channels."""

    def call(self, name: str, dtype: torch.dtype, *arguments: Argument) -> None:
        """Run a kernel of a storage type with tensors, sizes and numbers."""


# By the type of device that tensors are on.
ENGINES: dict[str, Engine] = {"cpu": Compiled(), "cuda": Launched(CupyLoader())}


def engine_of(x: torch.Tensor) -> Engine:
    """The engine of a tensor's device."""
    return ENGINES[x.device.type]
