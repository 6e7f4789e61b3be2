"""`spiketune calibrate`: measures this machine, so that `check` can say what trials take."""

import json
from dataclasses import asdict

import click

from search.cli_options import format_option, make_console, progress_bar

PERCENT = 100.0
PRECISIONS = ("float32", "bf16")


@click.command("calibrate")
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Of a trial: what resources.cpus gives it.",
)
@click.option("--precision", type=click.Choice(PRECISIONS), default="float32", show_default=True)
@click.option(
    "--seconds",
    "budget_s",
    type=click.FloatRange(1.0),
    default=20.0,
    show_default=True,
    help="How long to measure.",
)
@format_option
def calibrate_command(threads: int, precision: str, budget_s: float, output: str) -> None:
    """Measure training steps on this machine's CPU and keep what predicts others."""
    from trainables.calibrate import calibrate
    from trainables.prediction import save

    with progress_bar("measuring steps", "networks") as told:
        found = calibrate(precision, threads, budget_s, told)
    path = save(found)
    if output == "json":
        click.echo(json.dumps({"file": str(path), **asdict(found)}, indent=2))
        return
    console = make_console()
    console.print(
        f"{found.num_steps} networks ({found.precision}, backend {found.backend}) measured on "
        f"{found.machine['processor']} "
        f"with {threads} thread{'' if threads == 1 else 's'}."
    )
    console.print(
        "Each predicted by the others: step time off by "
        f"{PERCENT * found.time_error:.0f} % (median)."
    )
    console.print(f"Kept in {path}: `spiketune check` uses it for trials of {threads} CPUs.")
