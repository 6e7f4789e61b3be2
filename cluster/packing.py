"""Shares of cards and machines: how large a trial's is, and what fits together."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MIB = 2**20
GIB_MIB = 1024.0
# A card is shared in sixteenths: few kinds of shares, so that workers can be used again, and no
# more processes on a card than are worth their contexts.
CARD_PARTS = 16
# Likewise of a machine's memory.
MEMORY_STEP_MIB = 256
_ROUNDING = 1e-9

Request = Mapping[str, float]


@dataclass(frozen=True)
class Machine:
    """What one machine offers to trials.

    Attributes:
        cpus: CPUs.
        gpus: whole cards.
        memory: bytes; infinite where it is not counted.
    """

    cpus: float
    gpus: int = 0
    memory: float = math.inf


def card_share(peak_mib: float, card_mib: float, steps: int = 0) -> float:
    """The share of a card that a trial asks for.

    Args:
        peak_mib: what it takes of the card, context included.
        card_mib: what the card has.
        steps: how many steps larger, for a trial that ran out of memory.
    """
    parts = math.ceil(peak_mib / card_mib * CARD_PARTS - _ROUNDING) + steps
    return min(max(parts, 1), CARD_PARTS) / CARD_PARTS


def memory_bytes(peak_mib: float, machine_bytes: float, steps: int = 0) -> int:
    """The bytes of a machine's memory that a trial asks for, at most all of it; arguments as above.

    Args:
        peak_mib: what the trial's process takes.
        machine_bytes: what the largest machine has.
        steps: how many steps larger, for a trial that ran out of memory.
    """
    parts = math.ceil(peak_mib / MEMORY_STEP_MIB - _ROUNDING) + steps
    return int(min(max(parts, 1) * MEMORY_STEP_MIB * MIB, machine_bytes))


def together(requests: Iterable[Request], machines: Sequence[Machine]) -> bool:
    """Whether trials fit on machines at the same time, each put on the first that has room.

    Args:
        requests: `cpu`, `gpu` and `memory` of each, in the order in which they came.
        machines: what there is.
    """
    free = [_Free(machine) for machine in machines]
    return all(any(one.take(request) for one in free) for request in requests)


class _Free:
    """What is left of a machine."""

    def __init__(self, machine: Machine) -> None:
        self._cpus = machine.cpus + _ROUNDING
        self._memory = machine.memory
        self._cards = [1.0 + _ROUNDING] * machine.gpus

    def take(self, request: Request) -> bool:
        """Put a trial here if there is room."""
        cpus, memory, share = (request.get(name, 0.0) for name in ("cpu", "memory", "gpu"))
        whole = math.ceil(share - _ROUNDING) if share > 1.0 else 0
        cards = [n for n, left in enumerate(self._cards) if left >= (1.0 if whole else share)]
        if cpus > self._cpus or memory > self._memory or len(cards) < max(whole, share > 0.0):
            return False
        self._cpus -= cpus
        self._memory -= memory
        for card in cards[: whole or int(share > 0.0)]:
            self._cards[card] -= 1.0 if whole else share
        return True
