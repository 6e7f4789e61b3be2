"""The ledger: an Optuna study in which only the driver writes, with a copy in memory to read from.

A trial's parameters, state and final values are Optuna's own (any Optuna tool can open the study);
everything else is a sealed user attribute: `trial` (parameters, configuration), `changed` (another
configuration), `attempts`, `epoch:0003`, `layer_rates`, `paused`, `outcome`. Stopped trials are
COMPLETE with the values of their last epoch, failed ones FAIL without. A change is one transaction.
"""

import logging
import math
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from sqlalchemy.orm import Session as Transaction

from search import database
from search.database import LedgerError
from search.founding import DIRECTIONS, found
from search.lease import Holder, Lease
from search.loading import CHANGED, SCHEMA, Loaded, find_study, load
from search.records import (
    Attempt,
    Outcome,
    Pause,
    Session,
    TrialRecord,
    all_ended,
    paused,
    proposed,
    used_s,
    with_epoch,
    with_last_ended,
)
from search.records import TrialState as OurState
from search.results import ObjectiveLike
from search.rows import Rows
from search.versions import versions

__all__ = ["DIRECTIONS", "Ledger", "LedgerError"]

logger = logging.getLogger(__name__)


class Ledger:
    """All that is known of one search; not thread-safe, one writer.

    Reading is from memory, writing goes to the database first.
    """

    def __init__(self, url: str, name: str) -> None:
        """Connect; use `create` or `open`."""
        self._holds = False  # the lease, and with it a session
        self._name = name
        self._path = database.sqlite_path(url)
        self._where = database.shown(url)
        if self._path is not None:
            database.check_file(self._path)
        self._noted = database.noted_changes(self._path)
        self._storage: RDBStorage = database.open_storage(url, create=False)
        self._engine = self._storage.engine
        try:
            self._study_id = find_study(self._engine, self._where, name)
            self._lease = Lease(self._engine, self._study_id, name)
            self._rows = Rows(self._storage, self._study_id, name, self._lease)
            self._take_in(load(self._engine, self._where, self._study_id, self._name))
        except BaseException:
            database.close_storage(self._storage)
            raise

    @classmethod
    def create(
        cls, url: str, name: str, objectives: Sequence[ObjectiveLike], facts: Mapping[str, Any]
    ) -> "Ledger":
        """Start a new search's ledger and hold its lease.

        Args:
            url: SQLAlchemy URL of the database.
            name: the search's name, also the study's.
            objectives: metrics and modes; they become the study's directions.
            facts: what is kept about the search (specification, seed).

        Raises:
            InputError: a search of that name is in this database already.
        """
        own = {
            "schema": SCHEMA,
            "search_id": uuid.uuid4().hex,
            "objectives": [{"metric": o.metric, "mode": o.mode} for o in objectives],
            "count": 0,
            "sessions": [],
        }
        found(url, name, objectives, {**facts, **own})
        return cls.open(url, name, write=True)

    @classmethod
    def open(
        cls,
        url: str,
        name: str,
        objectives: Sequence[ObjectiveLike] | None = None,
        *,
        write: bool = False,
        lossy: bool = False,
    ) -> "Ledger":
        """Open an existing search's ledger.

        Args:
            url: SQLAlchemy URL of the database.
            name: the search.
            objectives: what it must have been started with, when known.
            write: take the lease and repair what a crash or another program left.
            lossy: accept that the newest changes are lost with a damaged write-ahead log.

        Raises:
            LedgerError: the database holds no such search, or is damaged; names the file.
            LeaseHeldError: `write` is asked for and another driver is alive.
        """
        ledger = cls(url, name)
        try:
            given = [{"metric": o.metric, "mode": o.mode} for o in objectives or ()]
            if given and given != ledger.facts["objectives"]:
                raise LedgerError(
                    f"{ledger._where}: the search {name!r} must have the objectives {given}, but "
                    f"has {ledger.facts['objectives']}"
                )
            if not lossy:
                ledger._check_nothing_lost()
            if write:
                ledger.take()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def take(self) -> None:
        """Take the lease, repair what a crash or another program left, and begin a session.

        Raises:
            LeaseHeldError: another driver is alive; names its host and process.
        """
        before = self._lease.acquire()
        if self._lease.changes() != self._changes:  # a driver has written since this was read
            self._take_in(load(self._engine, self._where, self._study_id, self._name))
        self._holds = True
        now = time.time()
        seen = [e.time_s for r in self._records.values() for e in r.epochs]
        alive_s = before.beat_s if before is not None else max(seen, default=0.0)
        earlier = all_ended(self._sessions, min(alive_s, now))
        mine = Session(now, None, socket.gethostname(), os.getpid(), versions())
        self._repair((*earlier, mine))

    @property
    def facts(self) -> dict[str, Any]:
        """What was kept about the search when it was created."""
        return dict(self._facts)

    @property
    def search_id(self) -> str:
        """Unique id of the search, whatever its name."""
        return str(self._facts["search_id"])

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Every driver's time at this search, with the versions that ran."""
        return self._sessions

    @property
    def holder(self) -> Holder | None:
        """Who holds the lease, dead or alive."""
        return self._lease.holder()

    @property
    def lost(self) -> bool:
        """Whether another driver has taken the search over."""
        return self._lease.lost.is_set()

    @property
    def records(self) -> list[TrialRecord]:
        """Every trial, in order of number."""
        return list(self._records.values())  # they came in that order

    def used_s(self, now_s: float) -> float:
        """Seconds that drivers have spent on this search so far."""
        return used_s(self._sessions, now_s)

    def check_held(self) -> None:
        """Raise when another driver has taken the search over.

        Raises:
            LeaseLostError: names it.
        """
        self._lease.check()

    def record(self, number: int) -> TrialRecord:
        """One trial.

        Raises:
            KeyError: there is no such number.
        """
        return self._records[number]

    def add(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        config: Mapping[str, Any],
        config_hash: str,
        screen: Mapping[str, Any] | None = None,
    ) -> TrialRecord:
        """Record a proposal as a running trial, with how it was screened, under the next number."""
        started = Attempt(time.time(), len(self._sessions) - 1)
        record = proposed(len(self._records), params, config, config_hash, started, screen)
        with self._rows.writing() as transaction:
            self._rows.insert(transaction, record, distributions)
            self._rows.set_fact(transaction, "count", record.number + 1)
        self._records[record.number] = record
        return record

    def preview(
        self,
        number: int,
        epoch: int,
        metrics: Mapping[str, float],
        layer_rates: Mapping[str, float] | None = None,
    ) -> TrialRecord | None:
        """A trial as it would be with one more epoch, to decide by; None when that is known.

        Raises:
            MissingEpochError: an epoch between is missing.
        """
        return with_epoch(self._records[number], epoch, metrics, layer_rates, time.time())

    def report(
        self,
        number: int,
        epoch: int,
        metrics: Mapping[str, float],
        layer_rates: Mapping[str, float] | None = None,
        outcome: Outcome | Pause | None = None,
        spared: str = "",
        host: str = "",
    ) -> bool:
        """Record an epoch once, and in the same transaction what was decided on it.

        Args:
            number: the trial.
            epoch: 1 for the first.
            metrics: by name.
            layer_rates: firing rates by layer.
            outcome: how the trial ends with it, or waits from then on.
            spared: as of `EpochRecord`.
            host: as of `EpochRecord`.

        Returns:
            False when that epoch is known already; the ledger keeps the first report.
        """
        record = self.preview(number, epoch, metrics, layer_rates)
        if record is None or record.state != "running":
            return False
        last = replace(record.epochs[-1], spared=spared, host=host)
        record = replace(record, epochs=(*record.epochs[:-1], last))
        with self._rows.writing() as session:
            self._rows.set_epoch(session, number, last, rated=layer_rates is not None)
            if layer_rates is not None:
                self._rows.set(session, number, "layer_rates", dict(layer_rates))
            if isinstance(outcome, Pause):
                record = paused(record, outcome, time.time())
                self._rows.set_pause(session, record)
            elif outcome is not None:
                record = self._end(session, record, outcome)
        self._records[number] = record
        return True

    def retry(self, number: int) -> TrialRecord:
        """Record one more start of a running trial, or that a paused one goes on."""
        record = replace(self._records[number], state="running", reason="", feasible=True)
        started = Attempt(time.time(), len(self._sessions) - 1)
        return self._set_attempts(record, (*record.attempts, started))

    def interrupt(self, number: int, reason: str, *, charged: bool) -> TrialRecord:
        """Record why a running trial's attempt has ended, once."""
        record = self._records[number]
        if record.state != "running" or record.attempts[-1].reason:
            return record
        ended = with_last_ended(record.attempts, reason, time.time(), charged=charged)
        return self._set_attempts(record, ended)

    def change(
        self, number: int, config: Mapping[str, Any], config_hash: str, reason: str
    ) -> TrialRecord:
        """End a running trial's attempt, uncharged, and give the next one another configuration."""
        record = self._records[number]
        attempts = with_last_ended(record.attempts, reason, time.time())
        record = replace(record, attempts=attempts, config=dict(config), config_hash=config_hash)
        changed = {"config": record.config, "config_hash": config_hash}
        with self._rows.writing() as session:
            self._rows.set(session, number, CHANGED, changed)
            self._rows.set(session, number, "attempts", [asdict(a) for a in attempts])
        self._records[number] = record
        return record

    def finish(
        self,
        number: int,
        state: OurState,
        reason: str,
        violations: Mapping[str, float] | None = None,
    ) -> TrialRecord:
        """Decide a trial's end; deciding it again changes nothing. Arguments as of `Outcome`."""
        record = self._records[number]
        if record.has_ended:
            return record
        with self._rows.writing() as session:
            record = self._end(session, record, Outcome(state, reason, violations or {}))
        self._records[number] = record
        return record

    def close(self) -> None:
        """End the driver's time, give the lease back and release the database."""
        if self._holds:
            self._holds = False
            if not self.lost and not self._rows.is_refused:
                # The search is over or ends with its own error; a lease left is a dead driver's.
                with suppress(LedgerError):
                    self._end_session()
        # A database that has refused a change would have us wait for it again.
        self._lease.release(give_back=not self._rows.is_refused)
        database.close_storage(self._storage)

    def _check_nothing_lost(self) -> None:
        if self._noted > self._changes:
            raise LedgerError(
                f"{self._where}-wal: the write-ahead log is damaged or missing: the newest "
                f"{self._noted - self._changes} changes of the ledger are lost; restore that file "
                "from a copy, or continue without them by `spiketune resume --force`"
            )

    def _take_in(self, loaded: Loaded) -> None:
        self._facts = loaded.facts
        self._sessions = loaded.sessions
        self._rows.ids = dict(loaded.ids)
        self._rows.search_id = self.search_id
        self._records = dict(loaded.records)
        self._repairs = loaded.repairs
        self._half_created = loaded.half_created
        self._changes = loaded.changes

    def _repair(self, sessions: tuple[Session, ...]) -> None:
        """Begin a session and make Optuna's columns say again what we wrote."""
        with self._rows.writing() as transaction:
            self._rows.set_fact(transaction, "sessions", [asdict(s) for s in sessions])
            for number in (*self._repairs, *self._half_created):
                record = self._records[number]
                logger.warning("%s: trial %d is repaired", self._where, number)
                if number in self._half_created:
                    self._rows.adopt(transaction, record)
                self._rows.set_columns(transaction, record, self._final(record))
            self._rows.set_fact(transaction, "count", len(self._records))
        self._sessions = sessions
        self._repairs = self._half_created = ()

    def _end_session(self) -> None:
        sessions = all_ended(self._sessions, time.time())
        with self._rows.writing() as transaction:
            self._rows.set_fact(transaction, "sessions", [asdict(s) for s in sessions])
        self._sessions = sessions

    def _end(self, session: Transaction, record: TrialRecord, outcome: Outcome) -> TrialRecord:
        state, reason = outcome.state, outcome.reason
        if state != "failed" and self._values(record) is None:
            state, reason = "failed", f"missing_objective ({reason})"
        known = replace(record, state=state, reason=reason, feasible=outcome.feasible)
        record = replace(known, ended_s=time.time())
        self._rows.set_end(session, record, outcome.violations)
        self._rows.set_columns(session, record, self._final(record))
        return record

    def _set_attempts(self, record: TrialRecord, attempts: tuple[Attempt, ...]) -> TrialRecord:
        with self._rows.writing() as session:
            self._rows.set(session, record.number, "attempts", [asdict(a) for a in attempts])
        record = replace(record, attempts=attempts, attempt=len(attempts))
        self._records[record.number] = record
        return record

    def _final(self, record: TrialRecord) -> list[float] | None:
        return self._values(record) if record.state in ("finished", "stopped") else None

    def _values(self, record: TrialRecord) -> list[float] | None:
        values = [record.last.get(o["metric"], math.nan) for o in self._facts["objectives"]]
        return values if all(math.isfinite(v) for v in values) else None
