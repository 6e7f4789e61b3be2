"""`spiketune new`: a search space to start from."""

from pathlib import Path

import click

from search.folder import SearchFolder
from search.starter import DATASETS, starter
from trainables.errors import InputError


@click.command("new")
@click.option("--dataset", type=click.Choice(DATASETS), required=True, help="What to train on.")
@click.option("--name", help="Name of the search; the data set's unless given.")
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the data; for `folder` it holds train/CLASS/ and val/CLASS/ with images.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write, which must not exist; standard output unless given.",
)
def new_command(dataset: str, name: str | None, root: Path | None, out: Path | None) -> None:
    """Write a commented search space for a data set, to be edited and searched."""
    chosen = SearchFolder(Path("runs"), name).name if name else ""
    text = starter(dataset, chosen, root)
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{out}: must not exist yet; choose another -o or delete it") from None
    except FileNotFoundError:
        raise InputError(f"{out}: its folder must exist, but there is none") from None
    click.echo(f"Wrote {out}. Next:  spiketune check {out}")
