"""`spiketune evaluate`: what a checkpoint is worth, at every number of timesteps."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from search.cli_options import format_option, make_console, set_option, trial_config
from search.wording import metric_text
from trainables.config import TrialConfig, with_overrides

if TYPE_CHECKING:
    from trainables.checkpoint import Checkpoint
    from trainables.latency import Latency
    from trainables.sweep import TimestepScore

# The papers' larger evaluation: shorter side 320, cut to 288.
_LARGER_CROP = 0.9


@click.command("evaluate")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["val", "test"]), default="test", show_default=True)
@click.option(
    "--timesteps",
    metavar="LIST",
    help="Numbers of timesteps besides the trained one, as 1,2,4. Default: all of them.",
)
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    metavar="PX",
    help="Evaluate on images of another size; ImageNet at 288 is resized to 320 first.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.png|svg",
    help="Draw accuracy and energy over timesteps.",
)
@set_option
@format_option
def evaluate_command(
    checkpoint: Path,
    split: str,
    timesteps: str | None,
    image_size: int | None,
    plot: Path | None,
    overrides: tuple[str, ...],
    output: str,
) -> None:
    """Measure accuracy, energy and latency of a CHECKPOINT file.

    Static images are shown for t timesteps, of event data the first t frames are used, for every t
    up to the trained T.
    """
    from trainables import checkpoint as checkpoints
    from trainables.data import load_data
    from trainables.latency import measure_latencies
    from trainables.loop import pick_device
    from trainables.sweep import sweep

    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise click.UsageError(f"--plot must end in .png or .svg, but got {plot}")
    saved = checkpoints.load(checkpoint)
    config = _configured(saved.config, overrides, image_size, checkpoint.stem)
    chosen = _timesteps(timesteps, config.model.timesteps)
    device = pick_device(config.train)
    splits = load_data(config.data, config.model)
    part = splits.test if split == "test" else splits.val
    with Console(stderr=True).status("evaluating") as status:
        scores = sweep(
            config,
            saved.evaluated,
            part,
            device,
            chosen,
            lambda done: status.update(f"evaluating: {done} of {len(part)} samples"),
        )
        status.update("timing")
        latencies = measure_latencies(config, saved.evaluated, part, device)
    if plot is not None:
        from search.sweep_plot import draw_sweep

        draw_sweep(plot, scores, checkpoint.name, split)
    tree = {
        "checkpoint": str(checkpoint),
        "samples": len(part),
        "device": str(device),
        **_tree(saved, config, scores, latencies, split),
    }
    if output == "json":
        click.echo(json.dumps(tree, indent=2))
    else:
        _print(make_console(), tree, plot)


def _configured(
    config: TrialConfig, overrides: Sequence[str], image_size: int | None, label: str
) -> TrialConfig:
    tree = config.model_dump(mode="json")
    if image_size is not None:
        tree = with_overrides(tree, {"model.image_size": image_size, "data.eval_size": None})
        if config.data.crop_pct < 1.0:
            tree = with_overrides(tree, {"data.crop_pct": _LARGER_CROP})
    return trial_config(tree, overrides, label)


def _timesteps(given: str | None, trained: int) -> list[int]:
    if given is None:
        return list(range(1, trained + 1))
    try:
        chosen = {int(word) for word in given.split(",")}
    except ValueError:
        chosen = set()
    if not chosen or not chosen <= set(range(1, trained + 1)):
        raise click.UsageError(
            f"--timesteps must be numbers from 1 to {trained}, such as 1,2, but got {given}"
        )
    return sorted(chosen | {trained})


def _tree(
    saved: "Checkpoint",
    config: TrialConfig,
    scores: Sequence["TimestepScore"],
    latencies: Sequence["Latency"],
    split: str,
) -> dict[str, Any]:
    whole = scores[-1].evaluation
    return {
        "epoch": saved.epoch,
        "split": split,
        f"{split}_top1": whole.top1,
        f"{split}_top5": whole.top5,
        f"{split}_loss": whole.loss,
        "energy_mj": whole.energy.energy_mj,
        "sops_g": whole.energy.sops_g,
        "macs_g": whole.energy.macs_g,
        "firing_rate": whole.energy.firing_rate,
        "energy_convention": f"45 nm, {whole.energy.convention}",
        "timesteps": [_row(score, split) for score in scores],
        "latency": [
            {
                "batch_size": latency.batch_size,
                "batch_ms": latency.batch_ms,
                "quartiles_ms": list(latency.quartiles_ms),
                "image_ms": latency.image_ms,
                "runs": latency.runs,
            }
            for latency in latencies
        ],
        "layer_rates": whole.energy.layer_rates,
        "layer_ops": whole.energy.layer_ops,
        "layer_mj": whole.energy.layer_mj,
        "config": config.model_dump(mode="json"),
        "versions": dict(saved.versions),
    }


def _row(score: "TimestepScore", split: str) -> dict[str, Any]:
    found = score.evaluation
    return {
        "timesteps": score.timesteps,
        "block_size": score.block_size,
        f"{split}_top1": found.top1,
        f"{split}_top5": found.top5,
        f"{split}_loss": found.loss,
        "energy_mj": found.energy.energy_mj,
        "sops_g": found.energy.sops_g,
        "firing_rate": found.energy.firing_rate,
        "note": score.note,
    }


def _print(console: Console, tree: Mapping[str, Any], plot: Path | None) -> None:
    split = tree["split"]
    console.print(
        f"{tree['checkpoint']} after epoch {tree['epoch']}, {tree['samples']} samples ({split} "
        f"split), on {tree['device']}",
        highlight=False,
    )
    console.print(_timesteps_table(tree["timesteps"], split))
    console.print(f"Energy of one image: {tree['energy_convention']}.", highlight=False)
    for latency in tree["latency"]:
        low, high = latency["quartiles_ms"]
        console.print(
            f"Latency of {latency['batch_size']} at once: {latency['batch_ms']:.4g} ms a batch "
            f"(quartiles {low:.4g} to {high:.4g}, {latency['runs']} runs), "
            f"{latency['image_ms']:.4g} ms an image.",
            highlight=False,
        )
    console.print(_layers_table(tree))
    if plot is not None:
        console.print(f"Plot: {plot}", highlight=False)


def _timesteps_table(rows: Sequence[Mapping[str, Any]], split: str) -> Table:
    table = _make_table("Timesteps")
    for name in ("t", "block", "top-1", "top-5", "energy", "synaptic ops", "firing rate"):
        table.add_column(name, justify="right", no_wrap=True)
    has_notes = any(row["note"] for row in rows)
    if has_notes:
        table.add_column("differs from training", overflow="fold")
    for row in rows:
        table.add_row(
            str(row["timesteps"]),
            str(row["block_size"] or "-"),
            metric_text(f"{split}_top1", row[f"{split}_top1"], named=False),
            metric_text(f"{split}_top5", row[f"{split}_top5"], named=False),
            metric_text("energy_mj", row["energy_mj"], named=False),
            f"{row['sops_g'] * 1e3:.4g} M",
            metric_text("firing_rate", row["firing_rate"], named=False),
            *([row["note"]] if has_notes else []),
        )
    return table


def _layers_table(tree: Mapping[str, Any]) -> Table:
    """Neuron layers fire, synaptic layers and products cost."""
    table = _make_table("Layers")
    table.add_column("layer", no_wrap=True)
    for name in ("fires", "operations", "energy"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer, rate in tree["layer_rates"].items():
        table.add_row(layer, f"{rate:.3f}", "", "")
    for layer, ops in tree["layer_ops"].items():
        energy = metric_text("energy_mj", tree["layer_mj"][layer], named=False)
        table.add_row(layer, "", f"{ops / 1e6:.4g} M", energy)
    return table


def _make_table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
