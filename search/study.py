"""The ledger: an Optuna study in which only the driver writes, with a copy in memory to read from.

A trial's parameters, state and final values are Optuna's own (any Optuna tool can open the study);
everything else is a user attribute: `config`, `attempt`, `reason`, `epoch:0003`, `layer_rates`.
Stopped trials are COMPLETE with the values of their last epoch, failed ones FAIL without values.
"""

import logging
import math
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import event
from sqlalchemy.engine import make_url

from search.records import EpochRecord, TrialRecord
from search.records import TrialState as OurState
from search.results import ObjectiveLike
from trainables.errors import InputError, SpiketuneError

logger = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 60.0
DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
EPOCH_PREFIX = "epoch:"


class LedgerError(SpiketuneError):
    """The ledger cannot be opened or does not say what it must."""


class Ledger:
    """All that is known of one search; not thread-safe, one writer.

    Reading is from memory, writing goes to the database first.
    """

    def __init__(self, study: optuna.Study, objectives: Sequence[ObjectiveLike]) -> None:
        """Load every trial; use `create` or `open`."""
        self._study = study
        self._storage = study._storage
        self._objectives = tuple(objectives)
        self._ids: dict[int, int] = {}
        self._records: dict[int, TrialRecord] = {}
        for trial in study.get_trials(deepcopy=False):
            self._ids[trial.number] = trial._trial_id
            self._records[trial.number] = _record(trial)

    @classmethod
    def create(
        cls, url: str, name: str, objectives: Sequence[ObjectiveLike], facts: Mapping[str, Any]
    ) -> "Ledger":
        """Start a new search's ledger.

        Args:
            url: SQLAlchemy URL of the database.
            name: the search's name, also the study's.
            objectives: metrics and modes; they become the study's directions.
            facts: what is kept about the search (specification, versions, seed).

        Raises:
            InputError: a search of that name is in this database already.
        """
        directions = [DIRECTIONS[o.mode] for o in objectives]
        try:
            study = optuna.create_study(
                storage=_storage(url), study_name=name, directions=directions
            )
        except optuna.exceptions.DuplicatedStudyError as error:
            raise InputError(
                f"a search named {name!r} exists already: choose another --name"
            ) from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([o.metric for o in objectives])
        for key, value in {"search_id": uuid.uuid4().hex, **facts}.items():
            study.set_user_attr(key, value)
        return cls(study, objectives)

    @classmethod
    def open(cls, url: str, name: str, objectives: Sequence[ObjectiveLike]) -> "Ledger":
        """Open an existing search's ledger.

        Raises:
            LedgerError: the database holds no such search or is damaged.
        """
        path = make_url(url).database
        if url.startswith("sqlite") and not (path and Path(path).is_file()):
            raise LedgerError(f"{path}: no such ledger")
        try:
            study = optuna.load_study(storage=_storage(url), study_name=name)
        except KeyError as error:
            raise LedgerError(f"the ledger holds no search named {name!r}") from error
        return cls(study, objectives)

    @property
    def facts(self) -> dict[str, Any]:
        """What was kept about the search when it was created."""
        return dict(self._study.user_attrs)

    @property
    def search_id(self) -> str:
        """Unique id of the search, whatever its name."""
        return str(self._study.user_attrs["search_id"])

    @property
    def records(self) -> list[TrialRecord]:
        """Every trial, in order of number."""
        return [self._records[number] for number in sorted(self._records)]

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
    ) -> TrialRecord:
        """Record a proposal as a running trial and give it the next number."""
        number = len(self._records)
        attrs = {
            "config": dict(config),
            "config_hash": config_hash,
            "attempt": 1,
            "proposed_s": time.time(),
        }
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs=attrs,
        )
        trial_id = self._storage.create_new_trial(self._study._study_id, template)
        trial = self._storage.get_trial(trial_id)
        if trial.number != number:
            raise LedgerError(
                f"trial {number} was recorded as {trial.number}: another driver writes this ledger"
            )
        self._ids[number] = trial_id
        self._records[number] = _record(trial)
        return self._records[number]

    def report(
        self,
        number: int,
        epoch: int,
        metrics: Mapping[str, float],
        layer_rates: Mapping[str, float] | None = None,
    ) -> bool:
        """Record an epoch once.

        Returns:
            False when that epoch is known already; the ledger keeps the first report.
        """
        record = self._records[number]
        if any(known.epoch == epoch for known in record.epochs):
            return False
        entry = EpochRecord(epoch, dict(metrics), time.time())
        payload = {"metrics": _jsonable(metrics), "time_s": entry.time_s}
        self._set(number, f"{EPOCH_PREFIX}{epoch:04d}", payload)
        if layer_rates is not None:
            self._set(number, "layer_rates", dict(layer_rates))
        epochs = tuple(sorted((*record.epochs, entry), key=lambda e: e.epoch))
        extra = dict(record.extra)
        if layer_rates is not None:
            extra["layer_rates"] = dict(layer_rates)
        self._records[number] = replace(record, epochs=epochs, extra=extra)
        return True

    def retry(self, number: int) -> TrialRecord:
        """Count one more attempt of a running trial."""
        record = self._records[number]
        self._set(number, "attempt", record.attempt + 1)
        self._records[number] = replace(record, attempt=record.attempt + 1)
        return self._records[number]

    def finish(
        self,
        number: int,
        state: OurState,
        reason: str,
        violations: Mapping[str, float] | None = None,
    ) -> TrialRecord:
        """Decide a trial's end; deciding it again changes nothing.

        Args:
            number: the trial.
            state: `finished`, `stopped` or `failed`; without finite objective values it is failed.
            reason: why, in one word.
            violations: by how much each outcome constraint is broken; 0 or less keeps it.
        """
        record = self._records[number]
        if record.state != "running":
            return record
        values = self._values(record) if state != "failed" else None
        if values is None and state != "failed":
            state, reason = "failed", f"missing_objective ({reason})"
        feasible = all(broken <= 0.0 for broken in (violations or {}).values())
        ended_s = time.time()
        outcome = {"state": state, "reason": reason, "feasible": feasible, "ended_s": ended_s}
        self._set(number, "outcome", outcome)
        for text, broken in (violations or {}).items():
            constraint = optuna.Trial(self._study, self._ids[number])
            constraint.set_constraint(text, math.inf if math.isnan(broken) else broken)
        final = TrialState.FAIL if values is None else TrialState.COMPLETE
        self._storage.set_trial_state_values(self._ids[number], final, values)
        self._records[number] = replace(
            record, state=state, reason=reason, ended_s=ended_s, feasible=feasible
        )
        return self._records[number]

    def close(self) -> None:
        """Release the database."""
        if isinstance(self._storage, RDBStorage):
            self._storage.remove_session()
            self._storage.engine.dispose()
        else:
            backend = getattr(self._storage, "_backend", None)
            if backend is not None:
                backend.remove_session()
                backend.engine.dispose()

    def _values(self, record: TrialRecord) -> list[float] | None:
        values = [record.last.get(o.metric, math.nan) for o in self._objectives]
        return values if all(math.isfinite(v) for v in values) else None

    def _set(self, number: int, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._ids[number], key, value)


def _storage(url: str) -> RDBStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not url.startswith("sqlite"):
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_TIMEOUT_S}})

    @event.listens_for(storage.engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        # WAL lets `best` and `status` read while the driver writes; FULL survives a power cut.
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    storage.engine.dispose()
    return storage


def _jsonable(metrics: Mapping[str, float]) -> dict[str, float | str]:
    # JSON has no NaN; the database column must stay valid JSON for other readers
    return {k: v if math.isfinite(v) else repr(float(v)) for k, v in metrics.items()}


def _record(trial: FrozenTrial) -> TrialRecord:
    attrs = trial.user_attrs
    outcome = attrs.get("outcome", {})
    if trial.state == TrialState.RUNNING:
        outcome = {}
    epochs = tuple(
        EpochRecord(
            int(key.removeprefix(EPOCH_PREFIX)),
            {name: float(value) for name, value in attrs[key]["metrics"].items()},
            attrs[key]["time_s"],
        )
        for key in sorted(attrs)
        if key.startswith(EPOCH_PREFIX)
    )
    return TrialRecord(
        number=trial.number,
        params=dict(trial.params),
        config=attrs["config"],
        config_hash=attrs["config_hash"],
        state=outcome.get("state", "running"),
        reason=outcome.get("reason", ""),
        attempt=attrs["attempt"],
        epochs=epochs,
        started_s=attrs["proposed_s"],
        ended_s=outcome.get("ended_s"),
        feasible=outcome.get("feasible", True),
        extra={"layer_rates": attrs.get("layer_rates", {})},
    )
