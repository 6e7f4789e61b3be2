"""`spiketune train|evaluate|ui`: one network, without a search."""

import contextlib
import json
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console

from search.cli_options import format_option, make_console, open_recorded, runs_option, set_option
from search.results import best
from search.tracking import resolve_uri, ui_environment
from search.tracking import ui_command as ui_command_line
from search.wording import metric_text
from spaces.loader import load_trial_config
from trainables.config import TrialConfig
from trainables.errors import InputError

SHOWN = ("train_loss", "val_loss", "val_top1", "energy_mj", "firing_rate", "epoch_s")


@click.command("train")
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--from", "source", metavar="NAME[:TRIAL]", help="A trial of a search; the best one.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the checkpoints.")
@set_option
@runs_option
def train_command(
    config: Path | None,
    source: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    runs: Path,
) -> None:
    """Train one network from a CONFIG file or from a trial of a search.

    Running the same command again continues from the last checkpoint.
    """
    if (config is None) == (source is None):
        raise click.UsageError("give either CONFIG or --from NAME[:TRIAL]")
    if config is not None:
        trial, label = load_trial_config(config, overrides), config.stem
    else:
        trial, label = _from_search(runs, source or "", overrides)
    folder = (out or runs / "trained" / f"{label}-{trial.config_hash()[:8]}").resolve()
    _train(make_console(), trial, folder)


@click.command("evaluate")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["val", "test"]), default="test", show_default=True)
@format_option
def evaluate_command(checkpoint: Path, split: str, output: str) -> None:
    """Measure accuracy, firing rates and energy of a CHECKPOINT file."""
    from trainables import checkpoint as checkpoints
    from trainables.loop import TrialRun

    saved = checkpoints.load(checkpoint)
    run = TrialRun(saved.config)
    run.restore(saved)
    part = run.splits.test if split == "test" else run.splits.val
    found = run.evaluate(part)
    tree: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "epoch": saved.epoch,
        "split": split,
        "samples": len(part),
        f"{split}_top1": found.top1,
        f"{split}_top5": found.top5,
        f"{split}_loss": found.loss,
        "energy_mj": found.energy.energy_mj,
        "sops_g": found.energy.sops_g,
        "firing_rate": found.energy.firing_rate,
        "energy_convention": found.energy.convention,
        "layer_rates": found.energy.layer_rates,
        "layer_mj": found.energy.layer_mj,
        "config": saved.config.model_dump(mode="json"),
        "versions": dict(saved.versions),
    }
    if output == "json":
        click.echo(json.dumps(tree, indent=2))
        return
    console = make_console()
    for name in (f"{split}_top1", f"{split}_top5", f"{split}_loss", "energy_mj", "firing_rate"):
        console.print(f"{name:12} {metric_text(name, tree[name], named=False)}")
    console.print(f"{'samples':12} {len(part)} ({split} split)")
    console.print(f"{'convention':12} 45 nm, {found.energy.convention}", highlight=False)
    for layer, rate in found.energy.layer_rates.items():
        console.print(f"  {layer:32} fires {rate:.3f}", highlight=False)


@click.command("ui")
@click.option("--port", type=int, default=0, help="TCP port; a free one unless given.")
@click.option("--uri", help="MLflow store, if not the embedded one of --runs.")
@runs_option
def ui_command(port: int, uri: str | None, runs: Path) -> None:
    """Open MLflow's pages for the searches on 127.0.0.1."""
    store = resolve_uri(uri, runs)
    path = Path(store.removeprefix("sqlite:///"))
    if store.startswith("sqlite:///") and not path.is_file():
        raise InputError(f"{path}: nothing is tracked there yet; run a search first")
    chosen = port or _free_port()
    click.echo(f"MLflow on http://127.0.0.1:{chosen}  (Ctrl-C ends it)")
    process = subprocess.Popen(ui_command_line(store, chosen), env=ui_environment(store))
    with contextlib.suppress(KeyboardInterrupt):
        process.wait()
    process.terminate()
    process.wait()


def _from_search(runs: Path, source: str, overrides: tuple[str, ...]) -> tuple[TrialConfig, str]:
    name, _, number = source.partition(":")
    spec, _, records = open_recorded(runs, name)
    if number:
        chosen = next((r for r in records if number.isdecimal() and r.number == int(number)), None)
    else:
        chosen = best(records, spec.objectives)
    if chosen is None:
        have = f"0 to {len(records) - 1}" if records else "none"
        raise InputError(f"{name} must have trial {number or 'with a result'}, but it has {have}")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{chosen.name}.yaml"
        path.write_text(yaml.safe_dump(dict(chosen.config)))
        return load_trial_config(path, overrides), f"{name}-{chosen.name}"


def _train(console: Console, trial: TrialConfig, folder: Path) -> None:
    from trainables import checkpoint as checkpoints
    from trainables.loop import TrialRun

    run = TrialRun(trial)
    found = checkpoints.last_good(folder)
    if found is not None:
        run.restore(found)
        console.print(f"continuing after epoch {run.epoch} in {folder}")
    console.print("  ".join(["epoch", *(f"{name:>11}" for name in SHOWN)]), style="bold")
    while not run.done:
        with console.status(f"epoch {run.epoch + 1} of {trial.train.total_epochs}"):
            metrics, _ = run.step()
            run.save(folder)
        cells = (f"{metric_text(n, metrics[n], named=False):>11}" for n in SHOWN)
        console.print("  ".join([f"{run.epoch:5}", *cells]), highlight=False)
    last = checkpoints.epoch_path(folder, run.epoch)
    console.print(f"Checkpoint: {last}", highlight=False)
    console.print(f"Next: spiketune evaluate {last}", highlight=False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
