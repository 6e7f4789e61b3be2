"""`spiketune plan`: what a search will take, before it is paid for."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from search.cli_options import format_option, make_console, runs_option, set_option
from search.wording import duration
from trainables.errors import InputError

if TYPE_CHECKING:
    from search.plan import Interval, Pace, Plan
    from spaces.schema import SearchSpec
    from trainables.prediction import Calibration

SECONDS_AN_HOUR = 3600.0
_DECISIVE = 1.2  # settings that decide of less are not worth a line
_MOST_SETTINGS = 3
_WHOLE = 100.0  # figures above it need no decimals


@click.command("plan")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--gpus", type=click.FloatRange(0.0), default=0.0, help="Of the whole cluster.")
@click.option(
    "--cpus",
    type=click.IntRange(1),
    help="Of the whole cluster. Default: this machine's, or enough for the GPUs.",
)
@click.option(
    "--gpu-hour", type=click.FloatRange(0.0), metavar="PRICE", help="What an hour of a GPU costs."
)
@click.option("--like", metavar="NAME", help="An earlier search, whose seconds tell of these.")
@set_option
@runs_option
@format_option
def plan_command(
    file: Path,
    gpus: float,
    cpus: int | None,
    gpu_hour: float | None,
    like: str | None,
    overrides: tuple[str, ...],
    runs: Path,
    output: str,
) -> None:
    """Estimate trials, epochs, time and cost of the search in FILE, without starting it."""
    from cluster.packing import GIB_MIB, Machine
    from search.packing import make_packing
    from search.plan import make_plan
    from spaces import load_search_space
    from trainables.prediction import fitting, load

    spec = load_search_space(file, overrides)
    # Machines with GPUs have CPUs enough, unless it is said otherwise.
    cores = cpus or (math.inf if gpus else os.cpu_count() or 1)
    available = {"CPU": float(cores), "GPU": gpus}
    gib = spec.resources.gpu_memory_gib
    machine = Machine(available["CPU"], int(gpus))
    packing = make_packing(spec, available, [machine], gib and gib * GIB_MIB)
    wanted, workers = packing.wanted, packing.typical
    calibration = fitting(load(max(1, int(spec.resources.cpus))), spec.base_config)
    pace = _pace(spec, calibration, like, runs, on_gpu=wanted["gpu"] > 0.0)
    plan = make_plan(spec, workers, pace, calibration)
    # Rented machines are paid for from beginning to end, whether a trial runs or not.
    hours = plan.wall_s.scaled(gpus / SECONDS_AN_HOUR)
    if output == "json":
        tree = {**asdict(plan), "gpu_hours": asdict(hours) if gpus else None}
        tree["cost"] = asdict(hours.scaled(gpu_hour)) if gpus and gpu_hour else None
        click.echo(json.dumps(tree, indent=2))
        return
    show(make_console(), spec, plan, hours if gpus else None, gpu_hour)


def _pace(
    spec: "SearchSpec",
    calibration: "Calibration | None",
    like: str | None,
    runs: Path,
    *,
    on_gpu: bool,
) -> "Pace":
    from search.folder import SearchFolder
    from search.plan import learnt_pace, pace_of
    from search.recorded import open_ledger

    if like is None:
        return pace_of(calibration, on_gpu=on_gpu)
    earlier, ledger = open_ledger(SearchFolder(runs, like))
    try:
        pace = learnt_pace(earlier, ledger.records, calibration, like)
    finally:
        ledger.close()
    if pace is None:
        raise InputError(f"--like must name a search that has trained epochs, but got {like}")
    if earlier.base_config.data.name != spec.base_config.data.name:
        raise InputError(
            f"--like must name a search on {spec.base_config.data.name}, "
            f"but {like} is on {earlier.base_config.data.name}"
        )
    return pace


def show(
    console: Console,
    spec: "SearchSpec",
    plan: "Plan",
    gpu_hours: "Interval | None",
    gpu_hour: float | None,
) -> None:
    """Print a plan for a person."""
    at_once = "1 trial" if plan.workers == 1 else f"{plan.workers} trials"
    console.print(f"{spec.name}: {at_once} at once", style="bold", highlight=False)
    saved = 1.0 - plan.epochs.mid / plan.full_epochs if plan.full_epochs else 0.0
    rows = [
        ("trials", _count(plan.trials), ""),
        ("epochs", _count(plan.epochs), f"early stopping saves {100 * saved:.0f} %"),
        ("training", _time(plan.work_s), "of all trials together"),
        ("wall-clock", _time(plan.wall_s), ""),
    ]
    if gpu_hours is not None:
        rows.append(("GPU-hours", _number(gpu_hours), ""))
        if gpu_hour is not None:
            rows.append(("cost", _number(gpu_hours.scaled(gpu_hour)), ""))
    for name, text, note in rows:
        console.print(f"  {name:12}{text:34}{note}".rstrip(), highlight=False)
    decisive = [setting for setting in plan.settings if setting.ratio >= _DECISIVE]
    for setting in decisive[:_MOST_SETTINGS]:
        console.print(
            f"  {setting.key}: {setting.dearest} takes {setting.ratio:.1f} times as long as the "
            "quickest",
            highlight=False,
        )
    console.print(f"Seconds are from {plan.pace.source}.", highlight=False)
    if plan.pace.spread > math.log(1.5):
        console.print(
            "`spiketune calibrate`, or `--like` an earlier search, makes them better.",
            style="yellow",
            highlight=False,
        )


def _count(found: "Interval") -> str:
    if round(found.low) == round(found.high):
        return f"{found.mid:,.0f}"
    return f"{found.mid:,.0f} ({found.low:,.0f} to {found.high:,.0f})"


def _time(found: "Interval") -> str:
    return f"{duration(found.mid)} ({duration(found.low)} to {duration(found.high)})"


def _number(found: "Interval") -> str:
    return f"{_short(found.mid)} ({_short(found.low)} to {_short(found.high)})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= _WHOLE else f"{value:.3g}"
