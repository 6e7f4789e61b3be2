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
from optuna.trial import TrialState, create_trial
from sqlalchemy.orm import Session as Transaction

from search import database
from search.database import LedgerError
from search.lease import Lease
from search.loading import EPOCH_PREFIX, OPTUNA_STATES, params_digest, study_place, trial_place
from search.records import PAUSED, EpochRecord, TrialRecord
from search.seal import sealed


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
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(record.params),
            distributions=dict(distributions),
            user_attrs={k: self.seal(record.number, k, v) for k, v in attrs.items()},
        )
        trial = self._storage._get_prepared_new_trial(self._study_id, template, transaction)
        if trial.number != record.number:
            raise LedgerError(
                f"{database.shown(self._storage.url)}: trial {record.number} was recorded as "
                f"{trial.number}: another program writes this ledger"
            )
        self.ids[record.number] = int(cast(Any, trial.trial_id))

    def seal(self, number: int, key: str, value: Any) -> dict[str, Any]:
        """A trial's attribute as it is written."""
        return sealed(trial_place(self.search_id, number, key), value)

    def set(self, transaction: Transaction, number: int, key: str, value: Any) -> None:
        """Write a trial's attribute."""
        self._storage._set_trial_attr_without_commit(
            transaction,
            models.TrialUserAttributeModel,
            self.ids[number],
            key,
            self.seal(number, key, value),
        )

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
        table = models.StudyUserAttributeModel
        where = (table.study_id == self._study_id) & (table.key == key)
        transaction.query(table).filter(where).update({"value_json": text})

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
            self._storage._set_trial_attr_without_commit(
                transaction,
                models.TrialSystemAttributeModel,
                self.ids[record.number],
                f"constraints:{text}",
                math.inf if math.isnan(broken) else broken,
            )

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
        trial = transaction.get_one(models.TrialModel, self.ids[record.number])
        trial.state = TrialState.RUNNING  # Optuna changes no other
        for value in list(trial.values):
            transaction.delete(value)
        transaction.flush()
        for index, number in enumerate(values or ()):
            self._storage._set_trial_value_without_commit(transaction, trial, index, number)
        trial.state = TrialState[OPTUNA_STATES[record.state]]
        if record.ended_s is not None:
            trial.datetime_complete = datetime.fromtimestamp(record.ended_s)

    def adopt(self, transaction: Transaction, record: TrialRecord) -> None:
        """Make a trial that another program began, and nobody configured, one of ours."""
        trial = transaction.get_one(models.TrialModel, self.ids[record.number])
        trial.state = TrialState.RUNNING
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


def jsonable(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """Metrics as JSON, which has no NaN; the column must stay readable for others."""
    return {k: v if math.isfinite(v) else repr(float(v)) for k, v in metrics.items()}
