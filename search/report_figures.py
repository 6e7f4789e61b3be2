"""The report's plots for plotly: plain trees whose colours are the page's CSS variables.

What is pointed at is named by `customdata`, a trial's number: the page has its words once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from search.records import TrialRecord
from search.report_data import STATES, Moment, turns
from search.report_plots import (
    axis_words,
    curve_of,
    heights_that_matter,
    is_wide,
    label,
    number,
    quantity,
    short,
)
from search.results import ObjectiveLike, pareto
from search.svg import log_ticks, scale_of
from search.tracking_uri import redact
from search.wording import printable
from spaces.problems import shorten

Tree = dict[str, Any]
WORDS = {
    "finished": "ran to the end",
    "stopped": "stopped",
    "paused": "paused",
    "failed": "failed",
    "running": "not ended",
}
MARKS = {"finished": "circle", "stopped": "triangle-down", "paused": "diamond"}
_MOST_POINTS = 4_000  # of all learning curves together
_LEAST_A_CURVE = 6
_MOST_SQUEEZED = 3.0
_LABEL_CHARS = 40
_HOUR_S = 3600.0


def colour(name: str) -> str:
    """A colour that the page knows, light and dark."""
    return f"var(--{name})"


def plain(value: object, num_chars: int = _LABEL_CHARS) -> str:
    """A name or value as plotly shows it verbatim: it reads `<` and `&` as markup."""
    return escape(shorten(redact(printable(value)), num_chars), quote=False)


def drawn(traces: Sequence[Tree], height: int, **layout: Any) -> Tree:
    """A figure as plotly.js takes it; its looks are left to the page."""
    base: Tree = {
        "height": height,
        "margin": {"l": 56, "r": 14, "t": 30, "b": 46},
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
    }
    return {"data": list(traces), "layout": {**base, **layout}}


# Plotly's own classes look at each value of each trace: seconds for a large search.
def scatter(**fields: Any) -> Tree:
    """A trace of points or lines."""
    return {**fields, "type": "scatter"}


def bar(**fields: Any) -> Tree:
    """A trace of bars."""
    return {**fields, "type": "bar"}


def trial_words(
    record: TrialRecord,
    objectives: Sequence[ObjectiveLike],
    hide: Callable[[str], str] = redact,
) -> str:
    """What is shown where a trial is pointed at, its secrets hidden."""
    why = "" if record.reason in ("", "completed", record.state) else f" ({record.reason})"
    lines = [printable(f"{record.state}{why}, {len(record.epochs)} epochs")]
    lines += [
        f"{printable(label(o.metric).split(' (')[0])} {quantity(o.metric, record.last[o.metric])}"
        for o in objectives
        if o.metric in record.last
    ]
    lines += [f"{printable(short(k))} {printable(v)}" for k, v in record.params.items()]
    shown = [shorten(line, 2 * _LABEL_CHARS) for line in hide("\n".join(lines)).split("\n")]
    return f"<b>{record.name}</b> " + "<br>".join(escape(line, quote=False) for line in shown)


def trade_off(
    records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike], picks: Sequence[int]
) -> Tree:
    """The first objective against the second, or against the parameters where there is only one."""
    y = objectives[0].metric
    x = objectives[1].metric if len(objectives) > 1 else "params_m"
    points = {
        r.number: (r.last[x], r.last[y])
        for r in records
        if r.counts and math.isfinite(r.last.get(x, math.nan) + r.last.get(y, math.nan))
    }
    front = [r for r in pareto(records, objectives) if r.number in points]
    front = front if len(objectives) > 1 else front[:1]
    on_front = {r.number for r in front}
    traces = _scatters([r for r in records if r.number in points.keys() - on_front], points)
    line = sorted((points[r.number], r.number) for r in front)
    is_line = len(objectives) == 2  # a front over more axes is no line in this plane
    traces.append(
        scatter(
            x=[point[0] for point, _ in line],
            y=[point[1] for point, _ in line],
            customdata=[n for _, n in line],
            text=[str(n) if n in picks else "" for _, n in line],
            textposition="top left",
            textfont={"color": colour("front")},
            name="Pareto front" if len(objectives) > 1 else "best",
            mode="lines+markers+text" if is_line else "markers+text",
            line={
                "color": colour("front"),
                "width": 2,
                "shape": "hv" if is_line and objectives[1].mode == "min" else "vh",
            },
            marker={"size": 11, "line": {"width": 1, "color": colour("panel")}},
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    lows = [px for px, _ in points.values()]
    shown = heights_that_matter(records, points, on_front)
    return drawn(
        traces,
        440,
        xaxis=metric_axis(x, lows),
        yaxis=axis(label(y)) | focus(shown, [y for _, y in points.values()]),
    )


def learning_curves(
    records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike], best: int | None
) -> Tree:
    """The first objective over epochs, coloured by how each trial ended."""
    metric = objectives[0].metric
    most = max(_LEAST_A_CURVE, _MOST_POINTS // max(1, len(records)))
    traces = []
    for state in (*STATES[::-1], "best"):
        chosen = [r for r in records if (r.number == best if state == "best" else r.state == state)]
        xs: list[int | None] = []
        ys: list[float | None] = []
        numbers: list[int | None] = []
        for record in chosen:
            curve = curve_of(record, metric, most)
            xs += [epoch for epoch, _ in curve] + [None]
            ys += [value for _, value in curve] + [None]
            numbers += [record.number] * len(curve) + [None]
        if any(x is not None for x in xs):
            traces.append(
                scatter(
                    x=xs[:-1],
                    y=ys[:-1],
                    customdata=numbers[:-1],
                    name="best" if state == "best" else WORDS[state],
                    mode="lines+markers",
                    opacity=1.0 if state == "best" else 0.55,
                    line={
                        "color": colour("front" if state == "best" else state),
                        "width": 3 if state == "best" else 1.3,
                    },
                    marker={"size": 5 if state == "best" else 3},
                    connectgaps=False,
                    hovertemplate="epoch %{x}: <b>%{y}</b><br>%{hovertext}<extra></extra>",
                )
            )
    return drawn(traces, 380, xaxis=axis("Epoch"), yaxis=axis(label(metric)))


def best_so_far(
    records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike], moments: Sequence[Moment]
) -> Tree:
    """The first objective's best value over the time at which trials ended.

    Args:
        records: the trials whose points are drawn; of fewer than all, the line has its turns only.
        objectives: what was searched for, the first one leading.
        moments: the search's history.
    """
    unit_s, unit = time_unit(moments[-1].time_s if moments else 0.0)
    points = {m.trial: (m.time_s / unit_s, m.value) for m in moments}
    by_number = {r.number: r for r in records}
    drawn_ones = [by_number[m.trial] for m in moments if m.trial in by_number]
    traces = _scatters(drawn_ones, points)
    course = moments if len(drawn_ones) == len(moments) else turns(moments)
    traces.append(_steps(course, unit_s, [m.best for m in course], "best so far"))
    shown = [points[r.number][1] for r in drawn_ones if r.state == "finished"]
    return drawn(
        traces,
        380,
        xaxis=axis(f"Time since the start ({unit})"),
        yaxis=axis(label(objectives[0].metric)) | focus(shown, [m.value for m in moments]),
    )


def volume_so_far(moments: Sequence[Moment]) -> Tree:
    """The hypervolume of the Pareto front over time."""
    unit_s, unit = time_unit(moments[-1].time_s if moments else 0.0)
    volumes = [m.hypervolume for m in moments]
    traces = [_steps(moments, unit_s, volumes, "hypervolume", shown_in_legend=False)]
    return drawn(
        traces, 380, xaxis=axis(f"Time since the start ({unit})"), yaxis=axis("Hypervolume")
    )


def layer_rates(chosen: Sequence[tuple[str, Mapping[str, float]]], layers: Sequence[str]) -> Tree:
    """Firing rates of the chosen networks, one line a network.

    Args:
        chosen: each network's name and its rates by layer.
        layers: every layer, in the order of the deepest network.
    """
    names = ("front", "finished", "stopped", "paused", "failed", "quiet")
    traces = [
        scatter(
            x=[rates.get(layer) for layer in layers],
            y=list(range(len(layers))),
            mode="lines+markers",
            name=name,
            line={"color": colour(names[place % len(names)]), "width": 1.5},
            marker={"size": 7},
            text=[plain(layer) for layer in layers],
            hovertemplate="%{text}: <b>%{x}</b>",
        )
        for place, (name, rates) in enumerate(chosen)
    ]
    return drawn(
        traces,
        110 + 22 * len(layers),
        xaxis=axis("Spikes a neuron and timestep") | {"rangemode": "tozero"},
        yaxis=axis("")
        | {
            "tickvals": list(range(len(layers))),
            "ticktext": [plain(layer, 34) for layer in layers],
            "autorange": "reversed",
        },
    )


def _scatters(
    records: Sequence[TrialRecord], points: Mapping[int, tuple[float, float]]
) -> list[Tree]:
    """Faint points, one trace a fate."""
    found = []
    for state, mark in MARKS.items():
        own = [r for r in records if r.state == state]
        if own:
            found.append(
                scatter(
                    x=[points[r.number][0] for r in own],
                    y=[points[r.number][1] for r in own],
                    customdata=[r.number for r in own],
                    mode="markers",
                    name=WORDS[state],
                    marker={"symbol": mark, "size": 7, "color": colour(state), "opacity": 0.5},
                    hovertemplate="%{hovertext}<extra></extra>",
                )
            )
    return found


def _steps(
    moments: Sequence[Moment],
    unit_s: float,
    heights: Sequence[float | None],
    name: str,
    *,
    shown_in_legend: bool = True,
) -> Tree:
    return scatter(
        x=[m.time_s / unit_s for m in moments],
        y=list(heights),
        customdata=[m.trial for m in moments],
        mode="lines+markers",
        name=name,
        showlegend=shown_in_legend,
        line={"color": colour("front"), "width": 2, "shape": "hv"},
        marker={"size": 4},
        hovertemplate="<b>%{y}</b> with<br>%{hovertext}<extra></extra>",
    )


def axis(title: str, *, log: bool = False) -> Tree:
    """An axis with its name."""
    # Plotly's own format writes 0.0003 mJ as 300μ.
    tree: Tree = {"title": {"text": plain(title)}, "tickformat": "~g", "automargin": True}
    return tree | {"type": "log"} if log else tree


def metric_axis(metric: str, values: Sequence[float]) -> Tree:
    """An axis of a metric; where small energies have labels in µJ, values stay in mJ."""
    log = is_wide(values)
    name, ticks = axis_words(metric, values, log_ticks(min(values), max(values)) if log else [])
    if name != label(metric) and not log:
        _, ticks = axis_words(metric, values, [tick for tick, _ in scale_of(values).ticks()])
    places, texts = [tick for tick, _ in ticks], [text for _, text in ticks]
    return axis(name, log=log) | ({"tickvals": places, "ticktext": texts} if ticks else {})


def focus(heights: Sequence[float], every: Sequence[float]) -> Tree:
    """Show the heights that matter: trials stopped far off would squeeze them to a line."""
    if not heights or max(heights) <= min(heights):
        return {}
    spread = max(heights) - min(heights)
    if max(every) - min(every) <= _MOST_SQUEEZED * spread:
        return {}
    margin = 0.12 * spread
    return {"range": [min(heights) - margin, max(heights) + margin]}


def time_unit(seconds: float) -> tuple[float, str]:
    """Seconds of the unit that a time is told in, and its name."""
    return (_HOUR_S, "hours") if seconds > 1.5 * _HOUR_S else (60.0, "minutes")


def cell(metric: str, value: float) -> str:
    """A value in a table: enough digits to tell trials apart."""
    return number(metric, value, 4)
