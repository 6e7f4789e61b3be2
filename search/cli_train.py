"""`spiketune train|ui`: one network, without a search."""

import contextlib
import socket
import subprocess
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from search.cli_options import (
    make_console,
    open_recorded,
    processes_option,
    runs_option,
    set_option,
    trial_config,
)
from search.records import TrialRecord
from search.results import best
from search.tracking import resolve_uri, ui_environment
from search.tracking import ui_command as ui_command_line
from search.wording import metric_text
from spaces.loader import load_trial_config
from spaces.schema import SearchSpec
from trainables.config import TrialConfig
from trainables.errors import InputError

SHOWN = ("train_loss", "val_loss", "val_top1", "energy_mj", "firing_rate", "epoch_s")


@click.command("train")
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--from", "source", metavar="NAME[:TRIAL]", help="A trial of a search; the best one.")
@processes_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the checkpoints.")
@set_option
@runs_option
def train_command(
    config: Path | None,
    source: str | None,
    processes: int,
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
    console = make_console()
    path = train_network(console, trial, folder, processes)
    console.print(f"Checkpoint: {path}", highlight=False)
    console.print(f"Next: spiketune evaluate {path}", highlight=False)


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
    chosen = chosen_trial(name, number, spec, records)
    label = f"{name}-{chosen.name}"
    return trial_config(chosen.config, overrides, label), label


def chosen_trial(
    name: str, number: str, spec: SearchSpec, records: Sequence[TrialRecord]
) -> TrialRecord:
    """The trial that `NAME:TRIAL` means, or the best one where it has no number.

    Raises:
        InputError: there is no such trial.
    """
    if number:
        chosen = next((r for r in records if number.isdecimal() and r.number == int(number)), None)
    else:
        chosen = best(records, spec.objectives)
    if chosen is None:
        have = f"0 to {len(records) - 1}" if records else "none"
        raise InputError(f"{name} must have trial {number or 'with a result'}, but it has {have}")
    return chosen


def train_network(
    console: Console,
    trial: TrialConfig,
    folder: Path,
    processes: int,
    told: Callable[[Mapping[str, Any]], object] = lambda _: None,
) -> Path:
    """Train to the last epoch, from the last checkpoint if there is one, and show each epoch.

    Args:
        console: where to.
        trial: the network and how it is trained.
        folder: of the checkpoints.
        processes: that share each batch.
        told: is given each epoch's metrics; those of the restored one first, again.

    Returns:
        The last epoch's checkpoint.
    """
    from trainables import checkpoint as checkpoints

    last = checkpoints.last_good(folder)
    epoch = 0 if last is None else last.epoch
    epochs = _epochs(trial, folder, processes)
    if last is not None:
        told(next(epochs))  # the epoch of the checkpoint, reported again
        console.print(f"continuing after epoch {epoch} in {folder}")
    console.print("  ".join(["epoch", *(f"{name:>11}" for name in SHOWN)]), style="bold")
    while epoch < trial.train.total_epochs:
        with console.status(f"epoch {epoch + 1} of {trial.train.total_epochs}"):
            metrics = next(epochs)
        epoch = metrics["epoch"]
        told(metrics)
        cells = (f"{metric_text(n, metrics[n], named=False):>11}" for n in SHOWN)
        console.print("  ".join([f"{epoch:5}", *cells]), highlight=False)
    epochs.close()
    return checkpoints.epoch_path(folder, epoch)


def _epochs(
    trial: TrialConfig, folder: Path, processes: int
) -> Generator[dict[str, Any], None, None]:
    from trainables.launch import train_alone, train_here

    if processes == 1:
        yield from train_alone(trial, folder)
    else:
        yield from train_here(trial, folder, processes)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
