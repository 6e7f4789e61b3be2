"""The report's part on what mattered and what to search next."""

from collections.abc import Sequence
from html import escape

from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from search.effects import CLEAR, Effect, doubt
from search.insight import Finding, Insight
from search.report_effects import effect_plot, importance_bars, middle, shown_effects
from search.report_figures import Tree
from search.report_plots import COLOURS, figure, label, svg
from search.tracking_uri import redact
from search.wording import printable
from spaces.problems import shorten

_ROW_IN = 0.3  # height of a bar
_KEY_CHARS, _VALUE_CHARS = 30, 14


def insight_section(insight: Insight, live: dict[str, Tree]) -> str:
    """Hints, importances and effects as HTML.

    Args:
        insight: what was learnt.
        live: takes the plots for plotly, by name.
    """
    hints = "".join(f"<li>{escape(redact(hint.text))}</li>" for hint in insight.hints)
    parts = ["<h2>What mattered</h2>", f'<p class="lead">{escape(insight.basis)}</p>']
    for index, finding in enumerate(insight.objectives):
        parts.append(_finding(finding, index, live))
    if hints:
        parts.append(f'<h2>What to search next</h2><ul class="hints">{hints}</ul>')
    return "".join(parts)


def _finding(finding: Finding, index: int, live: dict[str, Tree]) -> str:
    noun = label(finding.metric).split(" (")[0].lower()
    bars = figure(
        f"Importance for {noun}",
        "How much each parameter sets the best quarter of the trials apart from all (PED-ANOVA).",
        _drawn(f"importance{index}", finding),
        '<ul class="key"><li><i style="background: var(--front)"></i>beyond chance</li>'
        '<li><i style="background: var(--stopped)"></i>may be chance</li></ul>',
        f"importance{index}",
    )
    live[f"importance{index}"] = importance_bars(finding.importances)
    plots = ""
    for place, effect in enumerate(shown_effects(finding)):
        name = f"effect{index}x{place}"
        still = _effect(name, effect, label(finding.metric))
        plots += figure(_name(effect.parameter, 2 * _KEY_CHARS), "", still, "", name)
        live[name] = effect_plot(effect, finding.metric)
    return (
        f'{bars}<p class="lead note">Mean {escape(noun)} by a parameter\'s value with its standard '
        "error and the number of trials, whatever the other parameters were:</p>"
        f'<div class="effects">{plots}</div>'
    )


def _drawn(name: str, finding: Finding) -> str:
    rows = finding.importances[::-1]

    def draw(axes: Axes) -> None:
        shares = [row.share or 0.0 for row in rows]
        sure = [row.p_value is not None and row.p_value <= CLEAR for row in rows]
        colours = [COLOURS["front" if clear else "stopped"] for clear in sure]
        axes.barh(range(len(rows)), shares, color=colours, height=0.62)
        _ticks(axes, [_name(row.parameter, _KEY_CHARS) for row in rows], horizontal=False)
        for place, row in enumerate(rows):
            text = doubt(row) if row.share is None else f"{row.share:.0%}"
            axes.annotate(
                text,
                (shares[place], place),
                (4, 0),
                textcoords="offset points",
                va="center",
                color=COLOURS["quiet"],
                fontsize=9,
            )
        axes.set_xlim(0.0, 1.12 * max([*shares, 0.1]))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(visible=False, axis="y")

    return svg(name, 0.6 + _ROW_IN * len(rows), draw)


def _effect(name: str, effect: Effect, ylabel: str) -> str:
    groups = [group for group in effect.groups if group.trials]
    listed = groups[0].low is None
    xs = [float(i) for i in range(len(groups))] if listed else [middle(g, effect) for g in groups]
    means = [group.mean or 0.0 for group in groups]
    errors = [group.error or 0.0 for group in groups]

    def draw(axes: Axes) -> None:
        if listed:
            axes.errorbar(xs, means, errors, fmt="o", ms=5, lw=1.4, color=COLOURS["finished"])
            names = [_name(g.value, _VALUE_CHARS) for g in groups]
            _ticks(axes, names, horizontal=True)
            axes.set_xlim(-0.5, len(groups) - 0.5)
        else:
            ends = list(zip(means, errors, strict=True))
            band = [m - e for m, e in ends], [m + e for m, e in ends]
            axes.fill_between(xs, *band, color=COLOURS["finished"], alpha=0.18, linewidth=0)
            axes.plot(xs, means, "o-", ms=4, lw=1.4, color=COLOURS["finished"])
            if effect.log:
                axes.set_xscale("log")
                # Matplotlib's own ticks write over each other below a decade.
                axes.xaxis.set_major_locator(FixedLocator([xs[0], xs[len(xs) // 2], xs[-1]]))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
                axes.xaxis.set_minor_formatter(NullFormatter())
        for x, mean, error, group in zip(xs, means, errors, groups, strict=True):
            axes.annotate(
                str(group.trials),
                (x, mean + error),
                (0, 3),
                textcoords="offset points",
                ha="center",
                color=COLOURS["quiet"],
                fontsize=8,
            )
        axes.margins(y=0.2)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_ylabel(ylabel)

    return svg(name, 2.3, draw, width_in=3.4)


def _name(value: object, num_chars: int) -> str:
    return shorten(redact(printable(value)), num_chars)


def _ticks(axes: Axes, names: Sequence[str], *, horizontal: bool) -> None:
    """Name the places of an axis with text as it is: no mathematics, any alphabet."""
    axis = axes.xaxis if horizontal else axes.yaxis
    axis.set_ticks(range(len(names)))
    axis.set_ticklabels(names, parse_math=False)
