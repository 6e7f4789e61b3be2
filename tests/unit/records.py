"""Trial records for tests."""

from typing import Any

from search.records import EpochRecord, TrialRecord, TrialState


def record(
    number: int,
    values: list[float],
    *,
    state: TrialState = "running",
    params: dict[str, Any] | None = None,
    layer_rates: dict[str, float] | None = None,
    extra_metrics: dict[str, float] | None = None,
    drop_default: bool = False,
    spared: dict[int, str] | None = None,
) -> TrialRecord:
    """A trial that reported `values` of val_top1, one an epoch."""
    epochs = tuple(
        EpochRecord(
            i + 1,
            {
                **({} if drop_default else {"val_top1": value}),
                "energy_mj": 1.0,
                **(extra_metrics or {}),
            },
            1000.0 + i,
            (spared or {}).get(i + 1, ""),
        )
        for i, value in enumerate(values)
    )
    return TrialRecord(
        number=number,
        params=params or {"model.width": 8 * (number + 1)},
        config={},
        config_hash=f"{number:016x}",
        state=state,
        reason="",
        attempt=1,
        epochs=epochs,
        started_s=1000.0,
        extra={"layer_rates": layer_rates or {}},
    )
