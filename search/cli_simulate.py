"""`spiketune simulate`: replays learning curves through a sampler and a stopping rule."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from search.cli_options import format_option, make_console, progress_bar

PERCENT = 100.0


@click.command("simulate")
@click.argument("table", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--sampler", default="gp", show_default=True, help="Ours, or optuna: Ray's class.")
@click.option("--stopping", default="asha", show_default=True, help="Ours; ray-asha with optuna.")
@click.option("--grace", type=click.IntRange(1), help="Epochs for every trial. Default: auto.")
@click.option(
    "--check-share",
    type=click.FloatRange(0.0, 0.5),
    default=0.0,
    help="Share of the trials to be stopped that run on.",
)
@click.option("--cost-aware", is_flag=True, help="Weigh gains against seconds (gp only).")
@click.option("--by-time", is_flag=True, help="Few seconds an epoch are an objective as well.")
@click.option("--task", "tasks", multiple=True, help="Only this task of the table. Repeatable.")
@click.option("--workers", type=click.IntRange(1), default=8, show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=10, show_default=True, help="How many.")
@click.option(
    "--budget",
    type=click.FloatRange(0.0, min_open=True),
    default=6.0,
    show_default=True,
    help="Of each worker, in median full trainings.",
)
@click.option("--failures", type=click.FloatRange(0.0, 1.0), default=0.0, help="Share of trials.")
@click.option("--stragglers", type=click.FloatRange(0.0, 1.0), default=0.0, help="Share, 5× slow.")
@click.option("--plot", "picture", type=click.Path(dir_okay=False, path_type=Path))
@format_option
def simulate_command(
    table: Path,
    sampler: str,
    stopping: str,
    grace: int | None,
    check_share: float,
    tasks: tuple[str, ...],
    workers: int,
    seeds: int,
    budget: float,
    failures: float,
    stragglers: float,
    picture: Path | None,
    output: str,
    *,
    cost_aware: bool,
    by_time: bool,
) -> None:
    """Measure a sampler with a stopping rule on the learning curves in TABLE (.npz).

    What counts is the normalised regret of the best value seen: 0 is the best of the table, 1 its
    median configuration.
    """
    from search.curves import load_tables
    from search.regret import Method, measure, plot
    from search.simulate import Conditions

    conditions = Conditions(workers, budget, failures, stragglers)
    method = Method(sampler, stopping, grace, check_share, cost_aware, by_time)
    loaded = load_tables(table, tasks)
    with progress_bar(method.name, "runs") as told:
        summary = measure(
            method, loaded, range(seeds), conditions, lambda _, done, of: told(done, of)
        )
    if picture is not None:
        plot([summary], picture)
    row = summary.row()
    if output == "json":
        click.echo(json.dumps(row, indent=2))
        return
    _print(row, make_console())


def _print(row: dict[str, object], console: Console) -> None:
    from search.regret import FRACTIONS

    by_task = row["by_task"]
    regret = row["regret"]
    assert isinstance(by_task, dict)  # noqa: S101  # what `row` makes
    assert isinstance(regret, dict)  # noqa: S101
    shown = Table(title=f"Regret of {row['method']}", title_justify="left", box=None)
    shown.add_column("task")
    for fraction in FRACTIONS:
        shown.add_column(f"{fraction * PERCENT:g} %", justify="right")
    for task, runs in by_task.items():
        means = [sum(run[i] for run in runs) / len(runs) for i in range(len(FRACTIONS))]
        shown.add_row(str(task), *(f"{mean:.3f}" for mean in means))
    shown.add_row("mean ± standard error", *_cells(regret))
    console.print(shown)
    areas = row.get("hypervolume")
    if isinstance(areas, dict):
        console.print(f"Hypervolume of value and seconds an epoch: {', '.join(_cells(areas))}.")
    console.print(
        f"{row['runs']} runs of {row['trials']} trials each; "
        f"a proposal took {row['propose_ms']} ms (median)."
    )


def _cells(means: dict[str, dict[str, float]]) -> list[str]:
    return [f"{cell['mean']:.3f} ± {cell['se']:.3f}" for cell in means.values()]
