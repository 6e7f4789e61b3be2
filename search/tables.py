"""Tables a person reads: leaderboard, Pareto set, searches."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.against import Against, Member
from search.effects import Importance, doubt
from search.insight import Insight
from search.records import TrialRecord
from search.results import pareto, rank, saved_epochs
from search.wording import STATE_STYLES, check_text, describe_params, metric_column, printable
from spaces.schema import SearchSpec

_BAR = 20  # characters of all importance


def print_results(
    console: Console, spec: SearchSpec, records: Sequence[TrialRecord], top: int
) -> None:
    """Leaderboard, Pareto set and what early stopping saved."""
    ranked = rank(records, spec.objectives)
    if not ranked:
        console.print("No trial has ended with a result yet.", style="yellow")
        return
    console.print(_table("Leaderboard", spec, ranked[:top], records))
    if len(spec.objectives) > 1:
        front = pareto(records, spec.objectives)
        names = " and ".join(o.metric for o in spec.objectives)
        console.print(_table(f"Pareto set of {names}", spec, front, records))
    print_savings(console, spec, records)


def print_savings(console: Console, spec: SearchSpec, records: Sequence[TrialRecord]) -> None:
    """Trials by state, and epochs against those of a run without early stopping."""
    full = spec.base_config.train.total_epochs
    spent, all_epochs = saved_epochs(records, full)
    counts = {state: sum(r.state == state for r in records) for state in STATE_STYLES}
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    console.print(f"{len(records)} trials: {', '.join(parts)}.")
    if all_epochs:
        saved = 100.0 * (1.0 - spent / all_epochs)
        console.print(
            f"{spent} epochs trained instead of {all_epochs}: early stopping saved {saved:.0f} %."
        )
    checked = check_text(records, spec.stopping_metric, spec.stopping_mode)
    if checked:
        console.print(checked)


def print_against(console: Console, spec: SearchSpec, found: Against | None) -> None:
    """Each member of the Pareto set against the recipe; nothing without any."""
    if found is None:
        return
    console.print("\nAgainst the recipe", style="bold")
    if found.trial is None:
        told = f"the recipe {found.recipe}, which no trial has trained, in what needs no training"
    else:
        full = spec.base_config.train.total_epochs
        told = f"trial {found.trial.name}, the network and rates of the recipe {found.recipe}"
        told += f" ({len(found.trial.epochs)} of {full} epochs)"
    console.print(Text(f"Compared with {told}."))
    points, ratios = (
        list(dict.fromkeys(name for member in found.members for name in getattr(member, which)))
        for which in ("points", "ratios")
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("trial", no_wrap=True)
    for column in (*points, *ratios, "params", "MACs"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("what differs", overflow="fold")
    for member in found.members:
        table.add_row(
            member.record.name,
            *(
                f"{member.points[name]:+.2f} points" if name in member.points else "-"
                for name in points
            ),
            *(f"×{member.ratios[name]:.3g}" if name in member.ratios else "-" for name in ratios),
            f"×{member.params_ratio:.3g}",
            f"×{member.macs_ratio:.3g}",
            Text(_differences(member)),
        )
    console.print(table)


def _differences(member: Member) -> str:
    told = [
        f"{found.key.rpartition('.')[2]} {printable(found.value)} instead of "
        f"{printable(found.reference)}"
        for found in member.differences
    ]
    return ", ".join(told) or "nothing"


def print_insight(console: Console, found: Insight | None) -> None:
    """Which parameters mattered, and what to search next; nothing with too few trials."""
    if found is None:
        return
    for finding in found.objectives:
        console.print()
        console.print(_importances(finding.metric, finding.importances))
    console.print(found.basis)
    if found.hints:
        console.print("\nWhat to search next", style="bold")
    for hint in found.hints:
        console.print(Text(f"  {printable(hint.text)}"))


def _importances(metric: str, importances: Sequence[Importance]) -> Table:
    title = f"What mattered for {metric}"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("parameter", "importance"):
        table.add_column(column, no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in importances:
        share = "-" if row.share is None else f"{row.share:.0%}"
        table.add_row(
            Text(printable(row.parameter)),
            "█" * round(_BAR * (row.share or 0.0)),
            share,
            doubt(row),
        )
    return table


def _table(
    title: str, spec: SearchSpec, shown: Sequence[TrialRecord], records: Sequence[TrialRecord]
) -> Table:
    front = {record.number for record in pareto(records, spec.objectives)}
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("trial", no_wrap=True)
    for objective in spec.objectives:
        table.add_column(objective.metric, justify="right", no_wrap=True)
    table.add_column("epochs", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("parameters", overflow="fold")
    columns = [metric_column(o.metric, [r.last[o.metric] for r in shown]) for o in spec.objectives]
    for record, *metrics in zip(shown, *columns, strict=True):
        star = "*" if record.number in front and len(spec.objectives) > 1 else ""
        table.add_row(
            f"{record.name}{star}",
            *metrics,
            str(len(record.epochs)),
            Text(record.state, style=STATE_STYLES[record.state]),
            Text(describe_params(record.params)),
        )
    return table
