"""What the ledger remembers of a trial, as plain values that every other part reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TrialState = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class EpochRecord:
    """One reported epoch.

    Attributes:
        epoch: 1 for the first.
        metrics: the reported metrics by name (`val_top1` in %, `energy_mj` in mJ, ...).
        time_s: when the driver received it, Unix seconds; the tracker keeps this timestamp.
    """

    epoch: int
    metrics: Mapping[str, float]
    time_s: float


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the ledger knows it.

    Attributes:
        number: position in the search, from 0; also the MLflow run's name (`00042`).
        params: proposed values by dotted key; inactive ones are absent.
        config: the resolved TrialConfig as a nested plain mapping.
        config_hash: `TrialConfig.config_hash()`.
        state: `running`, `finished` (full budget), `stopped` (by the stopping rule), `failed`.
        reason: why it ended (`completed`, `asha@2`, `nan_loss`, ...); empty while running.
        attempt: 1 for the first start, one more a retry.
        epochs: reported epochs in order, each once.
        started_s: Unix seconds.
        ended_s: Unix seconds, None while running.
        feasible: False when an outcome constraint is violated.
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

    @property
    def name(self) -> str:
        """Folder and MLflow run name, zero-padded to five digits."""
        return trial_name(self.number)

    @property
    def last(self) -> Mapping[str, float]:
        """Metrics of the last reported epoch; empty before the first."""
        return self.epochs[-1].metrics if self.epochs else {}

    @property
    def counts(self) -> bool:
        """Whether its values may be compared: it ended well and keeps the constraints."""
        return self.state in ("finished", "stopped") and self.feasible and bool(self.epochs)


def trial_name(number: int) -> str:
    """Zero-padded name of a trial: `trial_name(42) == "00042"`."""
    return f"{number:05d}"
