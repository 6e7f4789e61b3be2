"""`spiketune cluster check`."""

from pathlib import Path

import click

from cluster.launch_files import LaunchError

_NEXT = {
    "ray": "ray up {file}",
    "kuberay": "kubectl apply -f {file}",
    "shell": "sbatch {file} SEARCH.yaml",
    "docker": "docker build -f {file} .",
}


@click.group("cluster")
def cluster_command() -> None:
    """Check the files that launch a cluster."""


@cluster_command.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_context
def check_command(context: click.Context, file: Path) -> None:
    """Check a launch FILE: what Ray or KubeRay will not take, and what would be insecure."""
    from cluster.launch_rules import RULES, check_launch_file

    try:
        kind = check_launch_file(file)
    except LaunchError as error:
        click.echo(str(error), err=True)
        context.exit(error.exit_code)
    click.echo(f"{file} is valid and keeps all {len(RULES)} rules")
    click.echo(f"Next:  {_NEXT[kind].format(file=file)}")
