"""Small plots as SVG whose colours are the page's CSS variables.

A report's still pictures are for print and for browsers without the script: a few paths, for which
a plotting library would take seconds.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
Tick = tuple[float, str]

POINTS_AN_INCH = 72
_FONT, _CHAR_WIDTH = 10.0, 5.8  # the reader's font is not known here: a wide one
_MOST_LOG_TICKS = 5
_MARGIN = 0.05
_TRIANGLE = 0.9  # a triangle's height by its width


@dataclass(frozen=True)
class Scale:
    """What an axis spans.

    Attributes:
        low: its lower end.
        high: its upper end, above the lower one.
        log: whether it is logarithmic; then both are above 0.
    """

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the lower end and 1 at the upper one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, *, whole: bool = False, most: int = 7) -> list[Tick]:
        """Round values with their texts.

        Args:
            whole: integers only.
            most: how many there may be.
        """
        if self.log:
            found = [t for t in log_ticks(self.low, self.high) if self.low <= t <= self.high]
            return [(tick, f"{tick:g}") for tick in found]
        span = self.high - self.low
        step = 10.0 ** math.floor(math.log10(span / most))
        step *= next(factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= most)
        step = max(1.0, step) if whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(place * step, f"{place * step:.6g}") for place in range(first, last + 1)]


def scale_of(
    values: Iterable[float], *, log: bool = False, margin: float = _MARGIN, zero: bool = False
) -> Scale:
    """A scale around values, with some room at its ends.

    Args:
        values: what is to be seen.
        log: whether it is logarithmic.
        margin: the room as a share of what they span.
        zero: begin at 0.
    """
    found = list(values)
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if zero:
        return Scale(0.0, high * (1 + margin) or 1.0)
    if log:
        room = (high / low) ** margin if high > low else 1.5
        return Scale(low / room, high * room, log=True)
    room = margin * (high - low) or abs(low) * margin or 0.5
    return Scale(low - room, high + room)


def log_ticks(low: float, high: float) -> list[float]:
    """Up to five round values on a logarithmic axis, whose own labels run into each other."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low * 0.8 <= tick <= high * 1.25]
        if len(ticks) <= _MOST_LOG_TICKS:
            return ticks
    return ticks[:: -(-len(ticks) // _MOST_LOG_TICKS)]


class Plot:
    """One drawing.

    Args:
        name: of its own on the page.
        size_in: width and height in inches.
        x: what is across.
        y: what is up.
        x_ticks: values and texts below it.
        y_ticks: values and texts beside it.
        labels: of both axes.
        rows: draw no lines at the values beside it: they name bars.
    """

    def __init__(
        self,
        name: str,
        size_in: tuple[float, float],
        x: Scale,
        y: Scale,
        x_ticks: Sequence[Tick],
        y_ticks: Sequence[Tick],
        labels: tuple[str, str] = ("", ""),
        *,
        rows: bool = False,
    ) -> None:
        self._name = name
        self._width, self._height = (POINTS_AN_INCH * inches for inches in size_in)
        self._x, self._y = x, y
        widest = max((len(text) for _, text in y_ticks), default=0)
        self._left = 8.0 + _CHAR_WIDTH * widest + (16.0 if labels[1] else 0.0)
        self._right, self._top = self._width - 10.0, 8.0
        self._bottom = self._height - (34.0 if labels[0] else 20.0)
        self._marks: list[str] = []
        self._frame = self._axes(x_ticks, y_ticks, labels, rows=rows)

    def place(self, point: Point) -> Point:
        """Where a point lies on the drawing, from its upper left corner."""
        across, up = self._x.share(point[0]), self._y.share(point[1])
        return (
            self._left + across * (self._right - self._left),
            self._bottom - up * (self._bottom - self._top),
        )

    def shares(self, point: Point) -> Point:
        """Where a point lies as shares of the axes."""
        return self._x.share(point[0]), self._y.share(point[1])

    def line(
        self, points: Iterable[Point], colour: str, width: float, opacity: float = 1.0
    ) -> None:
        """A line; a point that is no number leaves a gap."""
        path, down = [], False
        for point in points:
            if math.isfinite(point[0]) and math.isfinite(point[1]):
                path.append(f"{'L' if down else 'M'}{self._text(point)}")
                down = True
            else:
                down = False
        if path:
            self._marks.append(
                f'<path d="{"".join(path)}" fill="none" stroke="var(--{colour})" '
                f'stroke-width="{width:g}" stroke-linejoin="round" opacity="{opacity:g}"/>'
            )

    def area(self, points: Iterable[Point], colour: str, opacity: float) -> None:
        """What a closed line encloses."""
        path = "L".join(self._text(point) for point in points)
        self._marks.append(f'<path d="M{path}Z" fill="var(--{colour})" opacity="{opacity:g}"/>')

    def dots(
        self, points: Sequence[Point], colour: str, size: float, opacity: float, mark: str = "o"
    ) -> None:
        """Points in one path, as circles or triangles that point down (`v`)."""
        if not points:
            return
        if mark == "v":
            wide, high = size, size * _TRIANGLE
            places = (self.place(point) for point in points)
            path = "".join(
                f"M{x - wide / 2:.1f} {y - high / 2:.1f}h{wide:g}l{-wide / 2:g} {high:g}z"
                for x, y in places
            )
            looks = f'fill="var(--{colour})"'
        else:
            path = "".join(f"M{self._text(point)}h0" for point in points)
            looks = f'stroke="var(--{colour})" stroke-width="{size:g}" stroke-linecap="round"'
        self._marks.append(f'<path d="{path}" {looks} opacity="{opacity:g}"/>')

    def linked(
        self, point: Point, target: str, colour: str, size: float, opacity: float = 1.0
    ) -> None:
        """A point that leads to a place of the page."""
        x, y = self.place(point)
        self._marks.append(
            f'<a href="#{escape(target)}"><circle cx="{x:.1f}" cy="{y:.1f}" r="{size / 2:g}" '
            f'fill="var(--{colour})" stroke="var(--panel)" opacity="{opacity:g}"/></a>'
        )

    def bar(self, y: float, length: float, thickness: float, colour: str) -> None:
        """A bar from 0 to the right, its thickness in units of the axis."""
        (left, top), (right, bottom) = (
            self.place((0.0, y + thickness / 2)),
            self.place((length, y - thickness / 2)),
        )
        top, bottom = min(top, bottom), max(top, bottom)
        self._marks.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}" fill="var(--{colour})"/>'
        )

    def write(
        self,
        point: Point,
        text: str,
        colour: str,
        shift: Point = (0.0, 0.0),
        anchor: str = "end",
        size: float = _FONT,
        *,
        bold: bool = False,
    ) -> None:
        """A text beside a point; the shift is in points, to the right and down."""
        x, y = self.place(point)
        self._marks.append(
            _text_at(x + shift[0], y + shift[1], text, colour, anchor, size, bold=bold)
        )

    def svg(self) -> str:
        """The whole drawing."""
        width, height = self._right - self._left, self._bottom - self._top
        clip = f"{self._name}-inside"
        return (
            f'<svg viewBox="0 0 {self._width:g} {self._height:g}">'
            f'<clipPath id="{clip}"><rect x="{self._left - 4:.1f}" y="{self._top - 4:.1f}" '
            f'width="{width + 14:.1f}" height="{height + 8:.1f}"/></clipPath>{self._frame}'
            f'<g clip-path="url(#{clip})">{"".join(self._marks)}</g></svg>'
        )

    def _text(self, point: Point) -> str:
        x, y = self.place(point)
        return f"{x:.1f} {y:.1f}"

    def _axes(
        self,
        x_ticks: Sequence[Tick],
        y_ticks: Sequence[Tick],
        labels: tuple[str, str],
        *,
        rows: bool,
    ) -> str:
        left, right, top, bottom = self._left, self._right, self._top, self._bottom
        xs = [(self.place((value, self._y.low))[0], text) for value, text in x_ticks]
        ys = [(self.place((self._x.low, value))[1], text) for value, text in y_ticks]
        lines = "".join(f"M{x:.1f} {top:.1f}V{bottom:.1f}" for x, _ in xs)
        lines += "" if rows else "".join(f"M{left:.1f} {y:.1f}H{right:.1f}" for y, _ in ys)
        frame = f"M{left:.1f} {top:.1f}V{bottom:.1f}H{right:.1f}"
        parts = [f'<path d="{lines}{frame}" fill="none" stroke="var(--grid)" stroke-width=".6"/>']
        parts += [_text_at(x, bottom + 13, text, "quiet", "middle") for x, text in xs]
        parts += [_text_at(left - 5, y + 3.5, text, "quiet", "end") for y, text in ys]
        middle = (left + right) / 2
        if labels[0]:
            parts.append(_text_at(middle, self._height - 5, labels[0], "quiet", "middle"))
        if labels[1]:
            height = (top + bottom) / 2
            label = _text_at(0.0, 0.0, labels[1], "quiet", "middle")
            parts.append(f'<g transform="translate(11 {height:.1f}) rotate(-90)">{label}</g>')
        return "".join(parts)


def _text_at(
    x: float,
    y: float,
    text: str,
    colour: str,
    anchor: str,
    size: float = _FONT,
    *,
    bold: bool = False,
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="var(--{colour})" font-size="{size:g}" '
        f'text-anchor="{anchor}"{weight}>{escape(text)}</text>'
    )
