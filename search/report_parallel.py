"""The report's parallel coordinates: a line a trial through its parameters to its objectives.

Drawn as plain lines: plotly's own kind needs WebGL, which many a browser on a server lacks.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from search.records import TrialRecord
from search.report_figures import Tree, colour, drawn, plain, scatter
from search.report_plots import label, number, short
from search.results import ObjectiveLike, pareto, rank

_LOG_RATIO = 50
_MOST_VALUES = 9
_TOP = 1.0


@dataclass(frozen=True)
class _Axis:
    """One vertical: its name, each trial's height from 0 to 1, and what is written beside it."""

    name: str
    heights: Mapping[int, float]
    marks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Group:
    """Trials that are drawn alike: name in the key, colour, line, members' numbers."""

    name: str
    line: str
    width: float
    opacity: float
    members: Set[int]


def parallel(
    records: Sequence[TrialRecord],
    objectives: Sequence[ObjectiveLike],
    shown: Set[int] | None = None,
) -> Tree | None:
    """A line a trial; None where nothing differs.

    Args:
        records: every trial.
        objectives: what was searched for; they are the last axes.
        shown: numbers of the trials that are drawn; None for all.
    """
    ranked = rank(records, objectives)
    front = {r.number for r in pareto(records, objectives)}
    quarter = {r.number for r in ranked[: max(1, len(ranked) // 4)]} - front
    rest = {r.number for r in ranked} - front - quarter
    name = "Pareto front" if len(objectives) > 1 else "best"
    groups: tuple[Group, ...] = (
        Group("others", colour("quiet"), 1.0, 0.3, rest),
        Group("best quarter", colour("finished"), 1.4, 0.7, quarter),
        Group(name, colour("front"), 2.2, 0.9, front),
    )
    if shown is not None:
        groups = tuple(replace(group, members=group.members & shown) for group in groups)
    keys = list(dict.fromkeys(key for r in ranked for key in r.params))
    return lines_of(ranked, keys, objectives, groups)


def lines_of(
    ranked: Sequence[TrialRecord],
    keys: Sequence[str],
    objectives: Sequence[ObjectiveLike],
    groups: Sequence[Group],
) -> Tree | None:
    """A line a trial; None where nothing differs.

    Args:
        ranked: trials with a result.
        keys: parameters, the first axes.
        objectives: the last axes.
        groups: which trials are drawn, and how.
    """
    if len(ranked) < 2:
        return None
    axes = [_axis(short(key), {r.number: r.params[key] for r in ranked if key in r.params})
            for key in keys]  # fmt: skip
    axes = [axis for axis in axes if len(set(axis.heights.values())) > 1]
    axes += [_metric_axis(o.metric, ranked) for o in objectives]
    if len(axes) < 2:
        return None
    traces = [
        _lines(group, [r for r in ranked if r.number in group.members], axes)
        for group in groups
        if group.members
    ]
    marks = [
        {
            "x": place,
            "y": height,
            "text": text,
            "showarrow": False,
            "xanchor": "left",
            "xshift": 4,
            "font": {"size": 11},
            "bgcolor": colour("panel"),
            "opacity": 0.85,
        }
        for place, axis in enumerate(axes)
        for height, text in axis.marks
    ]
    places = list(range(len(axes)))
    tree = drawn(
        traces,
        420,
        annotations=marks,
        xaxis={
            "tickvals": places,
            "ticktext": [axis.name for axis in axes],
            "range": [-0.15, len(axes) - 0.4],
            "zeroline": False,
        },
        yaxis={"visible": False, "range": [-0.06, 1.06]},
    )
    # Narrower than this the axes' names run into each other: the figure scrolls by itself.
    tree["minWidth"] = 96 * len(axes)
    return tree


def _lines(group: Group, records: Sequence[TrialRecord], axes: Sequence[_Axis]) -> Any:
    xs: list[int | None] = []
    ys: list[float | None] = []
    numbers: list[int | None] = []
    for record in records:
        there = [(i, a.heights[record.number]) for i, a in enumerate(axes)
                 if record.number in a.heights]  # fmt: skip
        xs += [i for i, _ in there] + [None]
        ys += [round(height, 4) for _, height in there] + [None]
        numbers += [record.number] * len(there) + [None]
    return scatter(
        x=xs[:-1],
        y=ys[:-1],
        customdata=numbers[:-1],
        mode="lines+markers",
        name=group.name,
        opacity=group.opacity,
        line={"color": group.line, "width": group.width},
        marker={"size": 4},
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _metric_axis(metric: str, records: Sequence[TrialRecord]) -> _Axis:
    found = {r.number: r.last[metric] for r in records}
    axis = _numbers(found, lambda value: number(metric, value))
    return _Axis(plain(label(metric)), axis.heights, axis.marks)


def _axis(name: str, found: Mapping[int, Any]) -> _Axis:
    given = list(found.values())
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in given)
    distinct = list(dict.fromkeys(repr(v) for v in given))
    if numeric and (len(distinct) > _MOST_VALUES or any(isinstance(v, float) for v in given)):
        axis = _numbers(found, lambda value: f"{value:.3g}")
        return _Axis(plain(name), axis.heights, axis.marks)
    named = {repr(v): v for v in given}
    order = sorted(distinct, key=named.__getitem__ if numeric else str)
    places = {text: i / max(1, len(order) - 1) for i, text in enumerate(order)}
    marks = [(places[text], plain(named[text], 14)) for text in order]
    return _Axis(
        plain(name),
        {trial: places[repr(v)] for trial, v in found.items()},
        marks if len(marks) <= _MOST_VALUES else [marks[0], marks[-1]],
    )


def _numbers(found: Mapping[int, float], text: Callable[[float], str]) -> _Axis:
    low, high = min(found.values()), max(found.values())
    log = low > 0 and high / low > _LOG_RATIO
    scale: Callable[[float], float] = math.log if log else float
    if high == low:
        return _Axis("", dict.fromkeys(found, 0.5), [(0.5, text(low))])
    bottom, span = scale(low), scale(high) - scale(low)
    heights = {trial: (scale(value) - bottom) / span for trial, value in found.items()}
    return _Axis("", heights, [(0.0, text(low)), (_TOP, text(high))])
