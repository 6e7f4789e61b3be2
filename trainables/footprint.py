"""Peak memory of a trial, predicted from its configuration; importable without torch.

What a step keeps for its backward is counted layer by layer in bytes a value: currents, membrane
potentials and spikes, as each backend keeps them. At the peak that of some layers is kept and one
layer is being worked on. `likely_mib` is the best guess, `safe_mib` leans upwards for packing: more
memory than that should hardly ever be needed. Letters: D width, N tokens, T timesteps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal

from trainables.config import ModelConfig, TrainConfig, TrialConfig
from trainables.cost import parameter_count
from trainables.data_cards import CARDS

MIB = 2**20
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
# Pieces up to this size come from the heap, larger ones are mapped and given back whole (glibc).
_HEAP_PIECE = 32 * MIB


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
        heap_train: holes in the heap while training, in pieces of the widest layer's size.
        heap_eval: the same in evaluation.
        fixed_mib: code and buffers that the first step brings.
        average_mib: more where weights are averaged: timm is imported.
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
    heap_train: float
    heap_eval: float
    fixed_mib: float
    average_mib: float


# By backend and whether products are in half precision. The CPU's are fitted to measured peaks
# (`python -m tests.benchmarks.memory`), those of cpp with large tensors in the arena, without which
# the heap has holes as those of torch.
RATES: Mapping[tuple[str, bool], Rates] = {
    ("cpp", False): Rates(
        4.6, 6.1, 0.4, 3.6, 0.0, 0.9, 5.1, 9.8, 6.1, 14.9, 7.7, 26.7, 0.9, 0.0,
        0.0, 68.2, 38.3,
    ),
    ("cpp", True): Rates(
        1.4, 3.7, 1.5, 5.6, 0.4, 1.5, 7.5, 5.2, 2.9, 5.4, 7.0, 28.0, 0.6, 0.0,
        0.0, 72.8, 37.5,
    ),
    ("torch", False): Rates(
        38.1, 27.7, 0.8, 0.0, 10.0, 0.2, 12.0, 34.3, 34.5, 66.6, 6.5, 28.7, 1.4, 3.0,
        5.5, 70.8, 36.8,
    ),
    ("torch", True): Rates(
        0.0, 12.1, 0.0, 3.4, 5.6, 2.8, 12.0, 109.3, 36.0, 12.0, 8.0, 23.7, 0.5, 17.1,
        5.5, 70.5, 40.1,
    ),
    # Not fitted: counted from what the kernels keep. Currents of 4 or 2 bytes and spikes of 1; at
    # work gradients of spikes and currents, and dense copies, in float32 where hooks see them.
    ("cuda", False): Rates(
        5.0, 5.0, 2.0, 8.0, 0.0, 3.0, 20.0, 24.0, 16.0, 20.0, 12.0, 20.0, 1.3, 0.0, 0.0,
        _CUDA_WORKSPACE_MIB, 0.0,
    ),
    ("cuda", True): Rates(
        3.0, 3.0, 2.0, 6.0, 0.0, 3.0, 16.0, 18.0, 14.0, 18.0, 10.0, 20.0, 1.3, 0.0, 0.0,
        _CUDA_WORKSPACE_MIB, 0.0,
    ),
    # torch on a GPU: currents, normalised currents, potentials and spikes, each of them dense.
    ("torch on cuda", False): Rates(
        20.0, 20.0, 12.0, 12.0, 8.0, 12.0, 24.0, 28.0, 24.0, 28.0, 12.0, 20.0, 1.3, 0.0, 0.0,
        _CUDA_WORKSPACE_MIB, 0.0,
    ),
    ("torch on cuda", True): Rates(
        18.0, 18.0, 10.0, 8.0, 8.0, 10.0, 22.0, 26.0, 22.0, 26.0, 10.0, 20.0, 1.3, 0.0, 0.0,
        _CUDA_WORKSPACE_MIB, 0.0,
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
    rates = rates_of(config.train, device)
    peak = max(_training(config, rates), _evaluation(config, rates))
    if config.train.precision == "float64":
        peak *= 2.0
    average = 4.0 if config.train.ema_decay else 0.0
    peak += parameter_count(config.model) * (rates.parameter + average)
    if device == "cuda":
        peak += _resident(config)
    fixed_mib = rates.fixed_mib + (rates.average_mib if config.train.ema_decay else 0.0)
    return peak / MIB + fixed_mib


def rates_of(train: TrainConfig, device: DeviceType) -> Rates:
    """The rates of the backend that a trial gets on a device."""
    fused = {"cpu": "cpp", "cuda": "cuda"}[device]
    is_fused = train.neuron_backend in ("auto", fused) and not train.compile
    plain = "torch" if device == "cpu" else "torch on cuda"
    return RATES[fused if is_fused else plain, train.precision in ("bf16", "fp16")]


def _sizes(model: ModelConfig, *, is_sequence: bool) -> tuple[list[tuple[int, int]], int, int]:
    """Values of a frame: at each stage of the embedding whole and pooled, of a block; tokens."""
    rows = model.image_size
    columns = 1 if is_sequence else rows
    stages = []
    for part, pools in zip((8, 4, 2, 1), model.pooling, strict=True):
        channels = model.width // part
        whole = channels * rows * columns
        if pools == "1":
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        stages.append((whole, channels * rows * columns if pools == "1" else 0))
    tokens = rows * columns
    return stages, model.width * tokens, tokens


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
    holes = rates.heap_train * _piece([*(whole for whole, _ in stages), widest], frames)
    return peak + 2 * _input(config) * train.batch_size + holes


def _evaluation(config: TrialConfig, rates: Rates) -> float:
    """Bytes of an evaluation: the work at the layer that needs most."""
    model, batch = config.model, config.train.eval_batch_size
    stages, block, matrix = _layers(config)
    frames = model.timesteps * batch
    more = rates.spikformer if model.backbone == "spikformer" else 1.0
    widest = block * max(3, model.mlp_ratio)
    work = [more * rates.eval_embedding * whole for whole, _ in stages]
    work.append(rates.eval_block * widest + rates.eval_matrix * matrix)
    holes = rates.heap_eval * _piece([*(whole for whole, _ in stages), widest], frames)
    return max(work) * frames + 2 * _input(config) * batch + holes


def _layers(config: TrialConfig) -> tuple[list[tuple[int, int]], int, int]:
    """Values of a frame in the embedding's stages, in a block, and between its tokens."""
    model = config.model
    is_sequence = CARDS[config.data.name].is_sequence
    stages, block, tokens = _sizes(model, is_sequence=is_sequence)
    return stages, block, model.heads * tokens**2 if model.attention == "ssa" else 0


def _piece(values: list[int], frames: int) -> float:
    return min(_HEAP_PIECE, 4.0 * max(values) * frames)


def _input(config: TrialConfig) -> int:
    """Bytes of a sample as the network takes it."""
    model = config.model
    frames = model.timesteps if model.event_data else 1
    return 4 * frames * model.in_channels * model.image_size**2


def _resident(config: TrialConfig) -> int:
    """Bytes of the data set that stay on the card."""
    card = CARDS[config.data.name]
    frames = config.model.timesteps if card.is_event else 1
    stored = card.train_samples * prod(card.sample_shape) * frames
    return stored if stored <= _RESIDENT_BYTES else 0
