"""`spiketune status`: how far searches are, once or until they end."""

import io
import itertools
import json
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from search.cli_options import format_option, make_console, runs_option
from search.folder import SearchFolder, all_searches
from search.following import Reading, read, readings
from search.progress import Progress
from search.results import best
from search.wording import STATE_STYLES, metric_text

EVERY_S = 2.0
LEAST_S = 0.1


@click.command("status")
@click.argument("name", required=False)
@click.option("--follow", is_flag=True, help="Go on showing it until the search ends.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(LEAST_S),
    metavar="SECONDS",
    help=f"How often to look with --follow.  [default: {EVERY_S:g}]",
)
@format_option
@runs_option
def status_command(
    name: str | None,
    follow: bool,  # noqa: FBT001
    every_s: float | None,
    output: str,
    runs: Path,
) -> None:
    """Say how far a search (or every search) has come; with --follow, until it ends.

    --follow without NAME takes the one search that runs. Where it is no terminal it prints a line
    (with --format json an object) whenever something has changed.
    """
    if follow:
        _follow(_followed(runs, name), every_s or EVERY_S, output)
        return
    if every_s is not None:
        raise click.UsageError("--every needs --follow")
    names = [name] if name else [folder.name for folder in all_searches(runs)]
    folders = [SearchFolder(runs, known) for known in names]
    trees = [_tree(folder, read(folder)) for folder in folders]
    if output == "json":
        click.echo(json.dumps(trees[0] if name else trees, indent=2))
        return
    console = make_console()
    if not trees:
        console.print(f"No searches in {runs}.")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("search", "trials", *STATE_STYLES, "best", "driver"):
        table.add_column(column, no_wrap=True)
    for tree in trees:
        counts = [str(count) for count in tree["states"].values()]
        shown = metric_text(*tree["best"]) if tree["best"] else "-"
        done = f"{tree['trials']}/{tree['budget']}"
        table.add_row(tree["name"], done, *counts, shown, tree["driver"] or "-")
    console.print(table)


def _followed(runs: Path, name: str | None) -> SearchFolder:
    if name:
        return SearchFolder(runs, name)
    found = [folder for folder in all_searches(runs) if read(folder).is_driven]
    if len(found) != 1:
        names = ", ".join(folder.name for folder in found) or "none"
        raise click.UsageError(
            f"--follow without NAME needs one running search in {runs}, but there are: {names}"
        )
    return found[0]


def _follow(folder: SearchFolder, every_s: float, output: str) -> None:
    stream = readings(folder, every_s)
    found = next(stream)
    since_s = time.time() if found.holder is None else found.holder.since_s
    console = make_console() if output == "table" else Console(file=io.StringIO())
    elapsed_s = max(0.0, time.time() - since_s)
    told = ""
    with Progress(console, found.spec, (), found.used_s - elapsed_s, elapsed_s) as display:
        for reading in itertools.chain([found], stream):
            display.take(reading.records)
            line = display.line() if output == "table" else json.dumps(_tree(folder, reading))
            if line != told and not console.is_terminal:
                click.echo(line)
            told, found = line, reading
    if output == "json":
        return
    if console.is_terminal:
        click.echo(told)
    left = found.spec.budget.trials - sum(record.has_ended for record in found.records)
    resume = f"; continue with:  spiketune resume {folder.name}{folder.runs_option}"
    click.echo(f"No driver runs {folder.name}{resume if left else ''}")


def _tree(folder: SearchFolder, found: Reading) -> dict[str, Any]:
    spec, records = found.spec, found.records
    top = best(records, spec.objectives)
    first = spec.objectives[0].metric
    return {
        "name": folder.name,
        "trials": len(records),
        "budget": spec.budget.trials,
        "epochs": sum(len(record.epochs) for record in records),
        "states": {
            state: sum(record.state == state for record in records) for state in STATE_STYLES
        },
        "best": [first, top.last[first]] if top else None,
        "driver": str(found.holder) if found.is_driven else None,
    }
