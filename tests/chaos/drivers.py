"""Light drivers in processes of their own: they resume a search and then do as they are told."""

import ctypes
import multiprocessing.synchronize
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import forked
from ledgers import add_trial

from search import lease as leases
from search.folder import SearchFolder
from search.recorded import open_ledger
from search.study import Ledger
from spaces import SearchSpec
from trainables.errors import SpiketuneError

CLONE_NEWUTS = 0x04000000
TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Answer:
    """What a driver said.

    Attributes:
        pid: its process.
        error: why it was refused; empty if it was not.
        waited_s: how long it took to get the lease or the refusal.
        numbers: trials in its ledger.
    """

    pid: int
    error: str
    waited_s: float = 0.0
    numbers: tuple[int, ...] = ()


class Driver:
    """A driver that has been started; `ask` tells it what to do next.

    Args:
        runs: folder of the searches; it resumes the one named `made`.
        start: whoever waits there begins together.
        host: name of its machine, unless this one's.
        dead_after_s: how long a foreign holder may stand still.
    """

    def __init__(
        self,
        runs: Path,
        start: multiprocessing.synchronize.Barrier | None = None,
        host: str = "",
        dead_after_s: float = leases.DEAD_AFTER_S,
    ) -> None:
        self._mine, theirs = forked.context().Pipe()
        self.process = forked.context().Process(
            target=drive, args=(runs, theirs, start, host, dead_after_s), daemon=True
        )
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def answer(self) -> Answer:
        assert self._mine.poll(TIMEOUT_S), "a driver said nothing"
        found = self._mine.recv()
        assert isinstance(found, Answer)
        return found

    def tell(self, what: str) -> None:
        self._mine.send(what)

    def ask(self, what: str) -> Answer:
        self.tell(what)
        return self.answer()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        """Kill what is left of it."""
        self.process.kill()
        self.process.join(TIMEOUT_S)
        self._mine.close()


@contextmanager
def drivers(*made: Driver) -> Iterator[tuple[Driver, ...]]:
    """Drivers that are gone at the end."""
    try:
        yield made
    finally:
        for driver in made:
            driver.end()


def barrier(parties: int) -> multiprocessing.synchronize.Barrier:
    return forked.context().Barrier(parties)


def drive(
    runs: Path,
    told: Connection,
    start: multiprocessing.synchronize.Barrier | None,
    host: str,
    dead_after_s: float,
) -> None:
    """What a driver's process does: take the search, then obey until it is told to leave."""
    leases.DEAD_AFTER_S = dead_after_s
    if host:
        rename_host(host)
    if start is not None:
        start.wait(TIMEOUT_S)
    began = time.monotonic()
    try:
        spec, ledger = open_ledger(SearchFolder(runs, "made"), write=True)
    except SpiketuneError as error:
        told.send(Answer(os.getpid(), str(error), time.monotonic() - began))
        return
    told.send(_state(ledger, time.monotonic() - began))
    while (what := told.recv()) != "leave":
        told.send(_obey(what, spec, ledger))
    ledger.close()


def rename_host(name: str) -> None:
    """Be on another machine, as far as this process can tell.

    Raises:
        PermissionError: only root may.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUTS) != 0:
        raise PermissionError(ctypes.get_errno(), "unshare")
    socket.sethostname(name)


def may_rename_host() -> bool:
    process = forked.context().Process(target=rename_host, args=("elsewhere",))
    process.start()
    process.join(TIMEOUT_S)
    return process.exitcode == 0


def _obey(what: str, spec: SearchSpec, ledger: Ledger) -> Answer:
    try:
        assert what == "add"
        add_trial(spec, ledger, 16, 2)
    except SpiketuneError as error:
        return Answer(os.getpid(), str(error))
    return _state(ledger)


def _state(ledger: Ledger, waited_s: float = 0.0) -> Answer:
    return Answer(os.getpid(), "", waited_s, tuple(r.number for r in ledger.records))
