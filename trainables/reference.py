"""Checkpoints of the papers' reference code: read without running what is in them, and written.

The reference saves through timm: a dict with `state_dict`, perhaps `state_dict_ema`, `optimizer`,
`args` (an argparse.Namespace), `epoch`, `arch` and `metric`. Its state-dict keys are ours, apart
from a `module.` before each (data parallel), from `talking_heads` (dead weights that some versions
lack), and from PLIF neurons, which it has in the MLP and the head only.
"""

import argparse
import io
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainables.checkpoint import Checkpoint, versions
from trainables.config import TrialConfig
from trainables.data_cards import CARDS
from trainables.errors import CheckpointError
from trainables.files import write_atomically
from trainables.model.weights import load_model, state_shapes

_WEIGHTS = ("state_dict", "model")
_EMA_WEIGHTS = ("state_dict_ema", "model_ema")
_PREFIX = "module."
_TALKING_HEADS = "block.0.attn.talking_heads.weight"
_ATTENTION = {"statten": "STAtten", "sdt": "SDT"}

# Spellings of what shapes cannot tell, most usual first.
_SPELLINGS = {
    "timesteps": ("time_steps", "T", "time_step", "timesteps", "num_steps"),
    "block_size": ("chunk_size", "block_size"),
    "pooling": ("pooling_stat", "pooling"),
    "attention": ("attention_mode", "attn_mode", "attention"),
    "heads": ("num_heads", "heads"),
    "image_size": ("img_size", "image_size", "img_size_h", "input_size"),
    "event_data": ("dvs_mode", "event_data"),
}
# What the reference calls the data sets it trains on, most telling first.
_DATASETS = {
    "dvs_gesture": ("gesture",),
    "cifar10_dvs": ("cifar10-dvs", "cifar10_dvs", "cifar10dvs"),
    "ncaltech101": ("caltech",),
    "cifar100": ("cifar100",),
    "cifar10": ("cifar10",),
    "imagenet": ("imagenet",),
}
_IMAGENET_CROP = 0.95


@dataclass(frozen=True)
class ReferenceCheckpoint:
    """What a reference checkpoint holds.

    Attributes:
        state: weights under our names, float32.
        arguments: what the training script was given; empty where the file does not say.
        epoch: epochs finished; 0 where the file does not say.
        metric: the reference's best test top-1 (%), if the file says.
        has_ema: whether the file holds averaged weights, chosen or not.
    """

    state: Mapping[str, torch.Tensor]
    arguments: Mapping[str, Any]
    epoch: int
    metric: float | None
    has_ema: bool


def read_reference(path: Path, *, ema: bool = False) -> ReferenceCheckpoint:
    """Read a reference checkpoint; nothing in it is run.

    Args:
        path: a file that torch.save wrote.
        ema: take the averaged weights instead of the trained ones.

    Raises:
        CheckpointError: it is missing, truncated, holds more than tensors, plain values and an
            argparse.Namespace, or has no such weights.
    """
    content = _unpickle(path)
    has_ema = any(name in content for name in _EMA_WEIGHTS)
    names = _EMA_WEIGHTS if ema else _WEIGHTS
    weights = next((content[name] for name in names if name in content), None)
    if weights is None and not ema and all(isinstance(x, torch.Tensor) for x in content.values()):
        weights = content
    if not isinstance(weights, Mapping) or not weights:
        raise CheckpointError(f"{path}: must hold `{names[0]}`, but holds {_listed(content)}")
    arguments = content.get("args")
    epoch, metric = content.get("epoch"), content.get("metric")
    return ReferenceCheckpoint(
        state=_clean(path, weights),
        arguments=_plain_arguments(arguments),
        epoch=epoch + 1 if isinstance(epoch, int) and epoch >= 0 else 0,
        metric=float(metric) if isinstance(metric, int | float) else None,
        has_ema=has_ema,
    )


def model_fields(reference: ReferenceCheckpoint) -> tuple[dict[str, Any], list[str]]:
    """ModelConfig fields that a checkpoint tells, by its shapes and else by its arguments.

    The reference's script does not always hand `attention_mode` to its network: where the accuracy
    does not fit, try the other mode.

    Returns:
        The fields, and the names of those it does not tell.

    Raises:
        CheckpointError: the weights are not those of this network.
    """
    fields = fields_of_shapes(reference.state)
    told = {
        field: value
        for field, names in _SPELLINGS.items()
        if (value := _argument(reference.arguments, field, names)) is not None
    }
    event = told.get("event_data", fields["in_channels"] == 2)
    fields = {**told, "event_data": event, **fields}
    if fields.get("attention") == "sdt":
        fields.setdefault("block_size", 1)
    wanted = ("timesteps", "block_size", "pooling", "attention", "heads", "image_size")
    return fields, [name for name in wanted if name not in fields]


def fields_of_shapes(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """ModelConfig fields that the shapes of a state dict decide.

    Raises:
        CheckpointError: the weights are not those of this network.
    """
    try:
        width = state["patch_embed.rpe_conv.weight"].shape[0]
        fields = {
            "width": width,
            "in_channels": state["patch_embed.proj_conv.weight"].shape[1],
            "num_classes": state["head.weight"].shape[0],
            "depth": len({k.split(".")[1] for k in state if k.startswith("block.")}),
            "mlp_ratio": state["block.0.mlp.fc1_conv.weight"].shape[0] // width,
            "neuron": "plif" if any(name.endswith("_lif.w") for name in state) else "lif",
        }
        if _TALKING_HEADS in state:
            fields["heads"] = state[_TALKING_HEADS].shape[0]
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"the weights must be those of an STAtten-SDT network, but got {_listed(state)}"
        ) from error
    return fields


def dataset_fields(reference: ReferenceCheckpoint, model: Mapping[str, Any]) -> dict[str, Any]:
    """DataConfig fields: the data set that the arguments name or whose classes fit; may be empty.

    Args:
        reference: the checkpoint.
        model: its ModelConfig fields.
    """
    named = str(reference.arguments.get("dataset") or "").lower()
    fitting = [
        name
        for name in _DATASETS
        if (CARDS[name].classes, CARDS[name].sample_shape[0])
        == (model["num_classes"], model["in_channels"])
    ]
    by_name = [
        name
        for name, spellings in _DATASETS.items()
        if any(spelling in named for spelling in spellings) and name in fitting
    ]
    chosen = next(iter([*by_name, *fitting]), None)
    if chosen is None:
        return {}
    if chosen != "imagenet":
        return {"name": chosen}
    crop = reference.arguments.get("crop_pct")
    return {"name": chosen, "crop_pct": crop if isinstance(crop, float) else _IMAGENET_CROP}


def as_checkpoint(reference: ReferenceCheckpoint, config: TrialConfig) -> Checkpoint:
    """Our checkpoint of a reference checkpoint.

    Raises:
        CheckpointError: its weights do not fit the configuration.
    """
    model = config.model
    if model.backbone != "sdt":
        raise CheckpointError(f"model.backbone must be sdt, but got {model.backbone}")
    state = dict(reference.state)
    for block in range(model.depth):
        dead = f"block.{block}.attn.talking_heads.weight"
        state.setdefault(dead, torch.zeros(model.heads, model.heads, 1))
    for name in state_shapes(model):
        # A PLIF neuron whose w is 0 is a LIF neuron: 1/tau = sigmoid(0) = 1/2.
        if name.endswith(".w"):
            state.setdefault(name, torch.zeros(()))
        elif name.endswith(".num_batches_tracked"):
            state.setdefault(name, torch.zeros((), dtype=torch.int64))
    load_model(model, state, torch.device("cpu"))
    metrics = {} if reference.metric is None else {"reference_top1": reference.metric}
    return Checkpoint(config, reference.epoch, state, None, metrics, versions())


def save_reference(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as the reference's scripts resume from; torch.load(weights_only) reads it.

    Raises:
        CheckpointError: the reference has no such network.
        OSError: the disk is full or read-only.
    """
    model = checkpoint.config.model
    for field, valid in (
        ("backbone", ("sdt",)),
        ("attention", (*_ATTENTION,)),
        ("neuron", ("lif",)),
    ):
        if getattr(model, field) not in valid:
            raise CheckpointError(
                f"model.{field} must be {' or '.join(valid)} in the reference's checkpoints, "
                f"but got {getattr(model, field)}"
            )
    arguments = argparse.Namespace(
        model="sdt",
        dataset=checkpoint.config.data.name.replace("_", "-"),
        time_steps=model.timesteps,
        layer=model.depth,
        dim=model.width,
        num_heads=model.heads,
        chunk_size=model.block_size,
        attention_mode=_ATTENTION[model.attention],
        mlp_ratio=model.mlp_ratio,
        pooling_stat=model.pooling,
        img_size=model.image_size,
        in_channels=model.in_channels,
        num_classes=model.num_classes,
        dvs_mode=model.event_data,
        spike_mode=model.neuron,
        TET=checkpoint.config.train.loss == "tet",
    )
    content = {
        "epoch": checkpoint.epoch - 1,
        "arch": "sdt",
        "state_dict": _on_cpu(checkpoint.model),
        "args": arguments,
        "version": 2,
        "metric": checkpoint.metrics.get("val_top1", checkpoint.metrics.get("reference_top1")),
    }
    if checkpoint.average is not None:
        content["state_dict_ema"] = _on_cpu(checkpoint.average)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def _on_cpu(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x.detach().cpu() for name, x in state.items()}


def _unpickle(path: Path) -> Mapping[str, Any]:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of old and foreign pickles; what is wrong is raised
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except pickle.UnpicklingError as error:
        # torch explains over many lines how to load it all the same: that is not for users to do
        reason = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
        raise CheckpointError(
            f"{path}: must hold tensors, plain values and an argparse.Namespace only; anything "
            f"else could run code and was refused ({reason.splitlines()[0]})"
        ) from error
    except Exception as error:  # damaged pickles fail in every way there is
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: must hold a dict, but holds a {type(content).__name__}")
    return content


def _clean(path: Path, weights: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    if not all(isinstance(x, torch.Tensor) for x in weights.values()):
        raise CheckpointError(f"{path}: must hold tensors as weights, but holds {_listed(weights)}")
    return {
        str(name).removeprefix(_PREFIX): x.float() if x.is_floating_point() else x
        for name, x in weights.items()
    }


def _plain_arguments(arguments: object) -> dict[str, Any]:
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    return dict(arguments) if isinstance(arguments, Mapping) else {}


def _argument(arguments: Mapping[str, Any], field: str, names: tuple[str, ...]) -> Any:
    """One argument as its field takes it; None where no spelling has a usable value."""
    values = (arguments[name] for name in names if arguments.get(name) is not None)
    value = next(values, None)
    if isinstance(value, list | tuple) and value:  # input_size is [C, H, W]
        value = value[-1]
    if field == "attention":
        return value.lower() if isinstance(value, str) else None
    if field == "pooling":
        return _pooling(value)
    wanted = bool if field == "event_data" else int
    return value if type(value) is wanted else None


def _pooling(value: object) -> str | None:
    """Four of 0 and 1, of which a YAML without quotes has made a number (0011: octal, so 9)."""
    texts = (f"{value:04d}", f"{value:04o}") if type(value) is int else (str(value),)
    return next((text for text in texts if len(text) == 4 and set(text) <= {"0", "1"}), None)


def _listed(content: Mapping[str, Any]) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
