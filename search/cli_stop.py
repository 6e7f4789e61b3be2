"""`spiketune stop`: ends a running search in order."""

from pathlib import Path

import click

from search.cli_options import open_recorded, runs_option
from search.ending import end_driver
from search.folder import SearchFolder
from search.recorded import open_ledger

WAIT_S = 60.0


@click.command("stop")
@click.argument("name")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.0),
    default=WAIT_S,
    show_default=True,
    help="Seconds to wait until it has ended.",
)
@runs_option
def stop_command(name: str, timeout_s: float, runs: Path) -> None:
    """End the search NAME in order, as Ctrl-C does where it runs; `resume` continues it."""
    folder = SearchFolder(runs, name)
    _, ledger = open_ledger(folder)
    try:
        ended = end_driver(folder, lambda: ledger.holder, timeout_s)
    finally:
        ledger.close()
    spec, _, records = open_recorded(runs, name)
    left = spec.budget.trials - sum(record.has_ended for record in records)
    if not ended:
        click.echo(f"No driver runs {name}.")
    elif left:
        click.echo(f"{name} has stopped, {left} of {spec.budget.trials} trials left.")
    else:
        click.echo(f"{name} has ended.")
    if left:
        click.echo(f"Continue with:  spiketune resume {name}{folder.runs_option}")
