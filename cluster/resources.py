"""What a trial asks Ray for, and how many trials fit at once."""

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from spaces.schema import Resources
from trainables.errors import InputError

T = TypeVar("T")

CAPACITY_VARIABLE = "SPIKETUNE_CAPACITY"
LOOK_S = 1.0


def capacity(present: Mapping[str, float]) -> dict[str, float]:
    """What a cluster has or can grow to: Ray tells of the machines that run already only.

    Args:
        present: the cluster's resources by Ray's names.

    Raises:
        InputError: the variable `SPIKETUNE_CAPACITY` is not like `CPU=64,GPU=8`.
    """
    found = dict(present)
    text = os.environ.get(CAPACITY_VARIABLE, "")
    for part in filter(None, text.split(",")):
        name, _, amount = part.partition("=")
        try:
            value = float(amount)
        except ValueError:
            value = math.nan
        if not name or not 0 <= value < math.inf:
            raise InputError(f"{CAPACITY_VARIABLE} must be like CPU=64,GPU=8, but got {text!r}")
        found[name] = max(value, found.get(name, 0.0))
    return found


def trial_processes(resources: Resources) -> int:
    """How many processes share a trial's batches; `processes: auto` takes one a whole GPU."""
    if resources.processes != "auto":
        return resources.processes
    return 1 if resources.gpus == "auto" else max(1, math.floor(resources.gpus))


def trial_resources(resources: Resources, available: Mapping[str, float]) -> dict[str, float]:
    """CPU and GPU of one trial.

    Args:
        resources: the search's `resources` section; `gpus: auto` takes one a process where there
            are that many.
        available: the cluster's resources by Ray's names.

    Raises:
        InputError: the cluster cannot hold one trial, or its processes cannot share what it has.
    """
    gpus, processes = resources.gpus, trial_processes(resources)
    if gpus == "auto":
        gpus = float(processes) if available.get("GPU", 0.0) >= processes else 0.0
    wanted = {"cpu": float(resources.cpus), "gpu": float(gpus)}
    for name, key in (("cpu", "CPU"), ("gpu", "GPU")):
        if wanted[name] > available.get(key, 0.0):
            raise InputError(
                f"resources.{name}s must be at most {available.get(key, 0.0):g} (what the cluster "
                f"has), but got {wanted[name]:g}"
            )
    _check_shares(processes, wanted)
    return wanted


def _check_shares(processes: int, wanted: Mapping[str, float]) -> None:
    if processes == 1:
        return
    if wanted["cpu"] < processes:
        raise InputError(
            f"resources.cpus must be at least {processes} (one a process), "
            f"but got {wanted['cpu']:g}"
        )
    if wanted["gpu"] not in (0.0, float(processes)):
        raise InputError(
            f"resources.gpus must be 0 or {processes} (one a process), but got {wanted['gpu']:g}"
        )


def concurrent_trials(
    resources: Resources, wanted: Mapping[str, float], available: Mapping[str, float]
) -> int:
    """How many trials run at once: as asked, but no more than fit."""
    shares = [
        available.get(key, 0.0) / wanted[name]
        for name, key in (("cpu", "CPU"), ("gpu", "GPU"))
        if wanted[name] > 0.0
    ]
    most = max(1, math.floor(min(shares) + 1e-9))
    return min(most, resources.concurrent) if resources.concurrent else most


class Lately(Generic[T]):
    """What a question was answered a moment ago: asked again only after `LOOK_S`."""

    def __init__(self, ask: Callable[[], T], clock: Callable[[], float] = time.monotonic) -> None:
        """Ask once.

        Args:
            ask: the question.
            clock: seconds that only go forward.
        """
        self._ask = ask
        self._clock = clock
        self._answer = ask()
        self._asked_s = clock()

    def __call__(self) -> T:
        """The answer."""
        if self._clock() - self._asked_s >= LOOK_S:
            self._answer = self._ask()
            self._asked_s = self._clock()
        return self._answer


class Slots:
    """How many trials may run now: it follows the cluster as machines come and go."""

    def __init__(
        self,
        resources: Resources,
        wanted: Mapping[str, float],
        present: Callable[[], Mapping[str, float]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at the cluster once.

        Args:
            resources: the search's `resources` section.
            wanted: what one trial asks for.
            present: asks for the cluster's resources by Ray's names.
            clock: seconds that only go forward.
        """
        self._count = Lately(
            lambda: concurrent_trials(resources, wanted, capacity(present())), clock
        )

    def __call__(self) -> int:
        """The number as of a moment ago."""
        return self._count()
