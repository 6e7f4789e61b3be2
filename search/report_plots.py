"""The report's plots as inline SVG whose colours are the page's CSS variables."""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from search.records import TrialRecord, TrialState
from search.results import ObjectiveLike, pareto, rank, values
from search.wording import MICRO

# Stand-ins that become CSS variables, so that one drawing is legible on light and dark pages.
COLOURS = {
    "ink": "#010101",
    "quiet": "#010102",
    "grid": "#010103",
    "panel": "#010104",
    "finished": "#010105",
    "stopped": "#010106",
    "failed": "#010107",
    "front": "#010108",
}
_UNITS = {
    "val_top1": ("Validation accuracy", "%"),
    "val_top5": ("Validation top-5 accuracy", "%"),
    "val_loss": ("Validation loss", ""),
    "train_loss": ("Training loss", ""),
    "energy_mj": ("Energy", "mJ"),
    "sops_g": ("Synaptic operations", "G"),
    "firing_rate": ("Firing rate", ""),
    "params_m": ("Parameters", "M"),
    "images_per_s": ("Images", "/s"),
    "peak_memory_mib": ("Peak memory", "MiB"),
    "epoch_s": ("Epoch time", "s"),
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["grid"],
    "axes.labelcolor": COLOURS["quiet"],
    "xtick.color": COLOURS["quiet"],
    "ytick.color": COLOURS["quiet"],
    "text.color": COLOURS["ink"],
    "axes.grid": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "axes.linewidth": 0.8,
}
_MAX_CURVE_POINTS, _LEAST_CURVE_POINTS = 60, 6
_MAX_POINTS = 4000  # of all curves together: hundreds of trials would make the page heavy
_MAX_LINKED = 200  # links take more room than their points
# Room a name takes, as fractions of the axes.
_NAME_WIDTH, _NAME_HEIGHT = 0.07, 0.07


def label(metric: str) -> str:
    """A metric's name for people, with its unit."""
    name, unit = _UNITS.get(metric, (metric, ""))
    return f"{name} ({unit})" if unit else name


def number(metric: str, value: float, digits: int = 3) -> str:
    """A value for people: percentages to two places, others to so many digits."""
    return f"{value:.2f}" if _UNITS.get(metric, ("", ""))[1] == "%" else f"{value:.{digits}g}"


def quantity(metric: str, value: float) -> str:
    """A value with its unit; energies as small as digits' in µJ."""
    if metric == "energy_mj" and abs(value) < MICRO:
        return f"{number(metric, 1e3 * value)}\u202fµJ"
    unit = _UNITS.get(metric, ("", ""))[1]
    return f"{number(metric, value)}\u202f{unit}" if unit else number(metric, value)


def short(key: str) -> str:
    """A dotted key's last part in words."""
    return key.rpartition(".")[2].replace("_", " ")


def figure(title: str, caption: str, still: str, key: str, name: str) -> str:
    """A plot with its title and caption as HTML.

    Args:
        title: what it shows.
        caption: how to read it.
        still: a drawing or table that is shown until the script has drawn the plot, and printed.
        key: of the drawing's colours.
        name: of the plot in the page's data.
    """
    still = still.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    return (
        f"<figure><h2>{escape(title)}</h2><figcaption>{escape(caption)}</figcaption>"
        f'<div class="still">{key}{still}</div>'
        f'<div class="live" data-plot="{escape(name)}" data-title="{escape(title)}"></div></figure>'
    )


def trade_off(
    records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike], picks: Sequence[int]
) -> str:
    """First objective against the second for every trial, with the Pareto front.

    Args:
        records: every trial.
        objectives: two or more; the first two are drawn.
        picks: numbers of the trials to name first.
    """
    y, x = objectives[0].metric, objectives[1].metric
    # Later ones would only fill up the room: names are drawn in this order.
    front = sorted(pareto(records, objectives), key=lambda r: r.number not in picks)

    def draw(axes: Axes) -> None:
        points = _draw_front(axes, records, front, x, y)
        if len(objectives) == 2:  # a front over more axes is no line in this plane
            line = sorted(points[r.number] for r in front)
            axes.plot(
                [p[0] for p in line],
                [p[1] for p in line],
                color=COLOURS["front"],
                lw=1.6,
                alpha=0.6,
                drawstyle="steps-post" if objectives[1].mode == "min" else "steps-pre",
            )

    return svg("front", 3.6, draw)


def against_size(records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]) -> str:
    """The only objective against the number of parameters."""
    first = rank(records, objectives)[:1]
    y = objectives[0].metric

    def draw(axes: Axes) -> None:
        _draw_front(axes, records, first, "params_m", y)

    return svg("size", 3.6, draw)


def learning_curves(
    records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike], best_number: int | None
) -> str:
    """The first objective over epochs, one line a trial, coloured by how it ended."""
    metric = objectives[0].metric
    most = min(_MAX_CURVE_POINTS, max(_LEAST_CURVE_POINTS, _MAX_POINTS // max(1, len(records))))

    def draw(axes: Axes) -> None:
        for state, width in (("failed", 0.9), ("stopped", 0.8), ("finished", 1.1)):
            curves = [_curve(r, metric, most) for r in records if _drawn_as(r) == state]
            # One path with gaps: one a curve would repeat its style hundreds of times.
            joined = [point for curve in curves for point in (*curve, (math.nan, math.nan))]
            axes.plot(
                [x for x, _ in joined],
                [y for _, y in joined],
                color=COLOURS[state],
                lw=width,
                alpha=0.55,
            )
            single = [curve[0] for curve in curves if len(curve) == 1]
            axes.scatter(
                [x for x, _ in single],
                [y for _, y in single],
                s=6,
                color=COLOURS[state],
                alpha=0.7,
                linewidths=0,
            )
        chosen = next((r for r in records if r.number == best_number), None)
        if chosen is not None:
            curve = _curve(chosen, metric, most)
            axes.plot([x for x, _ in curve], [y for _, y in curve], color=COLOURS["front"], lw=2.2)
            if curve:
                axes.annotate(
                    chosen.name,
                    curve[-1],
                    (0, 6),
                    textcoords="offset points",
                    ha="right",
                    color=COLOURS["front"],
                    fontweight="bold",
                )
        axes.autoscale()
        axes.set_xlabel("Epoch")
        axes.set_ylabel(label(metric))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return svg("curves", 3.3, draw)


def best_so_far(records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]) -> str:
    """The first objective's best value over the time at which trials ended."""
    objective = objectives[0]
    better = max if objective.mode == "max" else min
    start_s = min((r.started_s for r in records), default=0.0)
    ended = sorted(
        (
            (r.ended_s - start_s, r, found[0])
            for r in records
            if r.ended_s is not None and (found := values(r, objectives)) is not None
        ),
        key=lambda entry: (entry[0], entry[1].number),
    )
    unit_s, unit = (3600.0, "hours") if ended and ended[-1][0] > 5400 else (60.0, "minutes")

    def draw(axes: Axes) -> None:
        points = {r.number: (time_s / unit_s, value) for time_s, r, value in ended}
        _scatter(axes, [r for _, r, _ in ended], points)
        bests = list(accumulate((value for *_, value in ended), better))
        axes.step(
            [time for time, _ in points.values()],
            bests,
            where="post",
            color=COLOURS["front"],
            lw=2.0,
        )
        _focus(axes, [points[r.number] for _, r, _ in ended if r.state == "finished"])
        axes.set_xlabel(f"Time since the start ({unit})")
        axes.set_ylabel(label(objective.metric))

    return svg("best", 3.3, draw)


def _draw_front(
    axes: Axes, records: Sequence[TrialRecord], front: Sequence[TrialRecord], x: str, y: str
) -> dict[int, tuple[float, float]]:
    points = {
        r.number: (r.last[x], r.last[y])
        for r in records
        if r.counts and math.isfinite(r.last.get(x, math.nan) + r.last.get(y, 0.0))
    }
    front = [r for r in front if r.number in points]
    on_front = {r.number for r in front}
    _scatter(axes, [r for r in records if r.number in points.keys() - on_front], points)
    dots = axes.scatter(
        [points[r.number][0] for r in front],
        [points[r.number][1] for r in front],
        s=46,
        color=COLOURS["front"],
        edgecolors=COLOURS["panel"],
        linewidths=1.0,
        zorder=4,
    )
    dots.set_urls([f"#t{r.name}" for r in front])
    lows = [px for px, _ in points.values()]
    if lows and 0 < min(lows) < max(lows) / 8:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _focus(
        axes,
        [
            points[r.number]
            for r in records
            if r.number in points and (r.state == "finished" or r.number in on_front)
        ],
    )
    _name_points(axes, [(points[r.number], r) for r in front])
    axes.set_xlabel(label(x))
    axes.set_ylabel(label(y))
    return points


def _focus(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Show the heights that matter: trials stopped far below would squeeze them to a line."""
    heights = [height for _, height in points]
    if heights and max(heights) > min(heights):
        margin = 0.12 * (max(heights) - min(heights))
        axes.set_ylim(min(heights) - margin, max(heights) + margin)


def _name_points(axes: Axes, points: Sequence[tuple[tuple[float, float], TrialRecord]]) -> None:
    named: list[tuple[float, float]] = []
    for point, record in points:
        across, up = axes.transAxes.inverted().transform(axes.transData.transform(point))
        if all(abs(across - u) > _NAME_WIDTH or abs(up - v) > _NAME_HEIGHT for u, v in named):
            named.append((across, up))
            axes.annotate(
                str(record.number),
                point,
                (-5, 5),
                textcoords="offset points",
                ha="right",
                color=COLOURS["front"],
                fontweight="bold",
                fontsize=9,
            )


def _scatter(
    axes: Axes, records: Sequence[TrialRecord], points: Mapping[int, tuple[float, float]]
) -> None:
    styles: tuple[tuple[TrialState, str, int], ...] = (("stopped", "v", 16), ("finished", "o", 20))
    for state, marker, size in styles:
        shown = [r for r in records if _drawn_as(r) == state]
        dots = axes.scatter(
            [points[r.number][0] for r in shown],
            [points[r.number][1] for r in shown],
            s=size,
            marker=marker,
            color=COLOURS[state],
            alpha=0.65,
            linewidths=0,
        )
        if len(records) <= _MAX_LINKED:
            dots.set_urls([f"#t{r.name}" for r in shown])


def _drawn_as(record: TrialRecord) -> TrialState:
    """Its state; one that waits looks as if it had been stopped."""
    return "stopped" if record.state == "paused" else record.state


def _curve(record: TrialRecord, metric: str, most: int) -> list[tuple[float, float]]:
    points = [
        (float(e.epoch), e.metrics[metric])
        for e in record.epochs
        if math.isfinite(e.metrics.get(metric, math.nan))
    ]
    stride = max(1, -(-len(points) // most))
    return points[:-1:stride] + points[-1:]


def svg(name: str, height_in: float, draw: Callable[[Axes], None], width_in: float = 5.2) -> str:
    """A drawing as SVG.

    Args:
        name: of its own on the page.
        height_in: inches.
        draw: draws on the only axes.
        width_in: inches.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The reader's font draws the text, not ours.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        draw(figure.add_subplot())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # Several drawings share the page, so each one's names get its own prefix.
    text = re.sub(r'<g id="[^"]+">', "<g>", text).replace("xlink:href", "href")
    text = text.replace(' id="', f' id="{name}-').replace("url(#", f"url(#{name}-")
    text = re.sub(r'href="#(?!t\d)', f'href="#{name}-', text)
    text = re.sub(r' (?:d|x|y)="[^"]*"', _rounded, text)
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    background = '<rect width="0" height="0"/>'
    return re.sub(r'<path d="[^"]*" style="fill: #ffffff[^"]*"/>', background, text)


def _rounded(found: re.Match[str]) -> str:
    """Coordinates to a tenth of a point: hundreds of curves would make the page heavy."""
    return re.sub(r"(\.\d)\d+", r"\1", found[0])
