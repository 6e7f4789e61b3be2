"""Standings say the same as a look at all records, whatever they were asked before."""

import bisect

from hypothesis import given
from hypothesis import strategies as st
from records import record

from search.records import TrialRecord
from search.standings import Standings, at_epoch

VALUES = st.lists(st.integers(0, 9).map(float), max_size=4)


def badness(metrics: dict[str, float]) -> float:
    return -metrics["val_top1"]


def places(known: TrialRecord) -> dict[int, float]:
    found = {epoch: at_epoch(known, epoch) for epoch in (1, 3)}
    return {epoch: badness(metrics) for epoch, metrics in found.items() if metrics is not None}


@given(st.lists(st.lists(VALUES, max_size=6), max_size=6))
def test_any_sequence_of_records_gives_what_a_fresh_look_gives(
    histories: list[list[list[float]]],
) -> None:
    standings = Standings((1, 3), places)
    for history in histories:
        records: list[TrialRecord] = [record(i, values) for i, values in enumerate(history)]
        for epoch in (1, 3):
            expected: list[tuple[float, int]] = []
            for known in records:
                metrics = at_epoch(known, epoch)
                if metrics is not None:
                    bisect.insort(expected, (badness(metrics), known.number))
            assert standings.at(epoch, records) == expected


def test_an_epoch_is_found_where_earlier_ones_are_missing() -> None:
    whole = record(0, [1.0, 2.0, 3.0])
    assert (at_epoch(whole, 2) or {})["val_top1"] == 2.0
    assert at_epoch(whole, 4) is None
    assert at_epoch(whole, 0) is None
