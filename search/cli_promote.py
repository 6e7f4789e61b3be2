"""`spiketune promote`: a chosen network, trained in full, tested once and registered."""

import shlex
from pathlib import Path
from typing import Any

import click
from filelock import FileLock, Timeout

from search.cli_options import make_console, processes_option, runs_option, set_option, trial_config
from search.cli_train import chosen_trial, train_network
from search.folder import NAME, SearchFolder
from search.recorded import open_ledger
from search.tracking import resolve_uri
from search.wording import metric_text
from trainables.errors import InputError


@click.command("promote")
@click.argument("source", metavar="NAME[:TRIAL]")
@click.option(
    "--as", "model", metavar="MODEL", help="Name in the registry; the search's name unless given."
)
@processes_option
@set_option
@runs_option
def promote_command(
    source: str, model: str | None, processes: int, overrides: tuple[str, ...], runs: Path
) -> None:
    """Train a trial of a search in full, test it once and register it in MLflow.

    The best trial unless one is given; the search may still run. Running the same command again
    continues where it was interrupted, and registers nothing twice.
    """
    from search.promote import Promotion, promote
    from search.runner import tracker_config
    from search.tracking_store import MlflowStore
    from trainables.data import check_data

    name, _, number = source.partition(":")
    folder = SearchFolder(runs, name)
    spec, ledger = open_ledger(folder)
    records, search_id = ledger.records, ledger.search_id
    ledger.close()
    record = chosen_trial(name, number, spec, records)
    promotion = Promotion(
        folder=folder,
        search_id=search_id,
        record=record,
        config=trial_config(record.config, overrides, f"{name}-{record.name}"),
        model=_model_name(model or name),
        command=_command(folder, record.number, model, overrides),
    )
    check_data(promotion.config)
    console = make_console()
    uri = resolve_uri(spec.tracking.uri, folder.runs)
    store = MlflowStore(tracker_config(spec, folder, search_id, uri))
    store.connect()
    console.print(f"Promoting trial {record.name} of {name} in {promotion.path}", highlight=False)
    promotion.path.mkdir(parents=True, exist_ok=True)

    def train(told: Any) -> Path:
        return train_network(console, promotion.config, promotion.path, processes, told)

    try:
        with FileLock(promotion.path / "lock", timeout=0):
            version = promote(promotion, store, train)
    except Timeout:
        raise InputError(
            f"one process at a time may promote a trial, but another one works in {promotion.path}"
        ) from None
    told = ", ".join(
        metric_text(shown, float(version.tags[tag]))
        for shown, tag in (("test_top1", "test_top1"), ("energy_mj", "test_energy_mj"))
    )
    console.print(f"On the test split: {told}", highlight=False)
    console.print(f"Registered: {version.uri} (model {version.model_id})", highlight=False)
    console.print(f"Card: {promotion.path / 'card.md'}", highlight=False)


def _model_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise InputError(
            "a model's name must have 1-64 characters of A-Z a-z 0-9 . _ - and not start with a "
            f"dot, but got {name[:80]!r}"
        )
    return name


def _command(
    folder: SearchFolder, number: int, model: str | None, overrides: tuple[str, ...]
) -> str:
    words = ["spiketune", "promote", f"{folder.name}:{number}"]
    words += ["--as", model] if model else []
    words += [word for override in overrides for word in ("--set", override)]
    return shlex.join(words)
