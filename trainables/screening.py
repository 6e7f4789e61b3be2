"""A score of a network before it is trained: how differently its samples make it spike.

Shapes: T timesteps, B batch, C channels, H W image, M neurons and timesteps of a layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trainables.config import TrialConfig
from trainables.data import load_data
from trainables.model import build_model
from trainables.model.neurons import SpikingNeuron

NUM_SAMPLES = 32
RIDGE = 1e-6  # on the kernel's diagonal: a network that ignores its input scores low, not -inf

Similarity = Callable[[torch.Tensor], torch.Tensor]


def hamming(spikes_BM: torch.Tensor) -> torch.Tensor:
    """In how many neurons and timesteps two samples' spikes agree, `[B,B]`.

    Source: Mellor et al., Neural architecture search without training, ICML 2021, equation 2.
    """
    return spikes_BM.shape[1] - _distance(spikes_BM)


def sparsity_aware(spikes_BM: torch.Tensor) -> torch.Tensor:
    """Agreement beyond that of unrelated spikes at the same firing rates, `[B,B]`.

    M for equal samples, 0 for samples that differ as much as unrelated ones do; without it sparse
    layers look alike for any two samples. Layers without spikes agree.

    Source: Kim et al., Neural architecture search for spiking neural networks, ECCV 2022, equation
    8. Differs by rates over all timesteps together, not at each.
    """
    num = spikes_BM.shape[1]
    rate_B = spikes_BM.mean(dim=1)
    chance_BB = rate_B[:, None] * (1.0 - rate_B) + (1.0 - rate_B)[:, None] * rate_B
    return num - _distance(spikes_BM) / chance_BB.clamp(min=1e-6)


def _distance(spikes_BM: torch.Tensor) -> torch.Tensor:
    """In how many neurons and timesteps two samples' spikes differ, `[B,B]`."""
    common_BB = spikes_BM @ spikes_BM.T
    count_B = common_BB.diagonal()
    return count_B[:, None] + count_B - 2.0 * common_BB


@contextmanager
def seen_spikes(model: nn.Module, see: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Show every neuron layer's spikes `[T,B,...]` as they are fired."""

    def hook(_: nn.Module, _args: tuple[Any, ...], spikes: torch.Tensor) -> None:
        see(spikes)

    neurons = (module for module in model.modules() if isinstance(module, SpikingNeuron))
    handles = [neuron.register_forward_hook(hook) for neuron in neurons]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def pattern_kernel(
    model: nn.Module, inputs: torch.Tensor, similarity: Similarity = sparsity_aware
) -> torch.Tensor:
    """Mean over neuron layers of how alike samples' spikes are, `[B,B]`, float64."""
    kernels: list[torch.Tensor] = []

    def compare(spikes: torch.Tensor) -> None:
        kernels.append(similarity(spikes.transpose(0, 1).flatten(1)).double())

    with seen_spikes(model, compare):
        model(inputs)
    return torch.stack(kernels).mean(dim=0)


def log_determinant(kernel_BB: torch.Tensor) -> float:
    """Logarithm of a kernel's volume: the larger, the more the samples differ."""
    ridged = kernel_BB + RIDGE * torch.eye(len(kernel_BB), dtype=kernel_BB.dtype)
    return float(torch.linalg.slogdet(ridged).logabsdet)


def spike_diversity(
    config: TrialConfig, seed: int, similarity: Similarity = sparsity_aware
) -> float:
    """Score a configuration's network as it is initialised; higher promises more accuracy.

    Training samples pass once, on the CPU and in one thread, batch norm using their statistics:
    at its initial ones deep layers would be silent. Nothing is trained, and torch's global
    randomness is left as it was; the same arguments give the same score.

    Args:
        config: the trial.
        seed: of the weights and of the choice of samples.
        similarity: of samples by a layer's spikes `[B,M]` to `[B,B]`.

    Raises:
        InputError: the data are missing or do not fit the network.
        TrialFailedError: a sample cannot be read.
        RuntimeError: memory does not suffice.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over more threads round otherwise
    try:
        with torch.random.fork_rng(devices=()), torch.no_grad():
            torch.manual_seed(seed)
            model = _calibrated(build_model(config.model))
            return log_determinant(pattern_kernel(model, _samples(config, seed), similarity))
    finally:
        torch.set_num_threads(num_threads)


def _calibrated(model: nn.Module) -> nn.Module:
    """The network in evaluation, without drop path, but with batch norm of the batch it sees."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    return model


def _samples(config: TrialConfig, seed: int) -> torch.Tensor:
    """Some training samples as the network takes them, not augmented."""
    split = load_data(config.data, config.model).train
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    inputs, _ = split.batch(order[: min(NUM_SAMPLES, len(split))], torch.device("cpu"))
    return inputs
