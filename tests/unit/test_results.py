import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.records import EpochRecord, TrialRecord, TrialState
from search.results import Mode, best, hypervolume, pareto, rank, rows, saved_epochs, values


class Objective(NamedTuple):
    metric: str
    mode: Mode


ACCURACY_ENERGY = (Objective("val_top1", "max"), Objective("energy_mj", "min"))


def trial(
    number: int, metrics: dict[str, float] | None, state: TrialState = "finished", **fields: Any
) -> TrialRecord:
    epochs = (
        ()
        if metrics is None
        else (
            EpochRecord(1, {"val_top1": 1e9, "energy_mj": -1e9}, 1.0),
            EpochRecord(2, metrics, 2.0),
        )
    )
    return TrialRecord(
        number=number,
        params={"model.depth": 2},
        config={},
        config_hash="ab",
        state=state,
        reason="",
        attempt=1,
        epochs=epochs,
        started_s=0.0,
        **fields,
    )


# Few distinct numbers, so that ties and equal points are common.
numbers = st.sampled_from([0.0, 1.0, 2.0, 2.5, 1e-300, -3.0, math.nan, math.inf, -math.inf])
STATES: tuple[TrialState, ...] = ("finished", "finished", "stopped", "failed", "running")
names = ("a", "b", "c")
objective_lists = st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True).flatmap(
    lambda chosen: st.tuples(
        *[st.builds(Objective, st.just(name), st.sampled_from(("min", "max"))) for name in chosen]
    )
)
record_lists = st.lists(
    st.tuples(
        st.none() | st.dictionaries(st.sampled_from(names), numbers),
        st.sampled_from(STATES),
        st.booleans() | st.just(True),
    ),
    max_size=12,
).map(
    lambda found: [
        trial(number, metrics, state, feasible=feasible)
        for number, (metrics, state, feasible) in enumerate(found)
    ]
)


def naive_values(record: TrialRecord, objectives: Sequence[Objective]) -> list[float] | None:
    if record.state not in ("finished", "stopped") or not record.feasible or not record.epochs:
        return None
    found = []
    for name, mode in objectives:
        value = record.epochs[-1].metrics.get(name)
        if value is None or math.isnan(value) or math.isinf(value):
            return None
        found.append(value if mode == "max" else -value)
    return found


def naive_better(first: list[float], second: list[float]) -> bool:
    return all(a >= b for a, b in zip(first, second, strict=True)) and any(
        a > b for a, b in zip(first, second, strict=True)
    )


@given(record_lists, objective_lists)
def test_front_and_ranking_agree_with_comparing_every_pair(
    records: list[TrialRecord], objectives: tuple[Objective, ...]
) -> None:
    known = {r.number: v for r in records if (v := naive_values(r, objectives)) is not None}
    front = pareto(records, objectives)
    assert {r.number for r in front} == {
        n for n, v in known.items() if not any(naive_better(w, v) for w in known.values())
    }
    ranked = [r.number for r in rank(records, objectives)]
    assert sorted(ranked) == sorted(known)
    for earlier, later in itertools.pairwise(ranked):
        assert (known[earlier], -earlier) > (known[later], -later)
    positions = [ranked.index(r.number) for r in front]
    assert positions == sorted(positions)
    top = best(records, objectives)
    assert (top.number if top else None) == (ranked[0] if ranked else None)


@given(record_lists, objective_lists)
def test_rows_hold_every_trial_once_and_are_strict_json(
    records: list[TrialRecord], objectives: tuple[Objective, ...]
) -> None:
    found = json.loads(json.dumps(rows(records, objectives), allow_nan=False))
    assert sorted(row["number"] for row in found) == [r.number for r in records]
    ranks = [row["rank"] for row in found if row["rank"] is not None]
    assert ranks == list(range(1, len(ranks) + 1))
    assert {row["number"] for row in found if row["on_pareto"]} == {
        r.number for r in pareto(records, objectives)
    }


grid = st.integers(0, 4)


@given(st.data(), st.integers(1, 3))
def test_hypervolume_counts_the_dominated_cells_of_a_grid(data: st.DataObject, dims: int) -> None:
    modes = data.draw(st.tuples(*[st.sampled_from(("min", "max"))] * dims))
    losses = data.draw(st.lists(st.tuples(*[grid] * dims), max_size=6))
    cells = 0
    for index in range(3**dims):
        cell = [index // 3**axis % 3 for axis in range(dims)]  # the reference is at 3
        cells += any(all(a <= b for a, b in zip(loss, cell, strict=True)) for loss in losses)
    sign = [-1.0 if mode == "max" else 1.0 for mode in modes]
    points = [[s * x for s, x in zip(sign, loss, strict=True)] for loss in losses]
    assert hypervolume(points, [3.0 * s for s in sign], modes) == pytest.approx(cells)


def test_hypervolume_wants_one_value_a_mode() -> None:
    with pytest.raises(ValueError, match="2 values"):
        hypervolume([(1.0,)], (1.0, 2.0), ("min", "max"))


def test_values_are_those_of_the_last_epoch() -> None:
    record = trial(0, {"val_top1": 91.0, "energy_mj": 0.5})
    assert values(record, ACCURACY_ENERGY) == (91.0, 0.5)
    assert values(trial(0, None), ACCURACY_ENERGY) is None
    assert values(trial(0, {"val_top1": 91.0}), ACCURACY_ENERGY) is None


def test_equal_trials_share_the_front_and_the_older_one_ranks_first() -> None:
    metrics = {"val_top1": 90.0, "energy_mj": 1.0}
    records = [trial(2, metrics), trial(1, metrics), trial(0, {"val_top1": 89.0, "energy_mj": 2.0})]
    assert [r.number for r in pareto(records, ACCURACY_ENERGY)] == [1, 2]
    assert [r.number for r in rank(records, ACCURACY_ENERGY)] == [1, 2, 0]


def test_saved_epochs_leave_failed_and_running_trials_out() -> None:
    records = [trial(0, {}), trial(1, {}, "stopped"), trial(2, {}, "failed"), trial(3, None)]
    assert saved_epochs(records[:3], 10) == (4, 20)
    assert saved_epochs([trial(4, {}, "running")], 10) == (0, 0)
