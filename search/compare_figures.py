"""A comparison's plots for plotly; trials of several searches have numbers of their own there."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from search.compare import Entry, Step
from search.compare_settings import best_trials
from search.compare_tables import Comparison
from search.records import TrialRecord
from search.report_figures import (
    Tree,
    axis,
    colour,
    drawn,
    focus,
    metric_axis,
    plain,
    scatter,
    trial_words,
)
from search.report_parallel import Group, lines_of
from search.report_plots import label
from search.results import pareto, values

COLOURS = ("front", "finished", "stopped", "paused", "failed", "quiet")
_APART = 1_000_000  # more than any search has trials


def name_of(entry: Entry) -> str:
    """What the key of a plot calls a search."""
    return f"{entry.letter} {plain(entry.label, 24)}"


def line_colour(place: int) -> str:
    """The colour of the search at a place."""
    return colour(COLOURS[place])


def words_of(found: Comparison) -> dict[int, str]:
    """What is shown where a trial is pointed at."""
    return {
        number_of(place, record.number): (
            f"{name_of(entry)} {trial_words(record, found.objectives)}"
        )
        for place, entry in enumerate(found.entries)
        for record in entry.records
    }


def number_of(place: int, number: int) -> int:
    """A trial's number among those of all searches."""
    return place * _APART + number


def fronts_plot(found: Comparison) -> Tree:
    """The first two objectives of all trials, with each search's front."""
    y, x = (o.metric for o in found.objectives[:2])
    traces = []
    seen: list[TrialRecord] = []
    lead: list[float] = []
    for place, entry in enumerate(found.entries):
        known = [r for r in entry.records if values(r, found.objectives) is not None]
        front = sorted(pareto(known, found.objectives), key=lambda r: (r.last[x], r.last[y]))
        members = {record.number for record in front}
        rest = [record for record in known if record.number not in members]
        is_line = len(found.objectives) == 2  # a front over more axes is no line in this plane
        shape = "hv" if is_line and found.objectives[1].mode == "min" else "vh"
        traces.append(
            _points(place, entry, rest, x, y)
            | {"showlegend": False, "mode": "markers", "opacity": 0.45, "marker": {"size": 6}}
        )
        traces.append(
            _points(place, entry, front, x, y)
            | {
                "mode": "lines+markers" if is_line else "markers",
                "line": {"color": line_colour(place), "width": 2, "shape": shape},
                "marker": {"size": 9, "color": line_colour(place)},
            }
        )
        seen += known
        lead += [r.last[y] for r in known if r.state == "finished" or r.number in members]
    for trace in traces:
        trace["marker"]["color"] = trace["line"]["color"]
    across = [record.last[x] for record in seen]
    return drawn(
        [scatter(**trace) for trace in traces if trace["x"]],
        460,
        xaxis=metric_axis(x, across),
        yaxis=axis(label(y)) | focus(lead, [record.last[y] for record in seen]),
    )


def course_plot(found: Comparison, title: str, value: Callable[[Step], float | None]) -> Tree:
    """What each search had after how many epochs, and where all have had equally many."""
    traces = []
    for place, (entry, course) in enumerate(zip(found.entries, found.courses, strict=True)):
        heights = [value(step) for step in course]
        if not course:
            continue
        traces.append(
            scatter(
                # The line goes on to the last epoch that was trained.
                x=[*(step.epochs for step in course), entry.epochs],
                y=[*heights, heights[-1]],
                customdata=[number_of(place, s.best) for s in (*course, course[-1])],
                mode="lines",
                name=name_of(entry),
                line={"color": line_colour(place), "width": 2, "shape": "hv"},
                hovertemplate="epoch %{x}: <b>%{y}</b><br>best: %{hovertext}<extra></extra>",
            )
        )
    budget = found.matched[0].budget
    longest = max(entry.epochs for entry in found.entries) or 1
    mark = {
        "type": "line",
        "x0": budget,
        "x1": budget,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"color": colour("quiet"), "width": 1, "dash": "dot"},
    }
    return drawn(
        traces,
        380,
        shapes=[mark],
        xaxis=axis("Epochs trained by all trials") | {"range": [0.0, 1.04 * longest]},
        yaxis=axis(title),
    )


def settings_plot(found: Comparison) -> Tree | None:
    """The best trials' parameters, a line a trial in its search's colour."""
    groups, ranked = [], []
    for place, entry in enumerate(found.entries):
        chosen = [
            replace(record, number=number_of(place, record.number))
            for record in best_trials(entry, found.objectives)
        ]
        ranked += chosen
        members = {record.number for record in chosen}
        groups.append(Group(name_of(entry), line_colour(place), 1.8, 0.8, members))
    return lines_of(ranked, [s.key for s in found.settings], found.objectives, groups)


def share_of_all(found: Comparison) -> Callable[[Step], float | None]:
    """A step's hypervolume as a share of that of all fronts together."""
    whole = found.fronts.of_all or math.nan
    return lambda step: None if step.hypervolume is None else step.hypervolume / whole


def _points(
    place: int, entry: Entry, records: Sequence[TrialRecord], x: str, y: str
) -> dict[str, Any]:
    return {
        "x": [record.last[x] for record in records],
        "y": [record.last[y] for record in records],
        "customdata": [number_of(place, record.number) for record in records],
        "name": name_of(entry),
        "legendgroup": entry.letter,
        "line": {"color": line_colour(place)},
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
