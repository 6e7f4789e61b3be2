"""Checkpoints: one safetensors file an epoch, atomic, checksummed, with config and versions inside.

Layout of a trial's folder: `epoch-0003.safetensors` (the last two) and `best.safetensors`. Tensors
are named `model/<state-dict key>`, `average/<state-dict key>` (averaged weights, where there are),
`optimizer/<index>/<slot>` and `group/<index>/<option>`; everything else is JSON in the header.
Nothing is ever unpickled.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors

from trainables.config import TrialConfig
from trainables.errors import CheckpointError
from trainables.files import BEST as BEST
from trainables.files import SUFFIX as SUFFIX
from trainables.files import epoch_path as epoch_path
from trainables.files import write_atomically

logger = logging.getLogger(__name__)

KEEP_LAST = 2
HEADER_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after an epoch.

    Attributes:
        config: the trial's configuration.
        epoch: epochs finished.
        model: state dict.
        optimizer: optimiser state dict, or None in an exported file.
        metrics: the epoch's reported metrics.
        versions: package versions that made it.
        scaler: gradient scaler's state; empty where there is none.
        average: averaged state dict; None without averaging.
    """

    config: TrialConfig
    epoch: int
    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any] | None
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    scaler: Mapping[str, Any] = field(default_factory=dict)
    average: Mapping[str, torch.Tensor] | None = None

    @property
    def evaluated(self) -> Mapping[str, torch.Tensor]:
        """The state dict that the metrics are of: the average where there is one."""
        return self.model if self.average is None else self.average


def versions() -> dict[str, str]:
    """Versions of the packages that decide a trial's numbers."""
    names = ("spiketune", "torch", "spikingjelly", "numpy", "timm")
    return {name: version(name) for name in names}


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that a reader sees the old file or the whole new one.

    Raises:
        OSError: the disk is full or read-only; an earlier file of that name is intact.
    """
    tensors, optimizer = _tensors(checkpoint)
    meta = {
        "config": checkpoint.config.model_dump(mode="json"),
        "epoch": checkpoint.epoch,
        "optimizer": optimizer,
        "scaler": dict(checkpoint.scaler),
        "metrics": dict(checkpoint.metrics),
        "versions": dict(checkpoint.versions),
    }
    text = json.dumps(meta, sort_keys=True)
    digest = _digest(tensors, text)
    write_atomically(path, serialise_tensors(tensors, {"spiketune": text, "sha256": digest}))


def load(path: Path, device: str = "cpu") -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: it is missing, truncated, altered or not ours.
    """
    try:
        raw = path.read_bytes()
        tensors = parse_tensors(raw)
        length = int.from_bytes(raw[:HEADER_LENGTH_BYTES], "little")
        header = json.loads(raw[HEADER_LENGTH_BYTES : HEADER_LENGTH_BYTES + length])
        text, digest = header["__metadata__"]["spiketune"], header["__metadata__"]["sha256"]
        if digest != _digest(tensors, text):
            raise CheckpointError(f"{path}: the checksum does not match; the file was altered")
        meta = json.loads(text)
        return _checkpoint(meta, {name: x.to(device) for name, x in tensors.items()})
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except (OSError, SafetensorError, ValidationError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error


def weights_digest(checkpoint: Checkpoint) -> str:
    """SHA-256 of the evaluated weights; files of equal ones may differ in their header's order."""
    return _digest(_stored("model", checkpoint.evaluated), "")


def last_good(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a trial's folder that verifies; None when there is none.

    A damaged one is passed over with a warning, so a trial falls back to the epoch before.
    """
    for path in sorted(folder.glob(f"epoch-*{SUFFIX}"), reverse=True):
        try:
            return load(path)
        except CheckpointError as error:
            logger.warning("%s; the trial goes on from the one before, or begins again", error)
    return None


def best_top1(folder: Path) -> float:
    """Validation top-1 (%) of the best checkpoint so far; -1 when there is none that verifies."""
    try:
        return load(folder / BEST).metrics["val_top1"]
    except (CheckpointError, KeyError):
        return -1.0


def mark_best(path: Path) -> None:
    """Make an epoch's file the best one as well, without writing it twice."""
    temporary = path.with_name(f".{BEST}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    os.link(path, temporary)
    temporary.replace(path.with_name(BEST))


def prune(folder: Path, keep: int = KEEP_LAST) -> None:
    """Delete all but the last `keep` epochs' files; the best one is never touched."""
    for path in sorted(folder.glob(f"epoch-*{SUFFIX}"), reverse=True)[keep:]:
        path.unlink(missing_ok=True)
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _tensors(checkpoint: Checkpoint) -> tuple[dict[str, torch.Tensor], Any]:
    tensors = _stored("model", checkpoint.model) | _stored("average", checkpoint.average or {})
    if checkpoint.optimizer is None:
        return tensors, None
    states = checkpoint.optimizer["state"]
    slots = {str(i): _part(tensors, f"optimizer/{i}", state) for i, state in states.items()}
    groups = enumerate(checkpoint.optimizer["param_groups"])
    return tensors, {
        "slots": slots,
        "param_groups": [_part(tensors, f"group/{i}", group) for i, group in groups],
    }


def _stored(prefix: str, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}/{k}": v.detach().cpu().contiguous() for k, v in values.items()}


def _part(
    tensors: dict[str, torch.Tensor], prefix: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Put a mapping's tensors among the file's; what JSON can hold is returned."""
    found = {k: v for k, v in values.items() if isinstance(v, torch.Tensor)}
    tensors.update(_stored(prefix, found))
    return {k: v for k, v in values.items() if k not in found}


def _checkpoint(meta: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    return Checkpoint(
        config=TrialConfig.model_validate(meta["config"]),
        epoch=meta["epoch"],
        model=_below("model/", tensors),
        optimizer=_optimizer(meta["optimizer"], tensors),
        metrics=meta["metrics"],
        versions=meta["versions"],
        scaler=meta["scaler"],
        average=_below("average/", tensors) or None,
    )


def _optimizer(
    meta: Mapping[str, Any] | None, tensors: Mapping[str, torch.Tensor]
) -> dict[str, Any] | None:
    if meta is None:
        return None
    state: dict[int, dict[str, Any]] = {int(i): dict(plain) for i, plain in meta["slots"].items()}
    groups: list[dict[str, Any]] = [
        # JSON has made lists of the tuples (`betas`)
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
        for group in meta["param_groups"]
    ]
    for name, value in _below("optimizer/", tensors).items():
        index, slot = name.split("/")
        state[int(index)][slot] = value
    for name, value in _below("group/", tensors).items():
        index, option = name.split("/")
        groups[int(index)][option] = value
    return {"state": state, "param_groups": groups}


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _digest(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        x = tensors[name]
        digest.update(f"\0{name}\0{x.dtype}\0{tuple(x.shape)}\0".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b"")
    return digest.hexdigest()
