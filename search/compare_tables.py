"""A comparison of searches as tables for a terminal and as a tree for JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.compare import Entry, Fronts, Matched, Step, fronts, matched, shared_objectives, steps
from search.compare_settings import Difference, Setting, differences, settings, warnings
from search.results import best, values
from search.tracking_uri import redact
from search.wording import duration, metric_column, printable
from spaces.schema import Objective

CAUTION = (
    "Each search is one sample: another seed would have given other numbers, so a difference "
    "between two searches may be luck. Repeat them with other seeds before concluding."
)

SETTINGS = "Settings that differ"
DIFFERENCES = "Specifications and versions that differ"


@dataclass(frozen=True)
class Comparison:
    """Everything that is said of several searches.

    Attributes:
        entries: the searches.
        objectives: that all of them have.
        warnings: why numbers may not be comparable.
        fronts: the Pareto fronts.
        courses: how each search came on.
        matched: the searches after equal effort.
        settings: what could be chosen, and what the best trials have.
        differences: of the specifications.
    """

    entries: tuple[Entry, ...]
    objectives: tuple[Objective, ...]
    warnings: tuple[str, ...]
    fronts: Fronts
    courses: tuple[tuple[Step, ...], ...]
    matched: tuple[Matched, ...]
    settings: tuple[Setting, ...]
    differences: tuple[Difference, ...]

    @property
    def shown_settings(self) -> list[Setting]:
        """Those with another domain, or noticeably other values among the best trials."""
        return [one for one in self.settings if one.differs or one.moved]


def compare(entries: Sequence[Entry]) -> Comparison:
    """Compare searches.

    Raises:
        InputError: they have no objective in common.
    """
    objectives = shared_objectives(entries)
    found = fronts(entries, objectives)
    courses = tuple(steps(entry, found.reference, objectives) for entry in entries)
    return Comparison(
        entries=tuple(entries),
        objectives=objectives,
        warnings=tuple(warnings(entries, objectives)),
        fronts=found,
        courses=courses,
        matched=tuple(matched(entries, courses)),
        settings=tuple(settings(entries, objectives)),
        differences=tuple(differences(entries)),
    )


def comparison_tree(found: Comparison) -> dict[str, Any]:
    """What `compare --format json` prints, in full precision."""
    names = {entry.letter: entry.folder.name for entry in found.entries}
    letters = list(names)

    def each(parts: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(letters, parts, strict=True))

    searches = {}
    for entry, numbers in zip(found.entries, found.fronts.numbers, strict=True):
        top = best(entry.records, found.objectives)
        searches[entry.letter] = {
            "search": entry.folder.name,
            "path": str(entry.folder.path),
            "trials": len(entry.records),
            "epochs": entry.epochs,
            "seconds": entry.seconds,
            "running": entry.running,
            "best": top.number if top else None,
            "values": values(top, found.objectives) if top else None,
            "front": numbers,
        }
    return {
        "searches": searches,
        "objectives": [{"metric": o.metric, "mode": o.mode} for o in found.objectives],
        "warnings": [redact(text) for text in found.warnings],
        "caution": CAUTION,
        "reference": found.fronts.reference,
        "hypervolume": each(found.fronts.hypervolumes) | {"all": found.fronts.of_all},
        "coverage": {a: each(row) for a, row in each(found.fronts.coverage).items()},
        "matched": [
            {
                "unit": one.unit,
                "budget": one.budget,
                "searches": each([step and asdict(step) for step in one.steps]),
            }
            for one in found.matched
        ],
        "course": each([[asdict(step) for step in course] for course in found.courses]),
        "settings": [
            asdict(setting) | {"chosen": each([asdict(one) for one in setting.chosen])}
            for setting in found.settings
        ],
        "differences": {
            one.key: each([redact(value) for value in one.values]) for one in found.differences
        },
    }


def print_comparison(console: Console, found: Comparison) -> None:
    """Everything as tables that fit a narrow terminal."""
    for text in found.warnings:
        console.print(Text(redact(printable(text)), style="bold yellow"))
    tables = [_searches(found)]
    tables += [_fronts(found)] if len(found.objectives) > 1 else []
    tables += [_matched(found, one) for one in found.matched]
    tables += [_settings(found)] if found.shown_settings else []
    tables += [_differences(found)] if found.differences else []
    for table in tables:
        console.print(table)
        console.print()
    console.print(Text(CAUTION, style="italic"))


def effort_text(one: Matched) -> str:
    """`42 epochs`, or `3m12s of training`."""
    if one.unit == "epochs":
        return f"{one.budget:.0f} epochs"
    return f"{duration(one.budget)} of training"


def share_text(part: float | None, whole: float | None) -> str:
    """A hypervolume as a share of that of all fronts together; `-` where there is none."""
    return "-" if part is None or not whole else f"{part / whole:.1%}"


def _table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in columns:
        justify: Any = "right" if name in right else "left"
        table.add_column(name, justify=justify, overflow="fold")
    return table


def _searches(found: Comparison) -> Table:
    heads = ["trials", "epochs", *(o.metric for o in found.objectives)]
    table = _table("Searches, with the best trial of each", "", "search", *heads, right=heads)
    tops = [best(entry.records, found.objectives) for entry in found.entries]
    columns = [
        metric_column(o.metric, [top.last[o.metric] if top else None for top in tops], "-")
        for o in found.objectives
    ]
    for entry, *shown in zip(found.entries, *columns, strict=True):
        counts = [str(len(entry.records)), str(entry.epochs)]
        table.add_row(entry.letter, Text(redact(printable(entry.label))), *counts, *shown)
    return table


def _fronts(found: Comparison) -> Table:
    letters = [entry.letter for entry in found.entries]
    heads = ["trials", "hypervolume", *(f"beats of {letter}" for letter in letters)]
    table = _table("Pareto fronts; hypervolume of all together: 100%", "", *heads, right=heads)
    measured = zip(
        letters,
        found.fronts.numbers,
        found.fronts.hypervolumes,
        found.fronts.coverage,
        strict=True,
    )
    for letter, numbers, volume, row in measured:
        shares = ("-" if share is None else f"{share:.0%}" for share in row)
        shown = share_text(volume, found.fronts.of_all)
        table.add_row(letter, str(len(numbers)), shown, *shares)
    return table


def _matched(found: Comparison, one: Matched) -> Table:
    volume = ["hypervolume"] if len(found.objectives) > 1 else []
    heads = ["of trials", "best", *(o.metric for o in found.objectives), *volume]
    table = _table(f"The best after {effort_text(one)} each", "", *heads, right=heads)
    columns = [
        metric_column(o.metric, [step.values[index] if step else None for step in one.steps])
        for index, o in enumerate(found.objectives)
    ]
    for entry, step, *shown in zip(found.entries, one.steps, *columns, strict=True):
        if step is None:
            table.add_row(entry.letter, "0", *["-"] * (len(heads) - 1))
            continue
        if volume:
            shown.append(share_text(step.hypervolume, found.fronts.of_all))
        table.add_row(entry.letter, str(step.trials), f"{step.best:05d}", *shown)
    return table


def _settings(found: Comparison) -> Table:
    table = _table(SETTINGS, "setting", "", "of the best", "searched")
    for setting in found.shown_settings:
        name = printable(setting.key)
        for entry, one in zip(found.entries, setting.chosen, strict=True):
            mark = Text(printable(one.text), style="bold" if setting.moved else "")
            table.add_row(Text(name), entry.letter, mark, Text(redact(printable(one.domain))))
            name = ""
    return table


def _differences(found: Comparison) -> Table:
    table = _table(DIFFERENCES, "key", "", "value")
    for one in found.differences:
        name = one.key
        for entry, value in zip(found.entries, one.values, strict=True):
            table.add_row(Text(printable(name)), entry.letter, Text(redact(printable(value))))
            name = ""
    return table
