"""How numbers and parameters read to a person."""

from collections.abc import Mapping, Sequence
from typing import Any

from search.records import PAUSED, TrialRecord
from search.results import Mode, stopping_check

_PERCENT = ("val_top1", "val_top5", "test_top1", "test_top5")
STATE_STYLES = {
    "running": "cyan",
    "paused": "blue",
    "finished": "green",
    "stopped": "yellow",
    "failed": "red",
}
MICRO = 1e-2  # below this many mJ, µJ read better
_ALL_MICRO = 1.0  # and up to here beside such small ones


def metric_text(
    name: str, value: float, *, named: bool = True, beside: Sequence[float | None] = ()
) -> str:
    """A metric with its unit: `val_top1 97.22 %`, `energy 0.834 µJ`.

    Args:
        name: of the metric.
        value: in the metric's own unit.
        named: whether the name is told too.
        beside: the other values of a column, which share a unit with it where they can.
    """
    if name in _PERCENT:
        text = f"{value:.2f} %"
    elif name == "energy_mj":
        name = "energy"
        known = [value, *(other for other in beside if other is not None)]
        text = f"{value * 1e3:.3g} µJ" if value < MICRO or in_micro(known) else f"{value:.3g} mJ"
    elif name == "firing_rate":
        text = f"{value:.3f}"
    else:
        text = f"{value:.4g}"
    return f"{name} {text}" if named else text


def in_micro(energies_mj: Sequence[float]) -> bool:
    """Whether energies that share a unit read better in µJ than in mJ."""
    return bool(energies_mj) and min(energies_mj) < MICRO and max(energies_mj) < _ALL_MICRO


def metric_column(name: str, values: Sequence[float | None], missing: str = "") -> list[str]:
    """A metric's values for a table, in one unit where that reads well; `missing` for None."""
    return [
        missing if value is None else metric_text(name, value, named=False, beside=values)
        for value in values
    ]


def check_text(records: Sequence[TrialRecord], metric: str, mode: Mode) -> str:
    """What the trials that ran on say of early stopping; empty without any."""
    found = stopping_check(records, metric, mode)
    if found is None or not found.checked:
        return ""
    trials = "trial that was" if found.checked == 1 else "trials that were"
    reasons = (record.spared.spared for record in records if record.spared is not None)
    verb = PAUSED if any(reason.startswith(PAUSED) for reason in reasons) else "stopped"
    text = f"{found.checked} {trials} to be {verb} ran on as a check ({found.epochs} epochs more): "
    if not found.missed:
        return text + "none of them ended better than the best of the others."
    by = metric_text(metric, found.loss)
    return text + f"{found.missed} ended better than the best of the others, by up to {by}."


def describe_params(params: Mapping[str, Any]) -> str:
    """Parameters in one line, section names left out: `timesteps=4 width=64 lr=0.00312`."""
    return " ".join(f"{key.rpartition('.')[2]}={value_text(v)}" for key, v in params.items())


def value_text(value: object) -> str:
    """A parameter's value, floats to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def printable(value: object) -> str:
    """A parameter's value as one line that no terminal acts upon."""
    text = value_text(value)
    return text if text.isprintable() else repr(text)


def duration(seconds: float) -> str:
    """Seconds as `42s`, `3m12s`, `2h05m` or `4d06h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"
