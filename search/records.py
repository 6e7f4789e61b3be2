"""What the ledger remembers of a trial, as plain values that every other part reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

TrialState = Literal["running", "paused", "finished", "stopped", "failed"]
PAUSED = "paused"  # why an attempt ended whose trial may go on later


@dataclass(frozen=True)
class EpochRecord:
    """One reported epoch.

    Attributes:
        epoch: 1 for the first.
        metrics: the reported metrics by name (`val_top1` in %, `energy_mj` in mJ, ...).
        time_s: when the driver received it, Unix seconds; the tracker keeps this timestamp.
        spared: why the stopping rule would have ended the trial here, had it not been chosen to
            run on as a check of the rule; else empty.
        host: name of the machine that trained it; empty if unknown.
    """

    epoch: int
    metrics: Mapping[str, float]
    time_s: float
    spared: str = ""
    host: str = ""


@dataclass(frozen=True)
class Attempt:
    """One start of a trial.

    Attributes:
        started_s: Unix seconds.
        session: which driver started it, an index into the ledger's sessions (with their versions).
        reason: why it ended before the trial did (`worker_lost`, `hang`, ...); empty if it did not.
        ended_s: Unix seconds, None while it runs or when it ended with the trial.
        charged: whether it counts against the retries.
    """

    started_s: float
    session: int = 0
    reason: str = ""
    ended_s: float | None = None
    charged: bool = False


@dataclass(frozen=True)
class Session:
    """One driver's time at a search.

    Attributes:
        started_s: Unix seconds.
        ended_s: Unix seconds; None for the driver that runs now.
        host: its machine.
        pid: its process there.
        versions: what ran.
    """

    started_s: float
    ended_s: float | None
    host: str
    pid: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the ledger knows it.

    Attributes:
        number: position in the search, from 0; also the MLflow run's name (`00042`).
        params: proposed values by dotted key; inactive ones are absent.
        config: the resolved TrialConfig as a nested plain mapping.
        config_hash: `TrialConfig.config_hash()`.
        state: `running`, `paused` (waits at a rung, on no worker), `finished` (full budget),
            `stopped` (by the stopping rule), `failed`.
        reason: why it ended or waits (`completed`, `asha@2`, `nan_loss`, ...); empty while running.
        attempt: 1 for the first start, one more a retry.
        epochs: reported epochs in order, each once.
        started_s: Unix seconds.
        ended_s: Unix seconds, None while running or paused.
        feasible: False when an outcome constraint is violated.
        attempts: every start with why it ended.
    """

    number: int
    params: Mapping[str, Any]
    config: Mapping[str, Any]
    config_hash: str
    state: TrialState
    reason: str
    attempt: int
    epochs: tuple[EpochRecord, ...]
    started_s: float
    ended_s: float | None = None
    feasible: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()

    @property
    def name(self) -> str:
        """Folder and MLflow run name, zero-padded to five digits."""
        return trial_name(self.number)

    @property
    def last(self) -> Mapping[str, float]:
        """Metrics of the last reported epoch; empty before the first."""
        return self.epochs[-1].metrics if self.epochs else {}

    @property
    def spared(self) -> EpochRecord | None:
        """The epoch at which the stopping rule would have ended it; None if it never would."""
        return next((epoch for epoch in self.epochs if epoch.spared), None)

    @property
    def hosts(self) -> list[str]:
        """The machines that trained it, each once, in order."""
        return list(dict.fromkeys(epoch.host for epoch in self.epochs if epoch.host))

    @property
    def has_ended(self) -> bool:
        """Whether it never runs again."""
        return self.state not in ("running", "paused")

    @property
    def counts(self) -> bool:
        """Whether its values may be compared: it ended or waits well and keeps the constraints."""
        return self.state not in ("running", "failed") and self.feasible and bool(self.epochs)


@dataclass(frozen=True)
class Outcome:
    """How a trial is to end.

    Attributes:
        state: `finished`, `stopped` or `failed`; without finite objective values it is failed.
        reason: why, in one word.
        violations: by how much each outcome constraint is broken; 0 or less keeps it.
    """

    state: TrialState
    reason: str
    violations: Mapping[str, float] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """Whether all outcome constraints are kept."""
        return keeps(self.violations)


@dataclass(frozen=True)
class Pause:
    """How a trial is to wait for others.

    Attributes:
        reason: what its end is called if it never goes on.
        violations: as of `Outcome`.
    """

    reason: str
    violations: Mapping[str, float] = field(default_factory=dict)


class MissingEpochError(ValueError):
    """A trial reported an epoch without the ones before it."""


def with_epoch(
    record: TrialRecord,
    epoch: int,
    metrics: Mapping[str, float],
    layer_rates: Mapping[str, float] | None,
    time_s: float,
) -> TrialRecord | None:
    """A trial with one more epoch; None when that epoch is known.

    Raises:
        MissingEpochError: an epoch between is missing.
    """
    if epoch <= len(record.epochs):
        return None
    if epoch != len(record.epochs) + 1:
        raise MissingEpochError(
            f"epochs must be reported one after the other, but trial {record.number} reported "
            f"epoch {epoch} after {len(record.epochs)}"
        )
    entry = EpochRecord(epoch, dict(metrics), time_s)
    extra = dict(record.extra)
    if layer_rates is not None:
        extra["layer_rates"] = dict(layer_rates)
    return replace(record, epochs=(*record.epochs, entry), extra=extra)


def proposed(
    number: int,
    params: Mapping[str, Any],
    config: Mapping[str, Any],
    config_hash: str,
    started: Attempt,
    screen: Mapping[str, Any] | None,
) -> TrialRecord:
    """A trial that has just been proposed; arguments as of `Ledger.add`."""
    return TrialRecord(
        number=number,
        params=dict(params),
        config=dict(config),
        config_hash=config_hash,
        state="running",
        reason="",
        attempt=1,
        epochs=(),
        started_s=started.started_s,
        extra={"layer_rates": {}} | ({"screen": dict(screen)} if screen else {}),
        attempts=(started,),
    )


def paused(record: TrialRecord, pause: Pause, time_s: float) -> TrialRecord:
    """A running trial that waits from now on, its attempt ended at no cost."""
    return replace(
        record,
        state="paused",
        reason=pause.reason,
        feasible=keeps(pause.violations),
        attempts=with_last_ended(record.attempts, PAUSED, time_s),
    )


def with_last_ended(
    attempts: Sequence[Attempt], reason: str, time_s: float, *, charged: bool = False
) -> tuple[Attempt, ...]:
    """Attempts, the last of which has ended."""
    last = replace(attempts[-1], reason=reason, ended_s=time_s, charged=charged)
    return (*attempts[:-1], last)


def keeps(violations: Mapping[str, float]) -> bool:
    """Whether all outcome constraints are kept."""
    return all(broken <= 0.0 for broken in violations.values())


def all_ended(sessions: Sequence[Session], time_s: float) -> tuple[Session, ...]:
    """Sessions with the last one ended at a time, unless it is."""
    return tuple(
        session
        if session.ended_s is not None
        else replace(session, ended_s=max(session.started_s, time_s))
        for session in sessions
    )


def used_s(sessions: Sequence[Session], now_s: float) -> float:
    """Seconds that drivers have spent."""
    return sum(
        max(0.0, (now_s if session.ended_s is None else session.ended_s) - session.started_s)
        for session in sessions
    )


def trial_name(number: int) -> str:
    """Zero-padded name of a trial: `trial_name(42) == "00042"`."""
    return f"{number:05d}"
