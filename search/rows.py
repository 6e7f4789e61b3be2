"""Writes a ledger's rows: sealed attributes, and the columns where Optuna's tools look."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any, cast

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Table, bindparam, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session as Transaction

from search import database
from search.database import LedgerError
from search.lease import Lease
from search.loading import EPOCH_PREFIX, OPTUNA_STATES, params_digest, study_place, trial_place
from search.records import PAUSED, EpochRecord, TrialRecord
from search.seal import sealed

# Optuna's tables without its objects: these ask for a trial anew at every attribute and parameter.
_TRIALS, _VALUES, _PARAMS, _ATTRS, _SYSTEM_ATTRS, _FACTS = (
    cast(Table, model.__table__)
    for model in (
        models.TrialModel,
        models.TrialValueModel,
        models.TrialParamModel,
        models.TrialUserAttributeModel,
        models.TrialSystemAttributeModel,
        models.StudyUserAttributeModel,
    )
)
_BEFORE = (
    select(_TRIALS.c.number)
    .where(_TRIALS.c.study_id == bindparam("study"), _TRIALS.c.trial_id < bindparam("trial"))
    .order_by(_TRIALS.c.trial_id.desc())
    .limit(1)
)


class Rows:
    """The rows of one search; every transaction begins by proving that the lease is held.

    Args:
        storage: where they are.
        study_id: the search there.
        name: its name.
        lease: its lease.
    """

    def __init__(self, storage: RDBStorage, study_id: int, name: str, lease: Lease) -> None:
        self.search_id = ""
        self.ids: dict[int, int] = {}
        self._storage = storage
        self._study_id = study_id
        self._name = name
        self._lease = lease
        self._path = database.sqlite_path(storage.url)
        self.is_refused = False
        dialect = sqlite if storage.engine.name == "sqlite" else postgresql
        self._upserts = {table: _upsert(dialect, table) for table in (_ATTRS, _SYSTEM_ATTRS)}

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """One transaction: all of it or nothing.

        Raises:
            LedgerError: it could not be written, or the lease is lost.
        """
        self.is_refused = True
        with database.writing(self._storage.engine) as transaction:
            changes = self._lease.fence(transaction)
            yield transaction
        self.is_refused = False
        database.note_changes(self._path, changes)

    def insert(
        self,
        transaction: Transaction,
        record: TrialRecord,
        distributions: Mapping[str, BaseDistribution],
    ) -> None:
        """Add a trial under its number.

        Raises:
            LedgerError: the number is taken.
        """
        rows = {
            name: (d.to_internal_repr(record.params[name]), distribution_to_json(d))
            for name, d in distributions.items()
        }
        made = {
            "params": dict(record.params),
            "params_digest": params_digest(rows),
            "config": dict(record.config),
            "config_hash": record.config_hash,
            "proposed_s": record.started_s,
        }
        if "screen" in record.extra:
            made["screen"] = record.extra["screen"]
        attrs = {"trial": made, "attempts": [asdict(a) for a in record.attempts]}
        connection = transaction.connection()
        trial = {
            "study_id": self._study_id,
            "number": record.number,
            "state": TrialState.RUNNING,
            "datetime_start": datetime.fromtimestamp(record.started_s),
        }
        found = connection.execute(insert(_TRIALS), trial).inserted_primary_key
        trial_id = int(found[0]) if found else -1
        before = connection.execute(_BEFORE, {"study": self._study_id, "trial": trial_id}).scalar()
        number = 0 if before is None else int(before) + 1
        if number != record.number:
            raise LedgerError(
                f"{database.shown(self._storage.url)}: trial {record.number} was recorded as "
                f"{number}: another program writes this ledger"
            )
        if rows:
            params = [
                {
                    "trial_id": trial_id,
                    "param_name": name,
                    "param_value": value,
                    "distribution_json": distribution,
                }
                for name, (value, distribution) in rows.items()
            ]
            connection.execute(insert(_PARAMS), params)
        self.ids[record.number] = trial_id
        for key, value in attrs.items():
            self.set(transaction, record.number, key, value)

    def seal(self, number: int, key: str, value: Any) -> dict[str, Any]:
        """A trial's attribute as it is written."""
        return sealed(trial_place(self.search_id, number, key), value)

    def set(self, transaction: Transaction, number: int, key: str, value: Any) -> None:
        """Write a trial's attribute."""
        self._put(transaction, _ATTRS, number, key, self.seal(number, key, value))

    def set_epoch(
        self, transaction: Transaction, number: int, epoch: EpochRecord, *, rated: bool
    ) -> None:
        """Write an epoch, and whether firing rates came with it."""
        entry = {"metrics": jsonable(epoch.metrics), "time_s": epoch.time_s, "rates": rated}
        notes = {"spared": epoch.spared, "host": epoch.host}
        entry |= {name: note for name, note in notes.items() if note}
        self.set(transaction, number, f"{EPOCH_PREFIX}{epoch.epoch:04d}", entry)

    def set_fact(self, transaction: Transaction, key: str, value: Any) -> None:
        """Replace a fact about the search."""
        text = json.dumps(sealed(study_place(self._name, key), value))
        where = (_FACTS.c.study_id == self._study_id) & (_FACTS.c.key == key)
        transaction.connection().execute(update(_FACTS).where(where).values(value_json=text))

    def set_end(
        self, transaction: Transaction, record: TrialRecord, violations: Mapping[str, float]
    ) -> None:
        """Write how a trial has ended, constraints as Optuna's sampler and tools read them."""
        outcome = {
            "state": record.state,
            "reason": record.reason,
            "feasible": record.feasible,
            "ended_s": record.ended_s,
            "num_epochs": len(record.epochs),
            "violations": jsonable(violations),
        }
        self.set(transaction, record.number, "outcome", outcome)
        for text, broken in violations.items():
            value = math.inf if math.isnan(broken) else broken
            self._put(transaction, _SYSTEM_ATTRS, record.number, f"constraints:{text}", value)

    def set_pause(self, transaction: Transaction, record: TrialRecord) -> None:
        """Write that a trial waits; it does as long as its last attempt says so."""
        waits = {
            "reason": record.reason,
            "feasible": record.feasible,
            "num_epochs": len(record.epochs),
        }
        self.set(transaction, record.number, PAUSED, waits)
        self.set(transaction, record.number, "attempts", [asdict(a) for a in record.attempts])

    def set_columns(
        self, transaction: Transaction, record: TrialRecord, values: Sequence[float] | None
    ) -> None:
        """Write a trial's state and values where Optuna's tools look for them."""
        trial_id, connection = self.ids[record.number], transaction.connection()
        connection.execute(delete(_VALUES).where(_VALUES.c.trial_id == trial_id))
        if values:
            stored = [models.TrialValueModel.value_to_stored_repr(value) for value in values]
            rows = [
                {"trial_id": trial_id, "objective": index, "value": value, "value_type": kind}
                for index, (value, kind) in enumerate(stored)
            ]
            connection.execute(insert(_VALUES), rows)
        changed: dict[str, Any] = {"state": TrialState[OPTUNA_STATES[record.state]]}
        if record.ended_s is not None:
            changed["datetime_complete"] = datetime.fromtimestamp(record.ended_s)
        where = _TRIALS.c.trial_id == trial_id
        connection.execute(update(_TRIALS).where(where).values(changed))

    def adopt(self, transaction: Transaction, record: TrialRecord) -> None:
        """Make a trial that another program began, and nobody configured, one of ours."""
        trial = transaction.get_one(models.TrialModel, self.ids[record.number])
        found = {p.param_name: (p.param_value, p.distribution_json) for p in trial.params}
        made = {
            "params": {},
            "params_digest": params_digest(found),
            "config": {},
            "config_hash": "",
            "proposed_s": record.started_s,
        }
        self.set(transaction, record.number, "trial", made)
        self.set(transaction, record.number, "attempts", [])
        self.set_end(transaction, record, {})

    def _put(
        self, transaction: Transaction, table: Table, number: int, key: str, value: Any
    ) -> None:
        row = {"trial_id": self.ids[number], "key": key, "value_json": json.dumps(value)}
        transaction.connection().execute(self._upserts[table], row)


def _upsert(dialect: Any, table: Table) -> Any:
    new = dialect.insert(table)
    where = [table.c.trial_id, table.c.key]
    return new.on_conflict_do_update(
        index_elements=where, set_={"value_json": new.excluded.value_json}
    )


def jsonable(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """Metrics as JSON, which has no NaN; the column must stay readable for others."""
    return {k: v if math.isfinite(v) else repr(float(v)) for k, v in metrics.items()}
