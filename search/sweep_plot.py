"""Accuracy and energy of one checkpoint over its timesteps, as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from search.wording import MICRO

if TYPE_CHECKING:
    from trainables.sweep import TimestepScore

_INK, _QUIET, _GRID = "#1f2328", "#59636e", "#d9dee3"
_ACCURACY, _ENERGY = "#0b62c4", "#b3541e"
_MAX_LABELS = 9
_STYLE: Any = {
    "font.size": 10,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _QUIET,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "text.color": _INK,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def draw_sweep(path: Path, scores: Sequence["TimestepScore"], name: str, split: str) -> None:
    """Draw accuracy and energy over timesteps, side by side; hollow where the blocks differ.

    Args:
        path: PNG or SVG by its suffix.
        scores: by timesteps.
        name: of the checkpoint, for the title.
        split: `val` or `test`.

    Raises:
        OSError: the file cannot be written.
    """
    unit, factor = ("µJ", 1e3) if scores[-1].evaluation.energy.energy_mj < MICRO else ("mJ", 1.0)
    part = {"val": "Validation", "test": "Test"}[split]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        figure.suptitle(f"{name} with fewer timesteps", x=0.01, ha="left", fontweight="bold")
        left, right = figure.subplots(1, 2)
        _draw(left, scores, [s.evaluation.top1 for s in scores], _ACCURACY, "{:.1f}")
        left.set_ylabel(f"{part} accuracy (%)")
        energies = [s.evaluation.energy.energy_mj * factor for s in scores]
        _draw(right, scores, energies, _ENERGY, "{:.3g}")
        right.set_ylim(bottom=0.0)
        right.set_ylabel(f"Energy an image ({unit})")
        foot = f"Energy: 45 nm, {scores[-1].evaluation.energy.convention}."
        if any(score.note for score in scores):
            foot += " Hollow: blocks of attention shorter than trained."
        figure.supxlabel(foot, x=0.01, ha="left", fontsize=8.5, color=_QUIET)
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw(
    axes: Axes, scores: Sequence["TimestepScore"], values: Sequence[float], colour: str, form: str
) -> None:
    steps = [score.timesteps for score in scores]
    axes.plot(steps, values, color=colour, lw=1.6)
    fills = ["white" if score.note else colour for score in scores]
    axes.scatter(steps, values, s=34, c=fills, edgecolors=colour, linewidths=1.6, zorder=3)
    stride = math.ceil(len(scores) / _MAX_LABELS)
    labelled = range(len(scores) - 1, -1, -stride)
    for index in labelled:
        axes.annotate(
            form.format(values[index]),
            (steps[index], values[index]),
            (-6, 5),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
    axes.margins(x=0.18, y=0.16)
    axes.set_xlabel("Timesteps")
    axes.set_xticks([steps[index] for index in labelled])
