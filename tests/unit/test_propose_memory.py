"""What the default sampler keeps in memory grows as the trials do, not as their square."""

import tracemalloc
from pathlib import Path

import numpy as np
from ledgers import made_spec

from search.propose import make_proposer
from search.records import EpochRecord, TrialRecord

SIZES = (500, 1000, 2000)
EPOCHS = 4


def test_the_default_samplers_memory_is_linear_in_the_trials(tmp_path: Path) -> None:
    spec = made_spec(tmp_path, "sampler.name=gp", f"budget.trials={max(SIZES)}")
    rng = np.random.default_rng(0)
    space = spec.search_space
    records = [ended(n, space.sample(rng), float(rng.normal())) for n in range(max(SIZES))]
    proposer = make_proposer(spec, (2, EPOCHS))
    proposer.propose(records[:40])  # what is loaded and compiled once
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept, peaks = [], []
        for num in SIZES:
            tracemalloc.reset_peak()
            proposer.propose(records[:num])
            now, peak = tracemalloc.get_traced_memory()
            kept.append(now - before)
            peaks.append(peak - before)
    finally:
        tracemalloc.stop()
    for used in (kept, peaks):
        # Bytes a trial, to 1,000 and from there to 2,000: twice as many, were it quadratic.
        first, second = np.diff(used) / np.diff(SIZES)
        assert second < 1.5 * first + 100.0, used
    assert kept[-1] < 2000 * max(SIZES), kept


def ended(number: int, params: dict[str, object], noise: float) -> TrialRecord:
    """A trial that was trained in full."""
    epochs = tuple(
        EpochRecord(e, {"val_top1": 50.0 + noise + e, "energy_mj": 2.0 - noise}, 1000.0 + e)
        for e in range(1, EPOCHS + 1)
    )
    return TrialRecord(
        number=number,
        params=params,
        config={},
        config_hash=f"{number:016x}",
        state="finished",
        reason="completed",
        attempt=1,
        epochs=epochs,
        started_s=1000.0,
        ended_s=1004.0,
    )
