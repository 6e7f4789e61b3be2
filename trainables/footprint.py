"""Peak memory of a trial, predicted from its configuration; importable without torch.

On a CPU what a step keeps and works with is counted layer by layer (`footprint_cpu.py`). On a GPU
it is rates: bytes a value of each kind of layer, of which at the peak some are kept and one is
being worked on. `likely_mib` is the best guess, a few percent upwards because too little is worse;
`safe_mib` leans upwards for packing: more memory than that should hardly ever be needed. Letters: D
width, N tokens, T timesteps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal

from trainables.config import TrainConfig, TrialConfig
from trainables.cost import parameter_count
from trainables.data_cards import CARDS
from trainables.footprint_cpu import (
    MIB,
    Holes,
    fused_bytes,
    input_bytes,
    matrix_of,
    stages_of,
    torch_bytes,
)

DeviceType = Literal["cpu", "cuda"]

# A process on a card has code, stacks and handles of CUDA and its libraries there, outside what
# torch allocates: 300 to 600 MiB by card and driver.
CUDA_CONTEXT_MIB = 500.0
# What a trial's worker takes before its first network: Python, torch, Ray and our code, measured
# (358 MiB) without the pages of libraries, which all workers of a machine share.
WORKER_MIB = 384.0
# Workspaces of cuDNN and cuBLAS, which torch's allocator counts.
_CUDA_WORKSPACE_MIB = 256.0
# Small sets stay on the card as they are stored (`data/splits.py`).
_RESIDENT_BYTES = 2**30
# How far upwards `safe_mib` leans. The constant is for a CPU's heap, whose holes differ from run to
# run and which weigh in small networks.
_SAFE_FACTOR = 1.25
_SAFE_MIB: Mapping[DeviceType, float] = {"cpu": 96.0, "cuda": 128.0}
# Of a process on a CPU: code and buffers that its first step brings, timm where weights are
# averaged, and bytes a parameter: weight, gradient, the optimiser's two moments, copies.
_CPU_FIXED_MIB = 73.0
_CPU_AVERAGE_MIB = 40.0
_CPU_PARAMETER = 22.0
# Tensors of our kernels lie in an arena, which takes a few percent more than they do.
_ARENA_HOLES = 1.15
# Of plain torch's heap; fitted to measured peaks (`python -m tests.benchmarks.memory`).
_HEAP_HOLES = Holes(
    train=2.45, evaluate=1.37, layer=1.63, most_layers=2.2, left=1.2, mapped_train=1.3,
    mapped_evaluate=1.05,
)  # fmt: skip


@dataclass(frozen=True)
class Footprint:
    """Memory above a process that has imported everything (on a GPU: above its context).

    Attributes:
        likely_mib: best guess of the peak.
        safe_mib: what to reserve.
    """

    likely_mib: float
    safe_mib: float


@dataclass(frozen=True)
class Rates:
    """Bytes a value of each kind of layer, for a backend and a precision.

    Attributes:
        embedding: kept of a layer of the patch embedding.
        block: kept of a neuron layer of a block.
        pooled: kept of a pooled value of the embedding.
        matrix: kept of a value of a token-by-token attention.
        leak: more for each value where leaks are learnt (PLIF).
        event: kept of a value that is pooled within attention, for event data.
        at_embedding: worked with at a layer of the embedding.
        at_block: worked with at the widest layer of a block.
        eval_embedding: in evaluation, worked with at a layer of the embedding.
        eval_block: likewise at the widest layer of a block.
        eval_matrix: likewise of a token-by-token attention.
        parameter: weights, gradients, the optimiser's state and copies.
        spikformer: factor for the embedding of that backbone, which fires once more.
    """

    embedding: float
    block: float
    pooled: float
    matrix: float
    leak: float
    event: float
    at_embedding: float
    at_block: float
    eval_embedding: float
    eval_block: float
    eval_matrix: float
    parameter: float
    spikformer: float


# By backend and whether products are in half precision.
RATES: Mapping[tuple[str, bool], Rates] = {
    # Not fitted: counted from what the kernels keep. Currents of 4 or 2 bytes and spikes of 1; at
    # work gradients of spikes and currents, and dense copies, in float32 where hooks see them.
    ("cuda", False): Rates(
        5.0, 5.0, 2.0, 8.0, 0.0, 3.0, 20.0, 24.0, 16.0, 20.0, 12.0, 20.0, 1.3,
    ),
    ("cuda", True): Rates(
        3.0, 3.0, 2.0, 6.0, 0.0, 3.0, 16.0, 18.0, 14.0, 18.0, 10.0, 20.0, 1.3,
    ),
    # torch on a GPU: currents, normalised currents, potentials and spikes, each of them dense.
    ("torch on cuda", False): Rates(
        20.0, 20.0, 12.0, 12.0, 8.0, 12.0, 24.0, 28.0, 24.0, 28.0, 12.0, 20.0, 1.3,
    ),
    ("torch on cuda", True): Rates(
        18.0, 18.0, 10.0, 8.0, 8.0, 10.0, 22.0, 26.0, 22.0, 26.0, 10.0, 20.0, 1.3,
    ),
}  # fmt: skip


def predicted_memory(config: TrialConfig, device: DeviceType) -> Footprint:
    """Peak memory of training and evaluating a trial.

    Args:
        config: the trial.
        device: of whose memory.
    """
    likely_mib = _likely_mib(config, device)
    return Footprint(likely_mib, _SAFE_FACTOR * likely_mib + _SAFE_MIB[device])


@lru_cache(maxsize=8192)
def _likely_mib(config: TrialConfig, device: DeviceType) -> float:
    return _on_cpu_mib(config) if device == "cpu" else _on_gpu_mib(config)


def _on_cpu_mib(config: TrialConfig) -> float:
    train = config.train
    stages = stages_of(config.model, is_sequence=CARDS[config.data.name].is_sequence)
    if _is_fused(train, "cpp"):
        peak = _ARENA_HOLES * fused_bytes(config, stages)
    else:
        peak = torch_bytes(config, stages, _HEAP_HOLES)
    if train.precision == "float64":
        peak *= 2.0
    a_parameter = _CPU_PARAMETER + (4.0 if train.ema_decay else 0.0)
    average_mib = _CPU_AVERAGE_MIB if train.ema_decay else 0.0
    return (peak + a_parameter * parameter_count(config.model)) / MIB + _CPU_FIXED_MIB + average_mib


def _on_gpu_mib(config: TrialConfig) -> float:
    train = config.train
    backend = "cuda" if _is_fused(train, "cuda") else "torch on cuda"
    rates = RATES[backend, train.precision in ("bf16", "fp16")]
    peak = max(_training(config, rates), _evaluation(config, rates))
    if train.precision == "float64":
        peak *= 2.0
    average = 4.0 if train.ema_decay else 0.0
    peak += parameter_count(config.model) * (rates.parameter + average)
    return (peak + _resident(config)) / MIB + _CUDA_WORKSPACE_MIB


def _is_fused(train: TrainConfig, backend: str) -> bool:
    return train.neuron_backend in ("auto", backend) and not train.compile


def _training(config: TrialConfig, rates: Rates) -> float:
    """Bytes of a step: what is kept up to each layer, and the work there."""
    model, train = config.model, config.train
    stages, block, matrix = _layers(config)
    frames = model.timesteps * (train.batch_size // train.accumulate)
    leak = rates.leak if model.neuron == "plif" else 0.0
    more = rates.spikformer if model.backbone == "spikformer" else 1.0
    kept = peak = 0.0
    for whole, pooled in stages:
        kept += more * (rates.embedding + leak) * whole + rates.pooled * pooled
        peak = max(peak, kept + more * rates.at_embedding * whole)
    kept += rates.block * block
    a_block = (rates.block + leak) * block * (6 + model.mlp_ratio) + rates.matrix * matrix
    a_block += 4 * rates.event * block if model.event_data else 0.0
    widest = block * max(3, model.mlp_ratio)
    if train.recompute:
        kept += 4 * block * model.depth + a_block
    else:
        kept += a_block * model.depth
    peak = max(peak, kept + rates.at_block * widest) * frames
    return peak + 2 * input_bytes(model) * train.batch_size


def _evaluation(config: TrialConfig, rates: Rates) -> float:
    """Bytes of an evaluation: the work at the layer that needs most."""
    model, batch = config.model, config.train.eval_batch_size
    stages, block, matrix = _layers(config)
    frames = model.timesteps * batch
    more = rates.spikformer if model.backbone == "spikformer" else 1.0
    widest = block * max(3, model.mlp_ratio)
    work = [more * rates.eval_embedding * whole for whole, _ in stages]
    work.append(rates.eval_block * widest + rates.eval_matrix * matrix)
    return max(work) * frames + 2 * input_bytes(model) * batch


def _layers(config: TrialConfig) -> tuple[list[tuple[int, int]], int, int]:
    """Values of a frame in the embedding's stages, in a block, and between its tokens."""
    model = config.model
    is_sequence = CARDS[config.data.name].is_sequence
    *stages, positions = stages_of(model, is_sequence=is_sequence)
    block = positions.whole
    return [(stage.whole, stage.pooled) for stage in stages], block, matrix_of(model, block)


def _resident(config: TrialConfig) -> int:
    """Bytes of the data set that stay on the card."""
    card = CARDS[config.data.name]
    frames = config.model.timesteps if card.is_event else 1
    stored = card.train_samples * prod(card.sample_shape) * frames
    return stored if stored <= _RESIDENT_BYTES else 0
