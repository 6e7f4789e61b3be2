"""`spiketune check`: show what a search space file means, or everything that is wrong with it."""

import json
import os
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.cli_options import format_option, set_option
from search.packing import forecast
from search.wording import duration
from spaces import SpaceError, load_search_space
from spaces.problems import shown
from spaces.summary import summarize

_COUNTS = (("params_m", "parameters (M)"), ("macs_g", "MACs per image (G)"))
_TIMES = (("cpu_epoch_s", "CPU time per epoch"), ("cpu_trial_s", "CPU time per trial"))
_SHORT_S = 10
_MANY = 10**9


@click.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@set_option
@format_option
@click.pass_context
def check_command(
    context: click.Context, file: Path, overrides: tuple[str, ...], output: str
) -> None:
    """Check a search space FILE and show its size, constraints and examples."""
    try:
        spec = load_search_space(file, overrides)
        summary = summarize(spec) | {"memory": forecast(spec, _machine_bytes())}
    except SpaceError as error:
        click.echo(str(error), err=True)
        context.exit(error.exit_code)
    if output == "json":
        click.echo(json.dumps(summary, indent=2))
        return
    render(summary, Console(highlight=False))


def render(summary: dict[str, Any], console: Console) -> None:
    """Print a summary for a person: tables with lines on a terminal, plain ones elsewhere."""
    _line(console, "", f"{summary['name']} (recipe {summary['recipe']})", style="bold")
    objectives = [f"{item['metric']} {item['mode']}" for item in summary["objectives"]]
    _line(console, "objectives", ", ".join(objectives))
    _line(console, "budget", _budget(summary["budget"]))
    _line(console, "size", _size(summary["size"]))
    for kind in ("hard", "outcome"):
        for text in summary["constraints"][kind]:
            _line(console, f"{kind} constraint", text)
    _line(console, "", "\nWhat varies", style="bold")
    console.print(_parameters(summary["parameters"], console))
    _rejections(console, summary["rejections"])
    _line(console, "", "\nExamples", style="bold")
    console.print(_examples(summary["examples"], console))
    _line(console, "", "\nPredicted memory of a trial, for packing", style="bold")
    for label, text in _memory(summary["memory"]):
        _line(console, label, text)
    for note in summary["notes"]:
        _line(console, "note", note)


def _machine_bytes() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _memory(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines of label and text: what trials take, and how many fit."""
    ranges = {name: found[name] for name in ("cpu", "gpu")}
    lines = [
        (f"on a {name.upper()}", f"{r['smallest_mib']:,.0f} to {r['largest_mib']:,.0f} MiB")
        for name, r in ranges.items()
    ]
    machine = found["machine"]
    places = [("this machine's", machine), *(("a card's", card) for card in found["cards"])]
    for what, place in places:
        low, high = place["fewest"], place["most"]
        number = "1 trial" if low == high == 1 else f"{low} to {high} trials"
        text = f"{high} trials" if low == high != 1 else number
        lines.append((f"{what} {place['memory_gib']:.0f} GiB", f"{text} at once"))
    return lines


def _line(console: Console, label: str, text: str, style: str = "") -> None:
    parts = [(f"{label}: ", "cyan")] if label else []
    console.print(Text.assemble(*parts, (text, style)))


def _rejections(console: Console, found: dict[str, Any]) -> None:
    """What each rule leaves out, with one such combination; nothing where none does."""
    if found["rules"]:
        _line(console, "", "\nWhat the rules leave out", style="bold")
    for entry in found["rules"]:
        share = f"{100 * entry['share']:.3g} % of the combinations"
        counted = f"{entry['rejected']:,} of {found['checked']:,}, {share}"
        _line(console, entry["rule"], counted if found["is_exact"] else f"about {share}")
        example = ", ".join(f"{key}={_value(value)}" for key, value in entry["example"].items())
        _line(console, "", f"  such as {example}: {entry['why']}")


def _table(console: Console) -> Table:
    lines = box.SIMPLE_HEAD if console.is_terminal else None
    return Table(box=lines, pad_edge=False)


def _parameters(parameters: list[dict[str, Any]], console: Console) -> Table:
    table = _table(console)
    for column in ("parameter", "domain", "when"):
        table.add_column(column, overflow="fold")
    for item in parameters:
        conditions = [
            f"{parent}: {', '.join(_value(value) for value in values)}"
            for parent, values in item["when"].items()
        ]
        table.add_row(Text(item["key"]), Text(item["domain"]), Text("\n".join(conditions)))
    return table


def _examples(examples: list[dict[str, Any]], console: Console) -> Table:
    table = _table(console)
    table.add_column("", overflow="fold")
    for number in range(1, len(examples) + 1):
        table.add_column(str(number), justify="right", overflow="fold")
    for key in dict.fromkeys(key for example in examples for key in example["params"]):
        values = [example["params"].get(key) for example in examples]
        table.add_row(Text(key), *(Text("-" if v is None else _value(v)) for v in values))
    table.add_section()
    for key, label in _COUNTS:
        table.add_row(label, *(f"{example[key]:.3f}" for example in examples))
    for key, label in _TIMES:
        table.add_row(label, *(_time(example[key]) for example in examples))
    table.add_row("CPU memory", *(f"~{example['cpu_memory_mib']:.0f} MiB" for example in examples))
    return table


def _time(seconds: float) -> str:
    return f"~{seconds:.1f}s" if seconds < _SHORT_S else f"~{duration(seconds)}"


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else shown(value)


def _budget(budget: dict[str, Any]) -> str:
    hours = "" if budget["hours"] is None else f", at most {budget['hours']:g} h"
    return f"{budget['trials']} trials{hours}"


def _size(size: dict[str, Any]) -> str:
    count = size["combinations"]
    if count is None:
        combinations = "infinitely many combinations"
    else:
        number = f"{count:,}" if count < _MANY else f"{count:.2e}"
        combinations = f"{number} combination{'' if count == 1 else 's'}"
    share = f"{100 * size['valid_share']:.3g} % valid"
    if size["is_exact"]:
        return f"{combinations}, {share} ({size['valid_points']:,})"
    return f"{combinations}, about {share}"
