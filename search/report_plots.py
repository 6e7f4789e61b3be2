"""The report's still plots, and how its metrics are named."""

import math
from collections.abc import Mapping, Sequence, Set
from html import escape
from itertools import accumulate, pairwise

from search.records import TrialRecord, TrialState
from search.results import ObjectiveLike, pareto, rank, values
from search.svg import Plot, Point, Scale, Tick, scale_of
from search.wording import MICRO, in_micro

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
_MAX_CURVE_POINTS, _LEAST_CURVE_POINTS = 60, 6
_MAX_POINTS = 4000  # of all curves together: hundreds of trials would make the page heavy
_MAX_LINKED = 200  # links take more room than their points
# Room a name takes, as fractions of the axes.
_NAME_WIDTH, _NAME_HEIGHT = 0.07, 0.07
_FRONT_IN, _COURSE_IN = (5.2, 3.6), (5.2, 3.3)
_LOG_RATIO = 8
_FOCUS_MARGIN = 0.12


def label(metric: str) -> str:
    """A metric's name for people, with its unit."""
    name, unit = _UNITS.get(metric, (metric, ""))
    return f"{name} ({unit})" if unit else name


def axis_words(
    metric: str, values: Sequence[float], ticks: Sequence[float]
) -> tuple[str, list[Tick]]:
    """Name of an axis and texts at its ticks: energies as small as digits' in µJ, as in texts.

    Args:
        metric: that the axis shows.
        values: all that it shows.
        ticks: where it is labelled, in the metric's own unit.
    """
    if metric == "energy_mj" and in_micro(values):
        return "Energy (µJ)", [(tick, f"{1e3 * tick:.6g}") for tick in ticks]
    return label(metric), [(tick, f"{tick:.6g}") for tick in ticks]


def is_wide(values: Sequence[float]) -> bool:
    """Whether values need a logarithmic axis."""
    return bool(values) and 0 < min(values) < max(values) / _LOG_RATIO


def heights_that_matter(
    records: Sequence[TrialRecord], points: Mapping[int, Point], on_front: Set[int]
) -> list[float]:
    """Heights of the trials that ran to the end or lead."""
    return [
        points[r.number][1]
        for r in records
        if r.number in points and (r.state == "finished" or r.number in on_front)
    ]


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
        f"<figure><h2>{escape(title)}</h2><figcaption>{escape(caption.rstrip())}</figcaption>"
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
    # A front over more axes is no line in this plane.
    later = {"min": True, "max": False}[objectives[1].mode] if len(objectives) == 2 else None
    return _front(records, front, x, y, "front", later=later)


def against_size(records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]) -> str:
    """The only objective against the number of parameters."""
    first = rank(records, objectives)[:1]
    return _front(records, first, "params_m", objectives[0].metric, "size", later=None)


def learning_curves(
    records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike], best_number: int | None
) -> str:
    """The first objective over epochs, one line a trial, coloured by how it ended."""
    metric = objectives[0].metric
    most = min(_MAX_CURVE_POINTS, max(_LEAST_CURVE_POINTS, _MAX_POINTS // max(1, len(records))))
    curves = {r.number: curve_of(r, metric, most) for r in records}
    points = [point for curve in curves.values() for point in curve]
    x, y = scale_of(epoch for epoch, _ in points), scale_of(value for _, value in points)
    plot = Plot(
        "curves", _COURSE_IN, x, y, x.ticks(whole=True), y.ticks(), ("Epoch", label(metric))
    )
    for state, width in (("failed", 0.9), ("stopped", 0.8), ("finished", 1.1)):
        own = [curves[r.number] for r in records if _drawn_as(r) == state]
        # One path with gaps: one a curve would repeat its style hundreds of times.
        joined = [point for curve in own for point in (*curve, (math.nan, math.nan))]
        plot.line(joined, state, width, 0.55)
        plot.dots([curve[0] for curve in own if len(curve) == 1], state, 2.5, 0.7)
    chosen = next((r for r in records if r.number == best_number), None)
    if chosen is not None and curves[chosen.number]:
        curve = curves[chosen.number]
        plot.line(curve, "front", 2.2)
        plot.write(curve[-1], chosen.name, "front", (0.0, -6.0), bold=True)
    return plot.svg()


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
    points = {r.number: (time_s / unit_s, value) for time_s, r, value in ended}
    x = scale_of(time for time, _ in points.values())
    finished = [points[r.number][1] for _, r, _ in ended if r.state == "finished"]
    y = _focus(finished, [value for _, value in points.values()])
    labels = (f"Time since the start ({unit})", label(objective.metric))
    plot = Plot("best", _COURSE_IN, x, y, x.ticks(), y.ticks(), labels)
    _scatter(plot, [r for _, r, _ in ended], points)
    bests = accumulate((value for *_, value in ended), better)
    course = zip((time for time, _ in points.values()), bests, strict=True)
    plot.line(_stairs(list(course), later=True), "front", 2.0)
    return plot.svg()


def _front(
    records: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    x_metric: str,
    y_metric: str,
    name: str,
    *,
    later: bool | None,
) -> str:
    """Trials in a plane of two metrics, those of a front named and linked.

    Args:
        records: every trial.
        front: those that lead, in the order of their names' claim to room.
        x_metric: across.
        y_metric: up.
        name: of the drawing.
        later: whether the line between them rises after its step; None for no line.
    """
    points = {
        r.number: (r.last[x_metric], r.last[y_metric])
        for r in records
        if r.counts and math.isfinite(r.last.get(x_metric, math.nan) + r.last.get(y_metric, 0.0))
    }
    front = [r for r in front if r.number in points]
    on_front = {r.number for r in front}
    across = [px for px, _ in points.values()]
    matter = heights_that_matter(records, points, on_front)
    x = scale_of(across, log=is_wide(across))
    y = _focus(matter, [height for _, height in points.values()])
    x_name, x_ticks = axis_words(x_metric, across, [tick for tick, _ in x.ticks()])
    plot = Plot(name, _FRONT_IN, x, y, x_ticks, y.ticks(), (x_name, label(y_metric)))
    _scatter(plot, [r for r in records if r.number in points.keys() - on_front], points)
    if later is not None:
        line = sorted(points[r.number] for r in front)
        plot.line(_stairs(line, later=later), "front", 1.6, 0.6)
    for record in front:
        plot.linked(points[record.number], f"t{record.name}", "front", 6.8)
    _name_points(plot, [(points[r.number], r) for r in front])
    return plot.svg()


def _stairs(points: Sequence[Point], *, later: bool) -> list[Point]:
    """A line that changes in steps, at each point or (`later` is false) at the one before it."""
    found = list(points[:1])
    for before, point in pairwise(points):
        found += [(point[0], before[1]) if later else (before[0], point[1]), point]
    return found


def _focus(matter: Sequence[float], every: Sequence[float]) -> Scale:
    """Show the heights that matter: trials stopped far below would squeeze them to a line."""
    if matter and max(matter) > min(matter):
        return scale_of(matter, margin=_FOCUS_MARGIN)
    return scale_of(every)


def _name_points(plot: Plot, points: Sequence[tuple[Point, TrialRecord]]) -> None:
    named: list[Point] = []
    for point, record in points:
        across, up = plot.shares(point)
        if all(abs(across - u) > _NAME_WIDTH or abs(up - v) > _NAME_HEIGHT for u, v in named):
            named.append((across, up))
            plot.write(point, str(record.number), "front", (-5.0, -5.0), size=9.0, bold=True)


def _scatter(plot: Plot, records: Sequence[TrialRecord], points: Mapping[int, Point]) -> None:
    styles: tuple[tuple[TrialState, str, float], ...] = (
        ("stopped", "v", 4.0),
        ("finished", "o", 4.5),
    )
    for state, mark, size in styles:
        shown = [r for r in records if _drawn_as(r) == state]
        if len(records) > _MAX_LINKED:
            plot.dots([points[r.number] for r in shown], state, size, 0.65, mark)
            continue
        for record in shown:
            plot.linked(points[record.number], f"t{record.name}", state, size, 0.65)


def _drawn_as(record: TrialRecord) -> TrialState:
    """Its state; one that waits looks as if it had been stopped."""
    return "stopped" if record.state == "paused" else record.state


def curve_of(record: TrialRecord, metric: str, most: int) -> list[tuple[int, float]]:
    """A trial's epochs and values, thinned to about so many; the last one stays."""
    points = [
        (e.epoch, e.metrics[metric])
        for e in record.epochs
        if math.isfinite(e.metrics.get(metric, math.nan))
    ]
    stride = max(1, -(-len(points) // most))
    return points[:-1:stride] + points[-1:]
