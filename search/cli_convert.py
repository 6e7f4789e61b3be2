"""`spiketune convert`: checkpoints of the papers' reference code to ours and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from search.cli_options import make_console, set_option, trial_config
from spaces.loader import load_trial_config
from trainables.config import TrialConfig
from trainables.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from trainables.reference import ReferenceCheckpoint

_OURS = ".safetensors"
_THEIRS = (".pth", ".pt", ".tar")


@click.command("convert")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration of the network, laid out like a recipe, where SRC does not tell it.",
)
@click.option("--ema", is_flag=True, help="Take SRC's averaged weights.")
@set_option
def convert_command(
    source: Path,
    destination: Path,
    config: Path | None,
    ema: bool,  # noqa: FBT001  # click passes flags by keyword
    overrides: tuple[str, ...],
) -> None:
    """Convert the reference code's checkpoint SRC (.pth, .pt, .tar) to DST.safetensors, or back.

    What the weights' shapes and the checkpoint's arguments do not tell comes from --config or from
    --set, as `--set model.timesteps=4`. Nothing in SRC is run.
    """
    if destination.exists():
        raise InputError(f"{destination} must not exist yet; remove it or give another name")
    if not destination.resolve().parent.is_dir():
        raise InputError(f"{destination.parent} must be a folder that exists")
    if (source.suffix == _OURS) == (destination.suffix == _OURS):
        raise click.UsageError(
            f"one of SRC and DST must end in {_OURS}, the other in {', '.join(_THEIRS)}, "
            f"but got {source} and {destination}"
        )
    if source.suffix != _OURS:
        _import(make_console(), source, destination, config, overrides, ema=ema)
        return
    if config is not None or ema or overrides:
        raise click.UsageError("--config, --ema and --set are for SRC of the reference only")
    _export(make_console(), source, destination)


def _export(console: Console, source: Path, destination: Path) -> None:
    from trainables import checkpoint as checkpoints
    from trainables.reference import save_reference

    if destination.suffix not in _THEIRS:
        raise InputError(f"DST must end in {', '.join(_THEIRS)}, but got {destination}")
    save_reference(destination, checkpoints.load(source))
    console.print(f"Wrote {destination}", highlight=False)


def _import(
    console: Console,
    source: Path,
    destination: Path,
    config: Path | None,
    overrides: tuple[str, ...],
    *,
    ema: bool,
) -> None:
    from trainables import checkpoint as checkpoints
    from trainables.reference import as_checkpoint, read_reference

    found = read_reference(source, ema=ema)
    if config is not None:
        trial = load_trial_config(config, overrides)
    else:
        trial = _inferred(found, overrides, source.stem)
    checkpoints.save(destination, as_checkpoint(found, trial))
    weights = "averaged weights" if ema else "trained weights"
    if found.has_ema and not ema:
        weights += " (it has averaged ones too: --ema takes those)"
    console.print(f"Wrote {destination} with the {weights} of {source}", highlight=False)
    model = trial.model.model_dump()
    console.print(" ".join(f"{key}={value}" for key, value in model.items()), highlight=False)
    if config is None and not _says(overrides, "model.attention"):
        console.print(
            "attention is what the checkpoint's arguments say, which the reference's script does "
            "not always hand on: where the accuracy does not fit, try the other one with "
            "--set model.attention=..."
        )
    console.print(f"Next: spiketune evaluate {destination}", highlight=False)


def _inferred(found: "ReferenceCheckpoint", overrides: tuple[str, ...], label: str) -> TrialConfig:
    from trainables.reference import dataset_fields, model_fields

    model, missing = model_fields(found)
    data = dataset_fields(found, model)
    needed = [f"model.{name}" for name in missing] + ([] if data else ["data.name"])
    needed = [key for key in needed if not _says(overrides, key)]
    if needed:
        raise CheckpointError(
            f"the checkpoint does not tell {', '.join(needed)}: give them with --config FILE or "
            f"with {' '.join(f'--set {key}=...' for key in needed)}"
        )
    tree: Mapping[str, Any] = {
        "recipe": data.get("name", label),
        "model": model,
        "data": data,
    }
    return trial_config(tree, overrides, label)


def _says(overrides: tuple[str, ...], key: str) -> bool:
    return any(text.partition("=")[0].strip() == key for text in overrides)
