"""The `spiketune` command."""

import logging
import sys
from typing import Any

import click

from search.cli_calibrate import calibrate_command
from search.cli_check import check_command
from search.cli_cluster import cluster_command
from search.cli_compare import compare_command
from search.cli_convert import convert_command
from search.cli_data import data_command
from search.cli_evaluate import evaluate_command
from search.cli_jobs import jobs_command, submit_command
from search.cli_new import new_command
from search.cli_plan import plan_command
from search.cli_promote import promote_command
from search.cli_schema import schema_command
from search.cli_search import (
    best_command,
    report_command,
    resume_command,
    search_command,
)
from search.cli_simulate import simulate_command
from search.cli_status import status_command
from search.cli_stop import stop_command
from search.cli_sync import sync_command
from search.cli_train import train_command, ui_command
from search.tracking_uri import redact
from trainables.errors import SpiketuneError


class RedactingFormatter(logging.Formatter):
    """Hides secrets in everything that is logged, other packages' lines included."""

    def format(self, record: logging.LogRecord) -> str:
        """The line as it may be shown."""
        return redact(super().format(record))


class ErrorHandler(logging.StreamHandler[Any]):
    """Writes to what standard error is at the time: a live display keeps lines above itself."""

    @property
    def stream(self) -> Any:
        """Standard error."""
        return sys.stderr

    @stream.setter
    def stream(self, stream: Any) -> None:
        """It cannot be another one."""


class SpiketuneGroup(click.Group):
    """Turns our errors into one message and an exit status, without traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command.

        Raises:
            SystemExit: with 2 for bad input, 1 for a failure, 130 for an interruption.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted", err=True)
            sys.exit(130)
        except SpiketuneError as error:
            click.echo(f"Error: {redact(str(error))}", err=True)
            sys.exit(error.exit_code)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            click.echo(redact(f"Error: {where}{error.strerror or error}"), err=True)
            sys.exit(1)


@click.group(cls=SpiketuneGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="spiketune")
@click.option("-v", "--verbose", is_flag=True, help="Show what is logged, not only warnings.")
def main(verbose: bool) -> None:  # noqa: FBT001  # click passes flags by keyword
    """Find the spiking transformer you should train."""
    handler = ErrorHandler()
    handler.setFormatter(RedactingFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])


for _command in (
    new_command,
    check_command,
    schema_command,
    plan_command,
    search_command,
    resume_command,
    status_command,
    stop_command,
    best_command,
    report_command,
    compare_command,
    simulate_command,
    calibrate_command,
    sync_command,
    train_command,
    promote_command,
    evaluate_command,
    convert_command,
    data_command,
    ui_command,
    submit_command,
    jobs_command,
    cluster_command,
):
    main.add_command(_command)

if __name__ == "__main__":
    main()
