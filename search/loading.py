"""Reads a ledger and verifies all of it: what cannot be trusted is refused, never passed on.

What we wrote is sealed; Optuna's own columns (state, values, parameters) are compared with it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine

from search.cycles import no_cycles
from search.database import LedgerError, reading
from search.records import PAUSED, Attempt, EpochRecord, Session, TrialRecord
from search.seal import SealError, unsealed

SCHEMA = 2
CHANGED = "changed"
EPOCH_PREFIX = "epoch:"
OPTUNA_STATES = {
    "running": "RUNNING",
    "paused": "RUNNING",
    "finished": "COMPLETE",
    "stopped": "COMPLETE",
    "failed": "FAIL",
}
HALF_CREATED = "half_created"


@dataclass
class RawTrial:
    """A trial's rows as they lie in the database."""

    trial_id: int
    number: Any
    state: Any
    attrs: dict[Any, Any] = field(default_factory=dict)
    values: dict[Any, Any] = field(default_factory=dict)
    params: dict[Any, tuple[Any, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """A whole ledger.

    Attributes:
        facts: what was kept about the search.
        sessions: its drivers so far.
        ids: the database's id of each trial.
        records: each trial by number.
        repairs: numbers of trials whose Optuna columns contradict what we wrote; ours is right.
        half_created: numbers of trials that another program began and nobody configured.
        changes: how many transactions the ledger has seen.
    """

    facts: dict[str, Any]
    sessions: tuple[Session, ...]
    ids: dict[int, int]
    records: dict[int, TrialRecord]
    repairs: tuple[int, ...]
    half_created: tuple[int, ...]
    changes: int


def trial_place(search_id: str, number: int, key: str) -> str:
    """What a trial's attribute is sealed for."""
    return f"{search_id}/{number}/{key}"


def study_place(name: str, key: str) -> str:
    """What a fact about a search is sealed for."""
    return f"{name}/{key}"


def params_digest(rows: Mapping[str, tuple[float, str]]) -> str:
    """Checksum of Optuna's parameter rows: name, internal value, distribution."""
    rowed = [[name, float(rows[name][0]), rows[name][1]] for name in sorted(rows)]
    return hashlib.sha256(json.dumps(rowed).encode()).hexdigest()[:16]


def find_study(engine: Engine, where: str, name: str) -> int:
    """The database's id of a search.

    Raises:
        LedgerError: it holds none of that name.
    """
    query = text("select study_id from studies where study_name = :name")
    with reading(engine) as connection:
        row = connection.execute(query, {"name": name}).one_or_none()
    if row is None:
        raise LedgerError(f"{where}: the ledger holds no search named {name!r}")
    return int(row[0])


def load(engine: Engine, where: str, study_id: int, name: str) -> Loaded:
    """Read a whole ledger in one consistent view.

    Raises:
        LedgerError: something was altered or is missing; the message names the place.
    """
    with no_cycles(), reading(engine) as connection:
        try:
            return Loader(connection, where, study_id, name).load()
        # A value that is sealed and yet not what it must be is another program's.
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise LedgerError(
                f"{where}: the ledger is damaged: {type(error).__name__}: {error}"
            ) from error


class Loader:
    """Reads one search from a database.

    Args:
        connection: a consistent view.
        where: the database's file or address, for messages.
        study_id: the search there.
        name: its name.
    """

    def __init__(self, connection: Connection, where: str, study_id: int, name: str) -> None:
        self._connection = connection
        self._where = where
        self._study_id = study_id
        self._name = name
        self._search_id = ""

    def load(self) -> Loaded:
        """Everything, verified.

        Raises:
            LedgerError: something was altered or is missing; the message names the place.
        """
        facts = self._facts()
        if facts.get("schema") != SCHEMA:
            raise LedgerError(
                f"{self._where}: a ledger's schema must be {SCHEMA}, but got "
                f"{facts.get('schema')!r}; use the version of spiketune that wrote it"
            )
        self._search_id = str(facts["search_id"])
        metrics = [objective["metric"] for objective in facts["objectives"]]
        self._check_directions(facts["objectives"])
        raw = self._raw_trials()
        known = int(facts["count"])
        numbers = [trial.number for trial in raw]
        if numbers != list(range(len(raw))) or len(raw) < known:
            raise self._damaged(f"it must hold trials 0 to {known - 1}, but holds {len(raw)}")
        half = tuple(t.number for t in raw[known:] if "trial" not in t.attrs)
        if len(half) != len(raw) - known:
            raise self._damaged(f"it must hold {known} trials, but holds {len(raw)}")
        records = {
            t.number: self._abandoned(t) if t.number in half else self._record(t) for t in raw
        }
        repairs = tuple(
            t.number
            for t in raw
            if t.number not in half and not self._agrees(t, records[t.number], metrics)
        )
        sessions = tuple(Session(**session) for session in facts.pop("sessions"))
        ids = {t.number: t.trial_id for t in raw}
        changes = self._rows("select changes from spiketune_leases where study_id = :study")
        seen = int(changes[0][0]) if changes else 0
        return Loaded(facts, sessions, ids, records, repairs, half, seen)

    def _rows(self, query: str) -> Sequence[Any]:
        return self._connection.execute(text(query), {"study": self._study_id}).fetchall()

    def _damaged(self, what: str) -> LedgerError:
        return LedgerError(
            f"{self._where}: the ledger is damaged: {what}; restore it from a copy (it is never "
            "overwritten)"
        )

    def _facts(self) -> dict[str, Any]:
        rows = self._rows(
            "select key, value_json from study_user_attributes where study_id = :study"
        )
        facts: dict[str, Any] = {}
        for key, value in rows:
            try:
                facts[key] = unsealed(study_place(self._name, key), value)
            except SealError as error:
                raise self._damaged(f"its {key!r} was altered") from error
        missing = {"schema", "search_id", "objectives", "count", "sessions"} - facts.keys()
        if missing:
            raise self._damaged(f"its {min(missing)!r} is missing")
        return facts

    def _check_directions(self, objectives: Sequence[Mapping[str, str]]) -> None:
        rows = self._rows(
            "select objective, cast(direction as varchar(16)) from study_directions "
            "where study_id = :study order by objective"
        )
        names = {"max": "MAXIMIZE", "min": "MINIMIZE"}
        if [tuple(r) for r in rows] != [(i, names[o["mode"]]) for i, o in enumerate(objectives)]:
            raise self._damaged("its directions are not those of its objectives")

    def _raw_trials(self) -> list[RawTrial]:
        rows = self._rows(
            "select trial_id, number, cast(state as varchar(16)) from trials "
            "where study_id = :study order by trial_id"
        )
        raw = {row[0]: RawTrial(*row) for row in rows}
        joined = "from {0} x join trials t on t.trial_id = x.trial_id where t.study_id = :study"
        for trial_id, key, value in self._rows(
            f"select x.trial_id, x.key, x.value_json {joined.format('trial_user_attributes')}"
        ):
            raw[trial_id].attrs[key] = value
        for trial_id, objective, value, kind in self._rows(
            "select x.trial_id, x.objective, x.value, cast(x.value_type as varchar(16)) "
            + joined.format("trial_values")
        ):
            raw[trial_id].values[objective] = value if kind == "FINITE" else kind
        for trial_id, name, value, distribution in self._rows(
            "select x.trial_id, x.param_name, x.param_value, x.distribution_json "
            + joined.format("trial_params")
        ):
            raw[trial_id].params[name] = (value, distribution)
        return [raw[trial_id] for trial_id in sorted(raw)]

    def _read(self, trial: RawTrial, key: str) -> Any:
        if key not in trial.attrs:
            raise self._damaged(f"trial {trial.number} has no {key!r}")
        try:
            return unsealed(trial_place(self._search_id, trial.number, key), trial.attrs[key])
        except SealError as error:
            raise self._damaged(f"{key!r} of trial {trial.number} was altered") from error

    def _record(self, trial: RawTrial) -> TrialRecord:
        made = self._read(trial, "trial")
        if params_digest(trial.params) != made["params_digest"]:
            raise self._damaged(f"the parameters of trial {trial.number} were altered")
        epochs, rated = self._epochs(trial)
        rates = self._read(trial, "layer_rates") if rated else {}
        outcome = self._read(trial, "outcome") if "outcome" in trial.attrs else {}
        if not outcome and trial.state != "RUNNING":
            raise self._damaged(f"trial {trial.number} has ended without an outcome")
        attempts = tuple(Attempt(**attempt) for attempt in self._read(trial, "attempts"))
        if not outcome and attempts and attempts[-1].reason == PAUSED:
            outcome = {"state": "paused", **self._read(trial, PAUSED)}
        if outcome and outcome["num_epochs"] != len(epochs):
            raise self._damaged(
                f"trial {trial.number} must have {outcome['num_epochs']} epochs, but has "
                f"{len(epochs)}"
            )
        if CHANGED in trial.attrs:
            made |= self._read(trial, CHANGED)
        return TrialRecord(
            number=trial.number,
            params=made["params"],
            config=made["config"],
            config_hash=made["config_hash"],
            state=outcome.get("state", "running"),
            reason=outcome.get("reason", ""),
            attempt=len(attempts),
            epochs=epochs,
            started_s=made["proposed_s"],
            ended_s=outcome.get("ended_s"),
            feasible=outcome.get("feasible", True),
            extra={
                "layer_rates": rates,
                **({"screen": made["screen"]} if "screen" in made else {}),
            },
            attempts=attempts,
        )

    def _epochs(self, trial: RawTrial) -> tuple[tuple[EpochRecord, ...], bool]:
        found = (k for k in trial.attrs if isinstance(k, str) and k.startswith(EPOCH_PREFIX))
        keys = sorted(found, key=lambda key: (len(key), key))
        epochs, rated = [], False
        for index, key in enumerate(keys, start=1):
            entry = self._read(trial, key)
            if key != f"{EPOCH_PREFIX}{index:04d}":
                raise self._damaged(f"trial {trial.number} lacks its epoch {index}")
            metrics = {name: float(value) for name, value in entry["metrics"].items()}
            notes = {name: entry.get(name, "") for name in ("spared", "host")}
            epochs.append(EpochRecord(index, metrics, entry["time_s"], **notes))
            rated = rated or entry["rates"]
        return tuple(epochs), rated

    def _abandoned(self, trial: RawTrial) -> TrialRecord:
        return TrialRecord(
            number=trial.number,
            params={},
            config={},
            config_hash="",
            state="failed",
            reason=HALF_CREATED,
            attempt=0,
            epochs=(),
            started_s=0.0,
            ended_s=0.0,
            extra={"layer_rates": {}},
        )

    def _agrees(self, trial: RawTrial, record: TrialRecord, metrics: Sequence[str]) -> bool:
        values = {}
        if record.state in ("finished", "stopped"):
            values = {index: record.last[metric] for index, metric in enumerate(metrics)}
        return trial.state == OPTUNA_STATES[record.state] and trial.values == values
