"""The lease: at most one driver writes a search's ledger.

A row names the holder (host, process, a secret token, a counter that beats every two seconds). It
changes hands by one conditional update, and each of the holder's transactions begins with one, so
a driver that was frozen and replaced writes nothing more. Clocks of two machines are never
compared: a foreign holder is dead when its counter has stood still while we watched.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.engine import Engine, RowMapping
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from search.database import LEASES, LedgerError, reading, writing
from trainables.errors import InputError

logger = logging.getLogger(__name__)

BEAT_S = 2.0
DEAD_AFTER_S = 6.0
_LOOK_S = 0.25
_alive_here: set[str] = set()  # tokens of this process's leases, from before they are taken


class LeaseHeldError(InputError):
    """Another driver runs this search."""


class LeaseLostError(LedgerError):
    """Another driver has taken this search over."""


@dataclass(frozen=True)
class Holder:
    """Who drives a search.

    Attributes:
        host: name of the machine.
        pid: process id there.
        process: boot, process namespace and start time; tells a reused id from the same process.
        since_s: when it took the search, Unix seconds by its own clock.
        beat_s: when it last gave a sign of life, by its own clock.
        token: what its transactions prove themselves with; empty for nobody.
    """

    host: str
    pid: int
    process: str
    since_s: float
    beat_s: float
    token: str

    @classmethod
    def here(cls) -> "Holder":
        """This process, with a new token."""
        now = time.time()
        return cls(
            socket.gethostname()[:255], os.getpid(), process_identity(), now, now, _new_token()
        )

    @property
    def alive(self) -> bool | None:
        """Whether its process runs; None when that cannot be seen from here."""
        mine, theirs = _parts(process_identity()), _parts(self.process)
        if self.host != socket.gethostname()[:255] or mine[:2] != theirs[:2] or not theirs[2]:
            return None
        is_running = _start_of(self.pid) == theirs[2]
        return is_running and (self.pid != os.getpid() or self.token in _alive_here)

    def __str__(self) -> str:
        """Host and process id, for messages."""
        return f"process {self.pid} on {self.host}"


class Lease:
    """One search's lease as this process sees it; `acquire` makes it ours.

    Args:
        engine: the ledger's database.
        study_id: the search there.
        name: the search's name, for messages.
    """

    def __init__(self, engine: Engine, study_id: int, name: str) -> None:
        self.lost = threading.Event()
        self._engine = engine
        self._study_id = study_id
        self._name = name
        self._mine = Holder.here()
        self._held = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def holder(self) -> Holder | None:
        """Who holds it, dead or alive; None when nobody does."""
        row = self._row()
        return _holder(row) if row is not None and row["token"] else None

    def changes(self) -> int:
        """The number of transactions this ledger has seen."""
        row = self._row()
        return int(row["changes"]) if row is not None else 0

    def acquire(self) -> Holder | None:
        """Take the lease and begin to beat; a dead holder's is taken over.

        Returns:
            The dead holder it was taken from.

        Raises:
            LeaseHeldError: another driver is alive; names its host and process.
        """
        _alive_here.add(self._mine.token)
        try:
            return self._acquire()
        except BaseException:
            _alive_here.discard(self._mine.token)
            raise

    def _acquire(self) -> Holder | None:
        watched: tuple[tuple[Any, Any], float] | None = None
        while True:
            row = self._row()
            before = _holder(row) if row is not None and row["token"] else None
            alive = False if before is None else before.alive
            if alive:
                raise self._refusal(before)
            if alive is None and row is not None:
                sign = (row["token"], row["beat"])
                if watched is None:
                    watched = (sign, time.monotonic())
                elif watched[0] != sign:
                    raise self._refusal(before)
                if time.monotonic() - watched[1] < DEAD_AFTER_S:
                    self._ended.wait(_LOOK_S)
                    continue
            if self._take(row):
                self._begin()
                return before

    def fence(self, session: Session) -> int:
        """Prove within a transaction that the lease is ours still, and count the transaction.

        Returns:
            The number of transactions this ledger has seen, this one included.

        Raises:
            LeaseLostError: it is not.
        """
        ours = (LEASES.c.study_id == self._study_id) & (LEASES.c.token == self._mine.token)
        beat = update(LEASES).where(ours)
        beat = beat.values(beat=LEASES.c.beat + 1, beat_s=time.time(), changes=LEASES.c.changes + 1)
        counted = session.connection().execute(beat.returning(LEASES.c.changes)).scalar()
        if not self._held or counted is None:
            self.lost.set()
            self.check()
        return int(counted or 0)

    def check(self) -> None:
        """Raise when the lease has been lost.

        Raises:
            LeaseLostError: another driver has it, or it was never taken.
        """
        if self.lost.is_set() or not self._held:
            holder = self.holder()
            raise LeaseLostError(
                f"only the driver that holds the search {self._name!r} may write its ledger, but "
                f"{holder or 'nobody'} holds it now; this driver ({self._mine}) has stopped"
            )

    def release(self, *, give_back: bool = True) -> None:
        """Stop beating; give it back, as far as it is ours, or leave it as a dead driver would."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        is_ours, self._held = self._held, False
        _alive_here.discard(self._mine.token)
        if not is_ours or not give_back:
            return
        ours = (LEASES.c.study_id == self._study_id) & (LEASES.c.token == self._mine.token)
        # Not given back, it looks like a dead driver's and is taken over as such.
        with suppress(LedgerError), writing(self._engine) as session:
            session.execute(update(LEASES).where(ours).values(token="", beat_s=time.time()))

    def _row(self) -> RowMapping | None:
        with reading(self._engine) as connection:
            query = select(LEASES).where(LEASES.c.study_id == self._study_id)
            return connection.execute(query).mappings().one_or_none()

    def _take(self, row: RowMapping | None) -> bool:
        """Make the row ours if it still is what was seen."""
        values = {
            "token": self._mine.token,
            "host": self._mine.host,
            "pid": self._mine.pid,
            "process": self._mine.process,
            "since_s": self._mine.since_s,
            "beat_s": time.time(),
        }
        if row is None:
            first = {"study_id": self._study_id, "beat": 0, "changes": 0, **values}
            try:
                with writing(self._engine) as session:
                    session.execute(insert(LEASES).values(first))
            except LedgerError as error:
                if isinstance(error.__cause__, IntegrityError):
                    return False
                raise
            return True
        seen = (
            (LEASES.c.study_id == self._study_id)
            & (LEASES.c.token == row["token"])
            & (LEASES.c.beat == row["beat"])
        )
        with writing(self._engine) as session:
            done = session.execute(
                update(LEASES).where(seen).values(beat=LEASES.c.beat + 1, **values)
            )
            return bool(done.rowcount == 1)  # type: ignore[attr-defined]

    def _begin(self) -> None:
        self._held = True
        self._thread = threading.Thread(target=self._beat, name="spiketune-lease", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        ours = (LEASES.c.study_id == self._study_id) & (LEASES.c.token == self._mine.token)
        while not self._ended.wait(BEAT_S):
            try:
                with Session(self._engine) as session, session.begin():
                    beat = update(LEASES).where(ours)
                    done = session.execute(beat.values(beat=LEASES.c.beat + 1, beat_s=time.time()))
                    if done.rowcount != 1:  # type: ignore[attr-defined]
                        self.lost.set()
                        return
            except SQLAlchemyError as error:
                # A store that is away for a moment: the next beat tells whether we were replaced.
                logger.info("the lease could not be renewed: %s", type(error).__name__)

    def _refusal(self, holder: Holder | None) -> LeaseHeldError:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since_s if holder else 0))
        return LeaseHeldError(
            f"one driver at a time may run a search, but {self._name!r} is run by {holder} since "
            f"{since}; wait for it, or end it there with `spiketune stop {self._name}`"
        )


def is_driven(holder: Holder | None) -> bool:
    """Whether a lease's holder may run its search, as far as can be told from one look."""
    return holder is not None and holder.alive is not False


def process_identity(pid: int | None = None) -> str:
    """Boot, process namespace and start time of a process (this one unless given), as JSON."""
    boot = namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return json.dumps([boot, namespace, _start_of(pid or os.getpid())])


def _start_of(pid: int) -> str:
    """Start time of a process in clock ticks since boot; empty when it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _parts(process: str) -> list[str]:
    try:
        boot, namespace, start = (str(part) for part in json.loads(process))
    except (ValueError, TypeError):
        return ["", "", ""]
    return [boot, namespace, start]


def _holder(row: RowMapping) -> Holder:
    return Holder(
        host=str(row["host"]),
        pid=int(row["pid"]),
        process=str(row["process"]),
        since_s=float(row["since_s"]),
        beat_s=float(row["beat_s"]),
        token=str(row["token"]),
    )


def _new_token() -> str:
    return secrets.token_hex(16)
