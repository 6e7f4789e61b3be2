"""What each trial asks Ray for, by its predicted memory, and whether there is room for another.

How wrong predictions have proved is told by the ledger: every attempt that ended for want of memory
and was given a larger share says so. A resumed search knows it therefore, too.
"""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.cards import card_memory_mib, machines
from cluster.packing import GIB_MIB, MIB, Machine, Request, card_share, memory_bytes, together
from cluster.resources import (
    Lately,
    Slots,
    capacity,
    concurrent_trials,
    trial_processes,
    trial_resources,
)
from search.records import TrialRecord
from search.retries import SHARE_TOO_SMALL, num_too_small
from spaces.memory import Extremes, extremes
from spaces.schema import SearchSpec
from trainables.config import TrialConfig
from trainables.errors import InputError
from trainables.footprint import CUDA_CONTEXT_MIB, WORKER_MIB, DeviceType, predicted_memory

logger = logging.getLogger(__name__)

# How much larger a share is asked for after one was too small. Half as much again covers what a
# prediction may be off by without leaving most of a card empty.
GROWTH = 1.5
# Cards that are common, for a forecast where none is known.
_CARDS_GIB = (24.0, 80.0)
OUT_OF_MEMORY_ADVICE = (
    "set a smaller train.batch_size or train.eval_batch_size, train.recompute: true, or leave such "
    "networks out by a constraint"
)


def correction(records: Iterable[TrialRecord]) -> float:
    """By what predictions are multiplied: the attempts that were given too little say it.

    Several that failed for the same prediction count once: an attempt raises only what it was
    started with.
    """
    failed = sorted(
        (attempt.ended_s, attempt.started_s)
        for record in records
        for attempt in record.attempts
        if attempt.reason == SHARE_TOO_SMALL and attempt.ended_s is not None
    )
    known: list[tuple[float, float]] = [(-math.inf, 1.0)]
    for ended_s, started_s in failed:
        at_start = next(factor for time_s, factor in reversed(known) if time_s <= started_s)
        known.append((ended_s, max(known[-1][1], at_start * GROWTH)))
    return known[-1][1]


@dataclass(frozen=True)
class Packing:
    """Shares of a cluster's machines for trials of different sizes.

    Attributes:
        wanted: CPUs of a trial, and the cards it takes if their memory is not known.
        machines: where trials run.
        card_mib: memory of a card; None where trials do not share cards.
        smallest: what the smallest trial asks for.
        most: trials at once, if all were so small.
        common: bytes of memory that a trial asks for at least, on CPUs: as long as there is enough
            for all, workers of one kind serve every trial and are used again.
        largest_share: of a card, that the largest trial asks for.
    """

    wanted: Request
    machines: Sequence[Machine]
    card_mib: float | None
    smallest: Request
    most: int
    common: int = 0
    largest_share: float = 0.0

    def request(self, config: TrialConfig, factor: float = 1.0, steps: int = 0) -> dict[str, float]:
        """What a trial asks for.

        Args:
            config: the trial.
            factor: what predictions are multiplied by.
            steps: how often it has run out of a share.
        """
        asked = {"cpu": self.wanted["cpu"]}
        if self.card_mib is not None:
            safe_mib = predicted_memory(config, "cuda").safe_mib
            peak_mib = factor * safe_mib + CUDA_CONTEXT_MIB
            return asked | {"gpu": card_share(peak_mib, self.card_mib, steps)}
        if self.wanted["gpu"] > 0.0:
            return asked | {"gpu": self.wanted["gpu"]}
        largest = max(machine.memory for machine in self.machines)
        if math.isinf(largest):
            return asked
        peak_mib = factor * predicted_memory(config, "cpu").safe_mib + WORKER_MIB
        own = memory_bytes(peak_mib, largest, steps)
        return asked | {"memory": max(own, self.common)}

    @property
    def typical(self) -> int:
        """Trials at once, if each took as much as the mean of the smallest and the largest."""
        mean = (self.smallest.get("gpu", 0.0) + self.largest_share) / 2
        if self.card_mib is None or mean == 0.0:
            return self.most
        cards = sum(machine.gpus for machine in self.machines)
        return max(1, min(self.most, int(cards / mean)))

    def has_room(self, running: Sequence[Request], machines: Sequence[Machine]) -> bool:
        """Whether another trial may be chosen while some run or wait for their share of machines.

        At most one waits: the next is chosen when that one has its share, knowing more by then,
        and no stream of small trials keeps a large one from starting.
        """
        return not running or together([*running, self.smallest], machines)


class Shares:
    """What the trials of a running search ask for.

    Attributes:
        packing: by their predicted memory; None where all ask for the same.
    """

    packing: Packing | None = None

    def __init__(self, records: Iterable[TrialRecord]) -> None:
        """Learn from the trials of an earlier driver."""
        self._present: Callable[[], Sequence[Machine]] | None = None
        self._asked: dict[int, dict[str, float]] = {}
        self._factor = correction(records)

    def use(self, packing: Packing, present: Callable[[], Sequence[Machine]]) -> None:
        """Let trials ask for what their memory is predicted to be, on machines that come and go."""
        self.packing, self._present = packing, present

    def asked(self, record: TrialRecord) -> dict[str, Any]:
        """The part of a trial's assignment that says what it asks for."""
        if self.packing is None:
            return {}
        config = TrialConfig.model_validate(record.config)
        asked = self.packing.request(config, self._factor, num_too_small(record))
        self._asked[record.number] = asked
        return {"resources": asked}

    def have_room(self, running: Collection[int]) -> bool:
        """Whether another trial may be chosen while those of some numbers are under way."""
        if self.packing is None:
            return True
        asked = [self._asked[number] for number in sorted(running) if number in self._asked]
        machines = self._present() if self._present else self.packing.machines
        return self.packing.has_room(asked, machines)

    def can_grow(self, record: TrialRecord) -> bool:
        """Whether a trial that ran out of memory may try, once, with a larger share."""
        if self.packing is None or num_too_small(record):
            return False
        before = self._asked.get(record.number)
        config = TrialConfig.model_validate(record.config)
        return self.packing.request(config, self._factor * GROWTH, 1) != before

    def learn(self, records: Iterable[TrialRecord]) -> None:
        """Correct predictions after a share was too small."""
        self._factor = correction(records)
        logger.warning("a share was too small: memory predictions times %.2f", self._factor)


def make_packing(
    spec: SearchSpec,
    available: Mapping[str, float],
    present: Sequence[Machine],
    card_mib: float | None,
) -> Packing:
    """Decide how a search's trials share a cluster.

    Args:
        spec: the search.
        available: what the cluster has or can grow to, by Ray's names.
        present: the same, machine by machine.
        card_mib: memory of the smallest card; None where it is not known.

    Raises:
        InputError: the cluster cannot hold the largest trial, or its processes cannot share it.
    """
    wanted = trial_resources(spec.resources, available)
    most = concurrent_trials(spec.resources, wanted, available)
    # A head that runs no trials has memory, too.
    present = [one for one in present if one.cpus >= wanted["cpu"]] or present
    whole = Packing(wanted, present, None, dict(wanted), most)
    shares_cards = spec.resources.gpus == "auto" and wanted["gpu"] == 1.0
    if trial_processes(spec.resources) > 1:
        return whole
    if shares_cards and card_mib is not None:
        found = extremes(spec, "cuda")
        _check_fits(spec, found, CUDA_CONTEXT_MIB, card_mib, "card")
        packed = Packing(wanted, present, card_mib, {}, most)
        smallest = packed.request(found.smallest)
        most = concurrent_trials(spec.resources, {**wanted, **smallest}, available)
        share = packed.request(found.largest)["gpu"]
        return Packing(wanted, present, card_mib, smallest, most, largest_share=share)
    if wanted["gpu"] > 0.0:
        if shares_cards:
            logger.warning(
                "how much memory the cards have is not known, so each trial gets a whole one: "
                "resources.gpu_memory_gib says it"
            )
        return whole
    largest = max(machine.memory for machine in present)
    if math.isinf(largest):
        return whole
    found = extremes(spec, "cpu")
    _check_fits(spec, found, WORKER_MIB, largest / MIB, "machine")
    of_largest = whole.request(found.largest)["memory"]
    common = int(of_largest) if _all_fit(of_largest, most, present, wanted) else 0
    packed = replace(whole, common=common)
    return replace(packed, smallest=packed.request(found.smallest))


def packing_here(spec: SearchSpec) -> Packing:
    """How a search's trials share the cluster that this process is connected to.

    Raises:
        InputError: as `make_packing`.
    """
    import ray

    available = capacity(ray.cluster_resources())
    given = spec.resources.gpu_memory_gib
    card_mib = None if given is None else given * GIB_MIB
    is_shared = spec.resources.gpus == "auto" and trial_processes(spec.resources) == 1
    if card_mib is None and is_shared and available.get("GPU", 0.0) >= 1.0:
        card_mib = card_memory_mib()
    return make_packing(spec, available, machines(available), card_mib)


def slots_here(spec: SearchSpec, packing: Packing) -> Slots:
    """How many trials may run at once, as machines come and go, if each were the smallest."""
    import ray

    wanted = {**packing.wanted, **packing.smallest}
    return Slots(spec.resources, wanted, ray.cluster_resources)


def machines_here() -> Callable[[], Sequence[Machine]]:
    """The machines of the cluster that this process is connected to, as they come and go."""
    import ray

    return Lately(lambda: machines(capacity(ray.cluster_resources())))


def _all_fit(memory: float, most: int, machines: Sequence[Machine], wanted: Request) -> bool:
    """Whether as many trials fit as their CPUs allow, each with so much memory."""
    return together([{**wanted, "memory": memory}] * most, machines)


def _check_fits(
    spec: SearchSpec, found: Extremes, base_mib: float, has_mib: float, where: str
) -> None:
    device: DeviceType = "cuda" if where == "card" else "cpu"
    needed_mib = predicted_memory(found.largest, device).likely_mib + base_mib
    if needed_mib > has_mib:
        point = ", ".join(f"{key}={value}" for key, value in found.largest_params.items())
        known = ", or resources.gpus: 1 to try it all the same" if where == "card" else ""
        raise InputError(
            f"every trial must fit on a {where} of {has_mib / GIB_MIB:.1f} GiB, but one of "
            f"{point or spec.name} is predicted to need {needed_mib / GIB_MIB:.1f} GiB: "
            f"{OUT_OF_MEMORY_ADVICE}{known}"
        )


def forecast(spec: SearchSpec, machine_bytes: float) -> dict[str, Any]:
    """What is predicted of a search's memory, and how its trials would share cards and a machine.

    Args:
        spec: the search.
        machine_bytes: memory of the machine.

    Returns:
        `cpu` and `gpu`, each with `smallest_mib` and `largest_mib` of a trial, process included;
        `machine` and `cards`, each with `memory_gib` and `most` and `fewest` trials that fit.
    """
    on_cpu = _range_mib(spec, "cpu", WORKER_MIB)
    on_gpu = _range_mib(spec, "cuda", CUDA_CONTEXT_MIB)
    given = spec.resources.gpu_memory_gib
    cards = [
        {"memory_gib": gib}
        | {
            name: _on_card(mib, gib * GIB_MIB)
            for name, mib in zip(("most", "fewest"), on_gpu, strict=True)
        }
        for gib in ((given,) if given else _CARDS_GIB)
    ]
    whole = {
        name: int(machine_bytes // memory_bytes(mib, math.inf))
        for name, mib in zip(("most", "fewest"), on_cpu, strict=True)
    }
    return {
        "cpu": dict(zip(("smallest_mib", "largest_mib"), on_cpu, strict=True)),
        "gpu": dict(zip(("smallest_mib", "largest_mib"), on_gpu, strict=True)),
        "machine": {"memory_gib": machine_bytes / MIB / GIB_MIB, **whole},
        "cards": cards,
    }


def _range_mib(spec: SearchSpec, device: DeviceType, base_mib: float) -> tuple[float, float]:
    """What the smallest and the largest trial ask for, process included."""
    found = extremes(spec, device)
    low, high = (predicted_memory(c, device).safe_mib for c in (found.smallest, found.largest))
    return low + base_mib, high + base_mib


def _on_card(mib: float, card_mib: float) -> int:
    """Trials of a size on a card; 0 where one does not fit."""
    return int(1.0 / card_share(mib, card_mib)) if mib <= card_mib else 0
