"""The report's part on what mattered and what to search next."""

from html import escape

from search.effects import CLEAR, Effect, doubt
from search.insight import Finding, Insight
from search.report_effects import effect_plot, importance_bars, middle, shown_effects
from search.report_figures import Tree
from search.report_plots import figure, label
from search.svg import Plot, Scale, scale_of
from search.tracking_uri import redact
from search.wording import printable
from spaces.problems import shorten

_ROW_IN = 0.3  # height of a bar
_KEY_CHARS, _VALUE_CHARS = 30, 14
_WIDTH_IN, _EFFECT_IN = 5.2, (3.4, 2.3)
_ROOM = 0.2  # above and below what an effect spans


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
    shares = [row.share or 0.0 for row in rows]
    x, y = Scale(0.0, 1.12 * max([*shares, 0.1])), Scale(-0.5, len(rows) - 0.5)
    plot = Plot(
        name,
        (_WIDTH_IN, 0.6 + _ROW_IN * len(rows)),
        x,
        y,
        [(share, f"{share:.0%}") for share, _ in x.ticks()],
        [(place, _name(row.parameter, _KEY_CHARS)) for place, row in enumerate(rows)],
        rows=True,
    )
    for place, row in enumerate(rows):
        clear = row.p_value is not None and row.p_value <= CLEAR
        plot.bar(place, shares[place], 0.62, "front" if clear else "stopped")
        text = doubt(row) if row.share is None else f"{row.share:.0%}"
        plot.write((shares[place], place), text, "quiet", (4.0, 3.0), "start", 9.0)
    return plot.svg()


def _effect(name: str, effect: Effect, ylabel: str) -> str:
    groups = [group for group in effect.groups if group.trials]
    listed = groups[0].low is None
    xs = [float(i) for i in range(len(groups))] if listed else [middle(g, effect) for g in groups]
    means = [group.mean or 0.0 for group in groups]
    ends = [(mean - (g.error or 0.0), mean + (g.error or 0.0))
            for mean, g in zip(means, groups, strict=True)]  # fmt: skip
    x = Scale(-0.5, len(groups) - 0.5) if listed else scale_of(xs, log=effect.log)
    y = scale_of([end for pair in ends for end in pair], margin=_ROOM)
    x_ticks = x.ticks(most=5)
    if listed:
        x_ticks = [(at, _name(g.value, _VALUE_CHARS)) for at, g in zip(xs, groups, strict=True)]
    elif effect.log:
        # A few ranges span too little for round values.
        x_ticks = [(at, f"{at:.2g}") for at in sorted({xs[0], xs[len(xs) // 2], xs[-1]})]
    plot = Plot(name, _EFFECT_IN, x, y, x_ticks, y.ticks(most=4), ("", ylabel))
    if listed:
        for at, (low, high) in zip(xs, ends, strict=True):
            plot.line([(at, low), (at, high)], "finished", 1.4)
    else:
        lows = [(at, low) for at, (low, _) in zip(xs, ends, strict=True)]
        highs = [(at, high) for at, (_, high) in zip(xs, ends, strict=True)]
        plot.area([*lows, *reversed(highs)], "finished", 0.18)
        plot.line(zip(xs, means, strict=True), "finished", 1.4)
    plot.dots(list(zip(xs, means, strict=True)), "finished", 4.5, 1.0)
    for at, (_, high), group in zip(xs, ends, groups, strict=True):
        plot.write((at, high), str(group.trials), "quiet", (0.0, -3.0), "middle", 8.0)
    return plot.svg()


def _name(value: object, num_chars: int) -> str:
    return shorten(redact(printable(value)), num_chars)
