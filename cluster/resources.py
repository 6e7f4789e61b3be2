"""What a trial asks Ray for, and how many trials fit at once."""

import math
from collections.abc import Mapping

from spaces.schema import Resources
from trainables.errors import InputError


def trial_resources(resources: Resources, available: Mapping[str, float]) -> dict[str, float]:
    """CPU and GPU of one trial.

    Args:
        resources: the search's `resources` section; `gpus: auto` takes one where there is one.
        available: the cluster's resources by Ray's names.

    Raises:
        InputError: no machine of the cluster can hold one trial.
    """
    gpus = resources.gpus
    if gpus == "auto":
        gpus = 1.0 if available.get("GPU", 0.0) >= 1.0 else 0.0
    wanted = {"cpu": float(resources.cpus), "gpu": float(gpus)}
    for name, key in (("cpu", "CPU"), ("gpu", "GPU")):
        if wanted[name] > available.get(key, 0.0):
            raise InputError(
                f"resources.{name}s must be at most {available.get(key, 0.0):g} (what the cluster "
                f"has), but got {wanted[name]:g}"
            )
    return wanted


def concurrent_trials(
    resources: Resources, wanted: Mapping[str, float], available: Mapping[str, float]
) -> int:
    """How many trials run at once: as asked, but no more than fit."""
    fits = [
        math.floor(available.get(key, 0.0) / wanted[name] + 1e-9)
        for name, key in (("cpu", "CPU"), ("gpu", "GPU"))
        if wanted[name] > 0.0
    ]
    most = max(1, min(fits))
    return min(most, resources.concurrent) if resources.concurrent else most
