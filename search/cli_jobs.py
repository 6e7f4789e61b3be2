"""`spiketune submit` and `spiketune jobs list|logs|stop`."""

import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.table import Table

from search.cli_options import format_option, make_console, set_option
from search.folder import SearchFolder
from search.wording import duration
from spaces.loader import load_search_space
from spaces.redaction import redact

if TYPE_CHECKING:
    from cluster.submit import Job, Jobs

F = TypeVar("F", bound=Callable[..., Any])

STOPPED_CODE = 143


def cluster_options(command: F) -> F:
    """`--address URL` and `--insecure`."""
    address = click.option(
        "--address",
        metavar="URL",
        required=True,
        envvar="SPIKETUNE_ADDRESS",
        show_envvar=True,
        help="The cluster's dashboard: https://host, or http://127.0.0.1:8265 of a tunnel.",
    )
    insecure = click.option(
        "--insecure",
        is_flag=True,
        help="Take a cluster without token, or http:// over a network.",
    )
    return address(insecure(command))


@click.command("submit")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the search; the file's `name` unless given.")
@set_option
@cluster_options
@click.option(
    "--working-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Run the packages in this folder instead of the cluster's own; for development.",
)
def submit_command(
    file: Path,
    name: str | None,
    overrides: tuple[str, ...],
    address: str,
    insecure: bool,  # noqa: FBT001
    working_dir: Path | None,
) -> None:
    """Run the search that FILE describes on a cluster, or follow it where it runs already."""
    spec = load_search_space(file, overrides)
    spec = spec.model_copy(update={"name": SearchFolder(Path("runs"), name or spec.name).name})
    jobs = _connect(address, insecure=insecure)
    job, new = jobs.submit(spec, working_dir)
    click.echo(f"{'Submitted' if new else 'Runs already'}: {job.id}")
    sys.exit(_follow(jobs, job))


@click.group("jobs")
def jobs_command() -> None:
    """Searches that were submitted to a cluster."""


@jobs_command.command("list")
@cluster_options
@format_option
def list_command(address: str, insecure: bool, output: str) -> None:  # noqa: FBT001
    """List the submitted searches, the newest first."""
    found = _connect(address, insecure=insecure).all()
    if output == "json":
        click.echo(json.dumps([asdict(job) for job in found], indent=2))
        return
    console = make_console()
    if not found:
        console.print(f"No searches were submitted to {address}.")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("search", "state", "started", "took", "job"):
        table.add_column(column, no_wrap=True)
    for job in found:
        table.add_row(job.search, job.state, _clock(job), _took(job), job.id)
    console.print(table)


@jobs_command.command("logs")
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on until it ends.")
@cluster_options
def logs_command(job: str, follow: bool, address: str, insecure: bool) -> None:  # noqa: FBT001
    """Print what JOB has printed: a job, or the newest of the search of that name."""
    jobs = _connect(address, insecure=insecure)
    found = jobs.find(job)
    if follow:
        sys.exit(_follow(jobs, found))
    click.echo(redact(jobs.logs(found)), nl=False)


@jobs_command.command("stop")
@click.argument("job")
@cluster_options
def stop_command(job: str, address: str, insecure: bool) -> None:  # noqa: FBT001
    """End JOB in order; submitting its search again continues it."""
    jobs = _connect(address, insecure=insecure)
    found = jobs.find(job)
    if found.ended:
        click.echo(f"{found.id} has ended already: {found.state}")
        return
    click.echo(f"{found.id}: {jobs.stop(found).state}")


def _connect(address: str, *, insecure: bool) -> "Jobs":
    from cluster.submit import Jobs

    jobs = Jobs(address, insecure=insecure)
    if insecure:
        click.echo("Warning: --insecure: others may run code on that cluster.", err=True)
    return jobs


def _follow(jobs: "Jobs", job: "Job") -> int:
    """Print a job's lines; the exit status that its end stands for."""
    # Ctrl-C detaches also where whoever started this ignores it, as shells do in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        job = jobs.follow(job, click.echo)
    except KeyboardInterrupt:
        where = f"{job.search} --address {jobs.address}"
        click.echo(
            f"Detached; {job.id} goes on.\n  spiketune jobs logs {where} --follow\n"
            f"  spiketune jobs stop {where}",
            err=True,
        )
        return 130
    click.echo(f"{job.id}: {job.state}", err=True)
    if job.state == "SUCCEEDED":
        return 0
    if job.state == "STOPPED":
        return STOPPED_CODE
    if job.exit_code is None:
        click.echo(f"Error: {job.message}", err=True)
    return job.exit_code if job.exit_code and 0 < job.exit_code < 256 else 1


def _clock(job: "Job") -> str:
    if job.started_s is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started_s))


def _took(job: "Job") -> str:
    if job.started_s is None:
        return "-"
    return duration((job.ended_s or time.time()) - job.started_s)
