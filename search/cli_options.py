"""Options that several commands share."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from cluster.connect import check_address
from search.folder import SearchFolder
from search.records import TrialRecord
from spaces.loader import load_trial_config
from spaces.schema import SearchSpec
from trainables.config import TrialConfig

F = TypeVar("F", bound=Callable[..., Any])

MIN_WIDTH = 60


def processes_option(command: F) -> F:
    """`--processes N`."""
    return click.option(
        "--processes",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes that share each batch, with a GPU each where there are GPUs.",
    )(command)


def runs_option(command: F) -> F:
    """`--runs DIR`."""
    return click.option(
        "--runs",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("runs"),
        envvar="SPIKETUNE_RUNS",
        show_default=True,
        show_envvar=True,
        help="Folder that holds the searches.",
    )(command)


def format_option(command: F) -> F:
    """`--format table|json`."""
    return click.option(
        "--format",
        "output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="What to print.",
    )(command)


def set_option(command: F) -> F:
    """`--set key=value`, any number of times."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a value of the file, e.g. budget.trials=8. Repeatable.",
    )(command)


def address_option(command: F) -> F:
    """`--address A`."""
    return click.option(
        "--address",
        metavar="A",
        callback=_checked_address,
        help="A Ray cluster that runs already: `auto` or host:port. Default: this machine.",
    )(command)


def _checked_address(
    _ctx: click.Context, _option: click.Parameter, given: str | None
) -> str | None:
    if given is not None:
        check_address(given)
    return given


def make_console() -> Console:
    """A console on standard output; plain where that is no terminal, NO_COLOR respected."""
    console = Console()
    if not console.is_terminal:
        # A pipe has no width of its own: lines are as long as they need to be.
        console = Console(width=max(MIN_WIDTH, 120), soft_wrap=True)
    return console


@contextmanager
def progress_bar(what: str, units: str) -> Iterator[Callable[[int, int], None]]:
    """A bar to tell how much is done, and of how much; silent where standard error is no terminal.

    Args:
        what: is done.
        units: what is counted.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), units)
    silent = not console.is_terminal
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=silent
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def open_recorded(runs: Path, name: str) -> tuple[SearchSpec, SearchFolder, list[TrialRecord]]:
    """A search's specification, folder and trials, without taking it over.

    Raises:
        InputError: there is no such search.
        LedgerError: its ledger is missing or damaged.
    """
    from search.recorded import open_ledger

    folder = SearchFolder(runs, name)
    spec, ledger = open_ledger(folder)
    try:
        return spec, folder, ledger.records
    finally:
        ledger.close()


def trial_config(tree: Mapping[str, Any], overrides: Sequence[str], label: str) -> TrialConfig:
    """A trial's configuration that lies in no file, with what `--set` changes.

    Args:
        tree: its sections.
        overrides: `key=value` texts.
        label: what problems are reported for.

    Raises:
        SpaceError: lists everything that is wrong.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{label}.yaml"
        path.write_text(yaml.safe_dump(dict(tree)))
        return load_trial_config(path, overrides)
