"""What pausing at rungs must have done, said again the slow way from what a ledger recorded."""

from collections.abc import Sequence

from search.records import TrialRecord

RUNGS, FACTOR, EPOCHS = (1, 2), 2, 4
RECENT = 4 * FACTOR


def assert_promotions_followed(records: Sequence[TrialRecord]) -> None:
    """Whoever paused, went on, began or ended did so as the results of its time ask for."""
    for record in records:
        assert record.has_ended, record.number
        pauses = [a for a in record.attempts if a.reason == "paused"]
        assert not any(a.charged for a in pauses)
        for rung in RUNGS:
            _check_arrival(record, rung, records)
    for time_s, number, is_new in _starts(records):
        due = _due(time_s, records)
        if is_new:
            assert due is None, f"trial {number} began while {due} was due"
        elif due is not None:
            assert due == number, f"trial {number} went on while {due} was due"
        else:
            assert not any(_runs(r, time_s) for r in records if r.number != number)
    _check_end(records)


def _check_end(records: Sequence[TrialRecord]) -> None:
    for record in records:
        if record.state == "stopped":
            assert record.reason == f"asha@{len(record.epochs)}"
            assert record.attempts[-1].reason == "paused"
        elif record.state == "finished":
            assert len(record.epochs) == EPOCHS
    ended_s = max(record.ended_s or 0.0 for record in records)
    assert _due(ended_s, records, ended=False) is None, "one that is due was given up"
    assert any(record.state == "finished" for record in records)


def _check_arrival(record: TrialRecord, rung: int, records: Sequence[TrialRecord]) -> None:
    """At a rung a trial waits, unless it is the very one that a free worker would continue."""
    if len(record.epochs) < rung or (record.spared and record.spared.epoch <= rung):
        return
    if record.state == "failed" and len(record.epochs) == rung:
        return
    arrived_s = record.epochs[rung - 1].time_s
    paused = _paused_at(record, rung)
    due = _due(arrived_s, records, arrived=record.number)
    assert paused == (due != record.number), f"trial {record.number} at epoch {rung}"


def _paused_at(record: TrialRecord, rung: int) -> bool:
    """Whether one of its pauses lies between that epoch and the next."""
    until = record.epochs[rung].time_s if len(record.epochs) > rung else float("inf")
    since = record.epochs[rung - 1].time_s
    ends = [a.ended_s or 0.0 for a in record.attempts if a.reason == "paused"]
    return any(since <= end < until for end in ends)


def _starts(records: Sequence[TrialRecord]) -> list[tuple[float, int, bool]]:
    """When trials began or went on: seconds, number, whether it was new."""
    found = []
    for record in records:
        before = None
        for attempt in record.attempts:
            if before is None or before.reason == "paused":
                found.append((attempt.started_s, record.number, before is None))
            before = attempt
    return sorted(found)


def _waits(record: TrialRecord, time_s: float, *, ended: bool = True) -> bool:
    for index, attempt in enumerate(record.attempts):
        later = record.attempts[index + 1 :]
        until = later[0].started_s if later else record.ended_s if ended else None
        began = attempt.reason == "paused" and (attempt.ended_s or 0.0) < time_s
        if began and (until is None or time_s <= until):
            return True
    return False


def _runs(record: TrialRecord, time_s: float) -> bool:
    ended_s = record.ended_s or float("inf")
    return record.started_s < time_s < ended_s and not _waits(record, time_s)


def _due(
    time_s: float,
    records: Sequence[TrialRecord],
    *,
    arrived: int | None = None,
    ended: bool = True,
) -> int | None:
    """Who is to go on at a time, counting what had been reported by then."""
    for rung in reversed(RUNGS):
        at = {
            r.number: r.epochs[rung - 1]
            for r in records
            if len(r.epochs) >= rung and (r.spared is None or r.spared.epoch >= rung)
        }
        known = {n: e for n, e in at.items() if e.time_s <= time_s}
        order = sorted(known, key=lambda n: (-known[n].metrics["val_top1"], n))
        latest = sorted(known)[-RECENT:]
        for number in order[: len(order) // FACTOR]:
            record = records[number]
            reached = [e for e in record.epochs if e.time_s <= time_s]
            waits = number == arrived or _waits(record, time_s, ended=ended)
            among = [n for n in order if n in latest or n == number]
            is_recent = among.index(number) < max(1, len(among) // FACTOR)
            if waits and len(reached) == rung and is_recent:
                return number
    return None
