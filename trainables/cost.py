"""What a network costs before it is trained: parameters, dense MACs, rough seconds.

Importable without torch. Letters as in the model: D width, r mlp_ratio, N tokens, T timesteps.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from trainables.config import ModelConfig, TrialConfig
from trainables.data_cards import CARDS

# Neuron layers of each backbone: patch embedding, a block, head. A block of sdt has shortcut, q, k,
# v, one of the attention, fc1, fc2; one of spikformer q, k, v, attn, proj, fc1, fc2.
_NEURON_LAYERS = {"sdt": (4, 7, 1), "spikformer": (5, 7, 0)}

_EMBEDDING_LAYERS = ("proj_conv", "proj_conv1", "proj_conv2", "proj_conv3", "rpe_conv")

# Fitted on two CPU cores to 16x16 images in batches of 32: width 64, T 4 takes 1.1 s an epoch of
# 1,078 images, width 128 2.5 s, width 32 at T 2 0.5 s. Good to a factor of two, for orientation.
_CPU_MACS_PER_S = 1.13e11
_STEP_OVERHEAD_S = 8e-3
_LAYER_TIMESTEP_OVERHEAD_S = 2.3e-4

Model = ModelConfig | Mapping[str, Any]


def parameter_count(model: Model) -> int:
    """Trainable and stored parameters of a network, with the unused talking heads of sdt.

    Args:
        model: a ModelConfig or a mapping of its fields by name.
    """
    get = _getter(model)
    return _parameters(
        get("depth"),
        get("width"),
        get("heads"),
        get("mlp_ratio"),
        get("in_channels"),
        get("num_classes"),
        get("neuron"),
        get("backbone"),
    )


@lru_cache(maxsize=65_536)
def _parameters(
    depth: int,
    width: int,
    heads: int,
    mlp_ratio: int,
    in_channels: int,
    num_classes: int,
    neuron: str,
    backbone: str,
) -> int:
    stages = (in_channels, *embedding_channels(width))
    embedding = sum(
        9 * stages[i] * stages[i + 1] + 2 * stages[i + 1] for i in range(len(stages) - 1)
    )
    hidden = width * mlp_ratio
    attention = 4 * width * width + width + 4 * 2 * width
    attention += heads * heads if backbone == "sdt" else 0  # the reference's talking heads
    mlp = 2 * width * hidden + hidden + width + 2 * hidden + 2 * width
    total = embedding + depth * (attention + mlp) + width * num_classes + num_classes
    if neuron == "plif":
        in_embedding, in_block, in_head = _NEURON_LAYERS[backbone]
        total += in_embedding + in_block * depth + in_head
    return total


def embedding_grids(
    image_size: int, pooling: str, *, is_sequence: bool = False
) -> list[tuple[int, int]]:
    """Rows and columns that each convolution of the patch embedding sees; the last are the tokens.

    Args:
        image_size: rows of an image.
        pooling: which stages pool, as `ModelConfig` says.
        is_sequence: whether a frame is one column of the image, as `DataCard.is_sequence` says.
    """
    rows, columns = image_size, 1 if is_sequence else image_size
    grids = [(rows, columns)]
    for pools in pooling:
        if pools == "1":
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        grids.append((rows, columns))
    return grids


def embedding_channels(width: int) -> tuple[int, ...]:
    """Outputs of each convolution of the patch embedding."""
    return width // 8, width // 4, width // 2, width, width


def macs_per_timestep(model: Model, *, is_sequence: bool = False) -> dict[str, int]:
    """Dense multiply-accumulates of one image in one timestep, by layer.

    Args:
        model: a ModelConfig or a mapping of its fields by name.
        is_sequence: whether a frame is one column of the image, as `DataCard.is_sequence` says.

    Returns:
        MACs under the state-dict name of each convolution and linear layer, and for each block
        `attn.kv` and `attn.qkv`, the two products of its attention mode.
    """
    get = _getter(model)
    width, macs = get("width"), {}
    grids = embedding_grids(get("image_size"), get("pooling"), is_sequence=is_sequence)
    tokens = grids[-1][0] * grids[-1][1]
    before = get("in_channels")
    for name, channels, (rows, columns) in zip(
        _EMBEDDING_LAYERS, embedding_channels(width), grids, strict=True
    ):
        macs[f"patch_embed.{name}"] = 9 * before * channels * rows * columns
        before = channels
    product = _attention_product(get("attention"), width, get("heads"), tokens)
    for block in range(get("depth")):
        for layer in ("q_conv", "k_conv", "v_conv"):
            macs[f"block.{block}.attn.{layer}"] = width * width * tokens
        macs[f"block.{block}.attn.kv"] = product
        macs[f"block.{block}.attn.qkv"] = product
        macs[f"block.{block}.attn.proj_conv"] = width * width * tokens
        for layer in ("fc1_conv", "fc2_conv"):
            macs[f"block.{block}.mlp.{layer}"] = width * width * get("mlp_ratio") * tokens
    macs["head"] = width * get("num_classes")
    return macs


def _attention_product(attention: str, width: int, heads: int, tokens: int) -> int:
    # One of two products: k^T v and q A for statten, k*v and q*kv for sdt, q k^T and A v for ssa.
    per_token = {"statten": width // heads, "sdt": 1, "ssa": tokens}[attention]
    return tokens * width * per_token


def total_macs(model: Model, *, is_sequence: bool = False) -> int:
    """Dense MACs of one image over all timesteps: `macs_g` of constraints is this in 1e9.

    Same as `timesteps * sum(macs_per_timestep(...).values())`, without building the names.
    """
    get = _getter(model)
    return _total_macs(
        get("timesteps"),
        get("depth"),
        get("width"),
        get("heads"),
        get("attention"),
        get("mlp_ratio"),
        get("pooling"),
        get("image_size"),
        get("in_channels"),
        get("num_classes"),
        is_sequence=is_sequence,
    )


@lru_cache(maxsize=65_536)
def _total_macs(
    timesteps: int,
    depth: int,
    width: int,
    heads: int,
    attention: str,
    mlp_ratio: int,
    pooling: str,
    image_size: int,
    in_channels: int,
    num_classes: int,
    *,
    is_sequence: bool,
) -> int:
    one = {
        "depth": 1,
        "width": width,
        "heads": heads,
        "attention": attention,
        "mlp_ratio": mlp_ratio,
        "pooling": pooling,
        "image_size": image_size,
        "in_channels": in_channels,
        "num_classes": num_classes,
    }
    layers = macs_per_timestep(one, is_sequence=is_sequence)
    block = sum(macs for name, macs in layers.items() if name.startswith("block."))
    return timesteps * (sum(layers.values()) + (depth - 1) * block)


def predict_epoch_s(config: TrialConfig, num_images: int) -> float:
    """Roughly predict the seconds one training epoch takes on a CPU, on average over all epochs.

    Forward and backward are three times the dense MACs at a fixed throughput, plus a fixed cost a
    step and a cost for each layer and timestep. For orientation only: good to a factor of two.

    Args:
        config: the trial.
        num_images: training images an epoch.
    """
    model = config.model
    num_steps = -(-num_images // config.train.batch_size)
    num_layers = 6 + 6 * model.depth
    num_epochs = config.train.total_epochs
    timesteps = sum(map(config.timesteps_at, range(num_epochs))) / num_epochs
    overhead_s = _STEP_OVERHEAD_S + num_layers * timesteps * _LAYER_TIMESTEP_OVERHEAD_S
    whole = total_macs(model, is_sequence=CARDS[config.data.name].is_sequence)
    macs = whole * timesteps / model.timesteps
    return 3 * macs * num_images / _CPU_MACS_PER_S + num_steps * overhead_s


def _getter(model: Model) -> Any:
    if isinstance(model, Mapping):
        return model.__getitem__
    return lambda name: getattr(model, name)
