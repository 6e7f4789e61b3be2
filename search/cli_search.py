"""`spiketune search|resume|best|report`."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from search.against import against_recipe
from search.cli_options import (
    address_option,
    format_option,
    make_console,
    open_recorded,
    runs_option,
    set_option,
)
from search.first import with_warm_points
from search.folder import SearchFolder
from search.following import read
from search.insight import insight
from search.progress import Progress
from search.recorded import check_same, open_ledger
from search.records import TrialRecord
from search.results import best, pareto, rows, stopping_check
from search.study import Ledger
from search.tables import print_against, print_insight, print_results, print_savings
from search.wording import duration
from spaces.loader import load_search_space
from spaces.schema import SearchSpec
from trainables.errors import SpiketuneError

TOP = 10


@click.command("search")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the search; the file's `name` unless given.")
@click.option("--dry-run", is_flag=True, help="Check everything, start nothing.")
@click.option("--resume", is_flag=True, help="Continue the search if the name is taken by it.")
@set_option
@address_option
@runs_option
def search_command(
    file: Path,
    name: str | None,
    dry_run: bool,  # noqa: FBT001
    resume: bool,  # noqa: FBT001
    overrides: tuple[str, ...],
    address: str | None,
    runs: Path,
) -> None:
    """Run the search that FILE describes."""
    spec = load_search_space(file, overrides)
    folder = SearchFolder(runs, name or spec.name)
    spec = spec.model_copy(update={"name": folder.name})
    console = make_console()
    if dry_run:
        with_warm_points(spec, folder)
        click.echo(f"{file} is valid: {spec.budget.trials} trials would go to {folder.path}")
        return
    if resume and folder.exists:
        known, ledger = open_ledger(folder)
        try:
            check_same(known, spec, folder.name)
            _resume(console, known, folder, ledger, address, force=False)
        finally:
            ledger.close()
        return
    from search.runner import start_search

    with Progress(console, spec, []) as progress:
        outcome = start_search(spec, folder, file.read_text(), address, progress)
    _finish(console, spec, folder, outcome)


@click.command("resume")
@click.argument("name")
@click.option(
    "--force",
    is_flag=True,
    help="Go on under other versions, or without what a damaged log has lost.",
)
@address_option
@runs_option
def resume_command(name: str, force: bool, address: str | None, runs: Path) -> None:  # noqa: FBT001
    """Continue the search NAME: finished trials are kept, unfinished ones go on."""
    folder = SearchFolder(runs, name)
    spec, ledger = open_ledger(folder, force=force)
    _resume(make_console(), spec, folder, ledger, address, force=force)


def _resume(
    console: Console,
    spec: SearchSpec,
    folder: SearchFolder,
    ledger: Ledger,
    address: str | None,
    *,
    force: bool,
) -> None:
    from search.runner import resume_search

    used_s = ledger.used_s(time.time())
    with Progress(console, spec, ledger.records, used_s) as progress:
        outcome = resume_search(folder, address, progress, force=force, opened=(spec, ledger))
    _finish(console, spec, folder, outcome)


@click.command("best")
@click.argument("name")
@click.option("--top", default=TOP, show_default=True, help="Rows of the leaderboard.")
@format_option
@runs_option
def best_command(name: str, top: int, output: str, runs: Path) -> None:
    """Print what the search NAME found best, what that gained, and what to search next.

    Leaderboard, Pareto set, its difference to the recipe, and which parameters mattered.
    """
    spec, _, records = open_recorded(runs, name)
    if output == "json":
        click.echo(json.dumps(best_tree(spec, name, records), indent=2))
        return
    console = make_console()
    print_results(console, spec, records, top)
    print_against(console, spec, against_recipe(spec, records))
    print_insight(console, insight(spec, records))


@click.command("report")
@click.argument("name")
@click.option(
    "--format",
    "output",
    type=click.Choice(["html", "json"]),
    default="html",
    show_default=True,
    help="Write the page and report.json beside it, or print what report.json holds.",
)
@runs_option
def report_command(name: str, output: str, runs: Path) -> None:
    """Write the HTML report of the search NAME."""
    from search.reporting import report_numbers, report_search

    folder = SearchFolder(runs, name)
    found = read(folder)
    told = found.spec, folder, found.records
    if output == "json":
        click.echo(json.dumps(report_numbers(*told, running=found.is_driven), indent=2))
    else:
        click.echo(str(report_search(*told, running=found.is_driven)))


def best_tree(spec: SearchSpec, name: str, records: list[TrialRecord]) -> dict[str, Any]:
    """What `best --format json` prints: best trial, Pareto set, all rows, insight; full precision.

    `insight` is None with too few trials, `against_recipe` without a Pareto set.
    """
    table = rows(records, spec.objectives)
    by_number = {row["number"]: row for row in table}
    top = best(records, spec.objectives)
    check = stopping_check(records, spec.stopping_metric, spec.stopping_mode)
    found = insight(spec, records)
    against = against_recipe(spec, records)
    return {
        "search": name,
        "objectives": [{"metric": o.metric, "mode": o.mode} for o in spec.objectives],
        "best": by_number[top.number] if top else None,
        "pareto": [by_number[record.number] for record in pareto(records, spec.objectives)],
        "stopping_check": None if check is None else asdict(check),
        "trials": table,
        "insight": found.tree() if found else None,
        "against_recipe": against.tree() if against else None,
    }


def _finish(console: Console, spec: SearchSpec, folder: SearchFolder, outcome: Any) -> None:
    runs = folder.runs_option
    if outcome.signal_number:
        print_savings(console, spec, outcome.records)
        console.print(f"Interrupted; continue with:  spiketune resume {folder.name}{runs}")
        sys.exit(128 + outcome.signal_number)
    print_results(console, spec, outcome.records, TOP)
    console.print(f"Took {duration(outcome.seconds)}. Report: {folder.report}")
    if outcome.exhausted:
        console.print("Every valid configuration of the space was tried.", style="yellow")
    if outcome.unsent:
        console.print(f"{outcome.unsent} tracking events are not sent yet.", style="yellow")
    top = best(outcome.records, spec.objectives)
    if top is None:
        raise SpiketuneError(f"no trial of {folder.name} ended with a result")
    console.print("\nNext:", style="bold")
    console.print(f"  spiketune best {folder.name}{runs}")
    console.print(f"  spiketune train --from {folder.name}:{top.number}{runs}")
    console.print(f"  spiketune ui{runs}")
