"""`spiketune schema`: the JSON Schema of search space files, for editors."""

import click

from spaces.json_schema import json_schema_text


@click.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of a search space file, by which editors complete and check it."""
    click.echo(json_schema_text(), nl=False)
