"""`spiketune sync`: sends what is left in a search's spool."""

from functools import partial
from pathlib import Path

import click

from search.cli_options import runs_option
from search.folder import SearchFolder
from search.lease import is_driven
from search.recorded import open_ledger
from search.syncing import sync
from search.tracking import resolve_uri
from trainables.errors import InputError, SpiketuneError


@click.command("sync")
@click.argument("name")
@click.option(
    "--timeout", "timeout_s", default=300.0, show_default=True, help="Seconds to go on for."
)
@runs_option
def sync_command(name: str, timeout_s: float, runs: Path) -> None:
    """Send MLflow what the search NAME could not send while it ran."""
    from search.director import trial_files
    from search.runner import tracker_config
    from search.stored import stored_folder

    folder = SearchFolder(runs, name)
    spec, ledger = open_ledger(folder)
    try:
        holder = ledger.holder
        if is_driven(holder):
            raise InputError(
                f"a running search sends by itself, but {name!r} is run by {holder}; wait for it"
            )
        uri = resolve_uri(spec.tracking.uri, folder.runs)
        config = tracker_config(spec, folder, ledger.search_id, uri)
        store = stored_folder(spec, folder.name, ledger.search_id)
    finally:
        ledger.close()
    if not (folder.spool / "events.jsonl").is_file():
        click.echo(f"{name}: nothing is left to send")
        return
    left = sync(config, timeout_s, ledger.records, partial(trial_files, folder, store))
    if left:
        raise SpiketuneError(
            f"everything must be sent, but {left} events are left in {folder.spool}; try again"
        )
    click.echo(f"{name}: everything is sent")
