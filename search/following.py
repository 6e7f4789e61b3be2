"""Reads a search's ledger again and again until its driver has gone."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from search.folder import SearchFolder
from search.lease import DEAD_AFTER_S, Holder, is_driven
from search.recorded import open_ledger
from search.records import TrialRecord
from spaces.schema import SearchSpec

_READING_SHARE = 10  # a ledger that takes long to read is read less often


@dataclass(frozen=True)
class Reading:
    """What a ledger says at one time.

    Attributes:
        spec: the search.
        search_id: the ledger's.
        records: its trials.
        holder: who holds its lease, dead or alive.
        used_s: seconds that drivers have spent on it.
        took_s: seconds that reading it took.
    """

    spec: SearchSpec
    search_id: str
    records: list[TrialRecord]
    holder: Holder | None
    used_s: float
    took_s: float

    @property
    def is_driven(self) -> bool:
        """Whether a driver may run it, as far as can be told from one look."""
        return is_driven(self.holder)


def read(folder: SearchFolder) -> Reading:
    """Read a search's ledger once.

    Raises:
        InputError: there is no such search.
        LedgerError: its ledger is missing or damaged.
    """
    began = time.monotonic()
    spec, ledger = open_ledger(folder)
    try:
        used_s, search_id = ledger.used_s(time.time()), ledger.search_id
        took_s = time.monotonic() - began
        return Reading(spec, search_id, ledger.records, ledger.holder, used_s, took_s)
    finally:
        ledger.close()


def readings(
    folder: SearchFolder,
    every_s: float,
    wait: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Reading]:
    """Read a ledger until no driver runs the search; that is the last reading.

    A driver that cannot be seen from here has gone when its heartbeat has stood still for long.

    Args:
        folder: of the search.
        every_s: seconds between two readings, more where a reading takes long.
        wait: takes so many seconds.
        clock: seconds that only go forward.

    Raises:
        InputError: there is no such search.
        LedgerError: its ledger is missing or damaged.
    """
    sign: tuple[str, float] | None = None
    since_s = clock()
    while True:
        found = read(folder)
        yield found
        holder = found.holder
        if holder is None or not found.is_driven:
            return
        if sign != (holder.token, holder.beat_s):
            sign, since_s = (holder.token, holder.beat_s), clock()
        elif holder.alive is None and clock() - since_s > DEAD_AFTER_S:
            return
        wait(max(every_s, _READING_SHARE * found.took_s))
