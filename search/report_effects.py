"""The report's plots of what mattered, for plotly."""

import math
from collections.abc import Sequence
from typing import Any

from search.effects import CLEAR, Effect, Group, Importance, doubt
from search.insight import Finding
from search.report_figures import Tree, bar, colour, drawn, plain, scatter
from search.report_plots import label

_NAME_CHARS, _VALUE_CHARS = 30, 14


def importance_bars(importances: Sequence[Importance]) -> Tree:
    """Each parameter's share, greatest on top; what may be chance is coloured apart."""
    sure = [row.p_value is not None and row.p_value <= CLEAR for row in importances]
    texts = [doubt(row) if row.share is None else f"{row.share:.0%}" for row in importances]
    bars = bar(
        orientation="h",
        x=[row.share or 0.0 for row in importances],
        y=list(range(len(importances))),
        text=texts,
        textposition="outside",
        cliponaxis=False,
        marker={"color": [colour("front" if clear else "stopped") for clear in sure]},
        customdata=[[_chance(row), row.trials] for row in importances],
        hovertemplate="%{x:.1%}<br>%{customdata[0]}<br>in %{customdata[1]} trials<extra></extra>",
    )
    return drawn(
        [bars],
        80 + 30 * len(importances),
        margin={"l": 56, "r": 50, "t": 8, "b": 36},
        xaxis={"tickformat": ".0%", "rangemode": "tozero", "automargin": True},
        yaxis={
            "tickvals": list(range(len(importances))),
            "ticktext": [plain(row.parameter, _NAME_CHARS) for row in importances],
            "autorange": "reversed",
            "automargin": True,
            "showgrid": False,
        },
    )


def shown_effects(finding: Finding) -> list[Effect]:
    """Effects that some trial shows, the most important parameter's first."""
    order = [row.parameter for row in finding.importances]
    effects = sorted(finding.effects, key=lambda e: order.index(e.parameter))
    return [effect for effect in effects if any(group.trials for group in effect.groups)]


def effect_plot(effect: Effect, metric: str) -> Tree:
    """An objective's mean by a parameter's value, with its standard error."""
    groups = [group for group in effect.groups if group.trials]
    listed = groups[0].low is None
    names = [
        plain(group.value if listed else f"{group.low!r} to {group.high!r}", 2 * _NAME_CHARS)
        for group in groups
    ]
    means = scatter(
        x=list(range(len(groups))) if listed else [middle(group, effect) for group in groups],
        y=[group.mean for group in groups],
        error_y={
            "type": "data",
            "array": [group.error or 0.0 for group in groups],
            "thickness": 1.4,
            "width": 4,
        },
        mode="markers+text" if listed else "lines+markers+text",
        text=[str(group.trials) for group in groups],
        textposition="top right",
        textfont={"size": 10},
        customdata=[[name, group.trials] for name, group in zip(names, groups, strict=True)],
        line={"color": colour("finished"), "width": 1.5},
        marker={"size": 7, "color": colour("finished")},
        hovertemplate="%{customdata[0]}: <b>%{y}</b><br>%{customdata[1]} trials<extra></extra>",
    )
    across: dict[str, Any] = {"tickformat": "~g", "nticks": 5}
    if listed:
        across = {
            "tickvals": list(range(len(groups))),
            "ticktext": [plain(group.value, _VALUE_CHARS) for group in groups],
            "range": [-0.5, len(groups) - 0.5],
        }
    elif effect.log:
        xs = [middle(group, effect) for group in groups]
        ticks = sorted({xs[0], xs[len(xs) // 2], xs[-1]})
        # A few ranges span too little for round values.
        across = {"type": "log", "tickvals": ticks, "ticktext": [f"{x:.2g}" for x in ticks]}
    return drawn(
        [means],
        240,
        margin={"l": 50, "r": 12, "t": 10, "b": 36},
        showlegend=False,
        xaxis=across | {"automargin": True},
        yaxis={"title": {"text": plain(label(metric))}, "tickformat": "~g", "automargin": True},
    )


def middle(group: Group, effect: Effect) -> float:
    """Where a range is drawn: the middle of its ends on the domain's scale."""
    low, high = group.low or 0.0, group.high or 0.0
    return math.sqrt(low * high) if effect.log else (low + high) / 2


def _chance(row: Importance) -> str:
    return "" if row.p_value is None else f"p {row.p_value:.3g} by shuffling"
