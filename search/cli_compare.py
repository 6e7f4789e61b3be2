"""`spiketune compare`: several searches side by side."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from search.cli_options import MIN_WIDTH, make_console, runs_option
from search.compare import LETTERS, Entry
from search.folder import SearchFolder, find_folder
from search.lease import is_driven
from search.recorded import open_ledger
from search.versions import RECORDED
from trainables.errors import InputError
from trainables.files import write_atomically


@click.command("compare")
@click.argument("names", nargs=-1, required=True, metavar="NAME NAME…")
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json", "html"]),
    default="text",
    show_default=True,
    help="What to write; a page needs -o.",
)
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to this file instead of standard output.",
)
@runs_option
def compare_command(names: tuple[str, ...], output: str, file: Path | None, runs: Path) -> None:
    """Compare searches: fronts, the best after equal effort, and what was told and chosen.

    Each NAME is a search below --runs, or the path of a search's folder.
    """
    from search.compare_tables import compare, comparison_tree, print_comparison

    if output == "html" and file is None:
        raise click.UsageError("a page must go to a file: give -o FILE.html")
    if file is not None and not file.absolute().parent.is_dir():
        raise click.UsageError(f"-o must be in a folder that exists, but got {str(file)!r}")
    found = compare(opened(names, runs))
    if output == "html":
        from search.compare_page import comparison_page

        text = comparison_page(found)
    elif output == "json":
        text = json.dumps(comparison_tree(found), indent=2) + "\n"
    elif file is None:
        print_comparison(make_console(), found)
        return
    else:
        stream = io.StringIO()
        print_comparison(Console(file=stream, width=2 * MIN_WIDTH), found)
        text = stream.getvalue()
    if file is None:
        click.echo(text, nl=False)
    else:
        write_atomically(file, text.encode())
        click.echo(str(file))


def opened(names: Sequence[str], runs: Path) -> list[Entry]:
    """Read the searches that were named.

    Raises:
        InputError: there are too few or too many, one is named twice, or there is no such search.
        LedgerError: a ledger is missing or damaged.
    """
    if not 2 <= len(names) <= len(LETTERS):
        raise InputError(f"2 to {len(LETTERS)} searches can be compared, but got {len(names)}")
    folders = [find_folder(name, runs) for name in names]
    counts = Counter(folder.name for folder in folders)
    entries: list[Entry] = []
    for letter, folder in zip(LETTERS, folders, strict=False):
        label = folder.name if counts[folder.name] == 1 else str(folder.path)
        entry = _opened(letter, label, folder)
        same = next((one for one in entries if one.search_id == entry.search_id), None)
        if same is not None:
            raise InputError(
                f"searches must be different ones, but {same.folder.path} and {folder.path} are "
                "the same"
            )
        entries.append(entry)
    return entries


def _opened(letter: str, label: str, folder: SearchFolder) -> Entry:
    spec, ledger = open_ledger(folder)
    try:
        sessions = ledger.sessions
        versions = sessions[-1].versions if sessions else {}
        return Entry(
            letter=letter,
            label=label,
            folder=folder,
            search_id=ledger.search_id,
            spec=spec,
            records=ledger.records,
            # The others decide no results.
            versions={name: v for name, v in versions.items() if name not in RECORDED},
            running=is_driven(ledger.holder),
        )
    finally:
        ledger.close()
