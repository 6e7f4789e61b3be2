"""`spiketune data list|prepare`: which data sets there are, and getting one ready."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from search.cli_options import format_option, make_console
from trainables.data_cards import CARDS, DataCard

DEFAULT_TIMESTEPS = 16
DEFAULT_SIDE = 64


@click.group("data")
def data_command() -> None:
    """Show the data sets, and get one ready before trials need it."""


@data_command.command("list")
@format_option
def list_command(output: str) -> None:
    """Show every data set: what it is, how it is split, where to get it."""
    if output == "json":
        cards = [asdict(card) | {"how_to_get": card.how_to_get} for card in CARDS.values()]
        click.echo(json.dumps(cards, indent=2))
        return
    console = make_console()
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for column in ("title", "classes", "sample", "samples", "disk", "licence"):
        table.add_column(column, overflow="fold")
    for card in CARDS.values():
        table.add_row(
            card.name,
            card.title,
            str(card.classes),
            _shape(card),
            f"{card.train_samples:,} + {card.test_samples:,}",
            _size(card),
            card.licence,
        )
    console.print(table)
    console.print("samples: to train and validate on + official test part", highlight=False)
    console.print("Next: spiketune data prepare NAME --root DIR", highlight=False)


@data_command.command("prepare")
@click.argument("name", type=click.Choice(list(CARDS)), metavar="NAME")
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="SPIKETUNE_DATA",
    show_envvar=True,
    help="Folder that holds data sets; what `data.root` names.",
)
@click.option(
    "--timesteps",
    type=click.IntRange(min=1),
    multiple=True,
    default=(DEFAULT_TIMESTEPS,),
    show_default=True,
    help="Frames to make of event data. Repeatable.",
)
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    default=DEFAULT_SIDE,
    show_default=True,
    help="Side of the frames, for sets that are kept resized (ncaltech101).",
)
@format_option
def prepare_command(
    name: str, root: Path | None, timesteps: tuple[int, ...], image_size: int, output: str
) -> None:
    """Download, verify and unpack data set NAME; make the frames of event data.

    Running it again continues; several at once wait for each other.
    """
    from trainables.data.prepare import Wanted, prepare_data

    card = CARDS[name]
    with _bars() as bars:
        for count in timesteps if card.is_event else timesteps[:1]:
            wanted = Wanted(count, image_size, bars.of_frames(count))
            found = prepare_data(name, root, wanted, bars.of_bytes)
    if output == "json":
        tree = asdict(found) | {"name": name, "folder": str(found.folder or "")}
        click.echo(json.dumps(tree, indent=2))
        return
    where = "embedded, nothing to prepare" if found.folder is None else str(found.folder)
    click.echo(f"{card.title}: {where}")
    click.echo(
        f"{found.train_samples:,} samples to train and validate on, "
        f"{found.test_samples:,} to test, {found.classes} classes"
    )
    if found.folder is not None:
        click.echo(f"Next: set data.root to {root}, or SPIKETUNE_DATA={root}")


class _Bars:
    """Progress bars for downloads and frames; silent where standard error is no terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def of_bytes(self, file: str, done: int, total: int) -> None:
        """Show the bytes of a download."""
        self._show(f"download {file}", done, total)

    def of_frames(self, timesteps: int) -> Any:
        """A function that shows the recordings that are integrated."""
        return lambda done, total: self._show(f"{timesteps} frames a sample", done, total)

    def _show(self, label: str, done: int, total: int) -> None:
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=total or None)
        self._progress.update(self._tasks[label], completed=done)


@contextlib.contextmanager
def _bars() -> Iterator[_Bars]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield _Bars(progress)


def _shape(card: DataCard) -> str:
    shape = "×".join(str(side) for side in card.sample_shape)
    return f"T×{shape}" if card.is_event else shape


def _size(card: DataCard) -> str:
    if card.is_embedded:
        return "embedded"
    return f"{card.size_mib / 1024:.1f} GiB" if card.size_mib >= 1024 else f"{card.size_mib} MiB"
