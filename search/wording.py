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


def metric_text(name: str, value: float, *, named: bool = True) -> str:
    """A metric with its unit: `val_top1 97.22 %`, `energy 0.834 µJ`."""
    if name in _PERCENT:
        text = f"{value:.2f} %"
    elif name == "energy_mj":
        name = "energy"
        text = f"{value * 1e3:.3g} µJ" if value < MICRO else f"{value:.3g} mJ"
    elif name == "firing_rate":
        text = f"{value:.3f}"
    else:
        text = f"{value:.4g}"
    return f"{name} {text}" if named else text


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
