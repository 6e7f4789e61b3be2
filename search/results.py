"""What a search found: pure functions over the ledger's records."""

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from search.records import TrialRecord

if TYPE_CHECKING:
    from spaces.schema import SearchSpec

Mode = Literal["min", "max"]


class ObjectiveLike(Protocol):
    """A metric and the direction that is better."""

    @property
    def metric(self) -> str:
        """Name of a reported metric."""

    @property
    def mode(self) -> Mode:
        """`min` or `max`."""


def values(record: TrialRecord, objectives: Sequence[ObjectiveLike]) -> tuple[float, ...] | None:
    """Objective values of a trial's last epoch; None unless it counts and all are finite."""
    if not record.counts:
        return None
    last = record.last
    found = tuple([last.get(objective.metric, math.nan) for objective in objectives])
    return found if all(map(math.isfinite, found)) else None


def is_over(spec: "SearchSpec", records: Sequence[TrialRecord], used_s: float) -> bool:
    """Whether every trial has ended and trials, points of the space or hours are used up."""
    enough = min(spec.budget.trials, spec.search_space.cardinality())
    used = len(records) >= enough or used_s >= spec.budget.most_s
    return used and all(record.has_ended for record in records)


def badness(record: TrialRecord, objectives: Sequence[ObjectiveLike]) -> tuple[float, ...] | None:
    """The same so that smaller is better, as trials are ranked by."""
    found = values(record, objectives)
    return None if found is None else _losses(found, [objective.mode for objective in objectives])


def rank(records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]) -> list[TrialRecord]:
    """Trials that count, best first: by the first objective, then the next ones, then number."""
    return [record for _, record in _by_loss(records, objectives)]


def best(records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]) -> TrialRecord | None:
    """The trial that is best by the first objective (ties as in `rank`); None without any."""
    ranked = rank(records, objectives)
    return ranked[0] if ranked else None


def pareto(
    records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]
) -> list[TrialRecord]:
    """Trials that no other one beats, best first objective first; equal ones are all kept."""
    front: list[tuple[tuple[float, ...], TrialRecord]] = []
    # In this order only an earlier trial can beat a later one, so the front is enough to ask; with
    # two objectives its last member, which is the best by the second one.
    asked = slice(-1, None) if len(objectives) < 3 else slice(None)
    for loss, record in _by_loss(records, objectives):
        if not any(dominates(other, loss) for other, _ in front[asked]):
            front.append((loss, record))
    return [record for _, record in front]


def still_leading(
    front: Sequence[tuple[float, ...]], value: tuple[float, ...], modes: Sequence[Mode]
) -> list[tuple[float, ...]] | None:
    """What a new value leaves of a Pareto set; None when it does not belong to the set.

    Args:
        front: objective values of its members.
        value: of the newcomer.
        modes: direction of each objective.
    """
    beaten = _beaten(value, front, modes)
    return (
        None if beaten is None else [m for m, gone in zip(front, beaten, strict=True) if not gone]
    )


def beats(
    record: TrialRecord, front: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]
) -> list[TrialRecord] | None:
    """Which members of a Pareto set a trial beats; None when it does not belong to the set."""
    modes = [objective.mode for objective in objectives]
    value = values(record, objectives)
    if value is None:
        return None
    beaten = _beaten(value, [values(member, objectives) or () for member in front], modes)
    if beaten is None:
        return None
    return [member for member, gone in zip(front, beaten, strict=True) if gone]


def _beaten(
    value: tuple[float, ...], front: Sequence[tuple[float, ...]], modes: Sequence[Mode]
) -> list[bool] | None:
    """Which members of a Pareto set a value beats; None when it does not belong to the set."""
    loss, losses = _losses(value, modes), [_losses(member, modes) for member in front]
    if any(dominates(other, loss) for other in losses):
        return None
    return [dominates(loss, other) for other in losses]


def hypervolume(
    points: Sequence[Sequence[float]], reference: Sequence[float], modes: Sequence[Mode]
) -> float:
    """Volume that points dominate up to a reference point.

    Args:
        points: objective values; those no better than the reference add nothing.
        reference: the worst value of interest of each objective.
        modes: direction of each objective.

    Raises:
        ValueError: numbers of values, references and modes differ.
    """
    if any(len(point) != len(modes) for point in [*points, reference]):
        raise ValueError(f"each point and the reference must have {len(modes)} values, one a mode")
    corner = _losses(reference, modes)
    losses = (_losses(point, modes) for point in points)
    return _volume([loss for loss in losses if all(map(operator.lt, loss, corner))], corner)


def worst(records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]) -> tuple[float, ...]:
    """The worst value seen of each objective, a reference point that needs no setting."""
    found = [value for record in records if (value := values(record, objectives)) is not None]
    columns = zip(*found, strict=True)
    return tuple(
        (min if o.mode == "max" else max)(column)
        for o, column in zip(objectives, columns, strict=bool(found))
    )


def saved_epochs(records: Sequence[TrialRecord], full_epochs: int) -> tuple[int, int]:
    """Epochs that finished and stopped trials took, and what they take when none is stopped."""
    ended = [record for record in records if record.state in ("finished", "stopped")]
    return sum(_num_epochs(record) for record in ended), full_epochs * len(ended)


@dataclass(frozen=True)
class StoppingCheck:
    """How often early stopping was wrong, by the trials that ran on although it would end them.

    Attributes:
        checked: such trials that finished.
        missed: those among them that ended better than all trials that were not to be stopped.
        loss: how much better the best of them was, in the metric's units; 0 if none was.
        epochs: what they took beyond the epoch at which they would have ended.
        num_stopped: trials that were stopped, for the rest of which the check speaks.
    """

    checked: int
    missed: int
    loss: float
    epochs: int
    num_stopped: int


def stopping_check(records: Sequence[TrialRecord], metric: str, mode: Mode) -> StoppingCheck | None:
    """Look at the trials that ran on as a check of the stopping rule; None without any."""
    spared = [record for record in records if record.spared is not None]
    if not spared:
        return None
    extra = sum(_num_epochs(r) - r.spared.epoch for r in spared if r.spared is not None)
    sign = -1.0 if mode == "max" else 1.0
    ended = [r for r in records if r.state == "finished" and math.isfinite(r.last[metric])]
    losses = {r.number: sign * r.last[metric] for r in ended}
    checked = [losses[r.number] for r in spared if r.number in losses]
    known = {r.number for r in spared}
    best_other = min((v for n, v in losses.items() if n not in known), default=math.inf)
    better = [best_other - loss for loss in checked if loss < best_other < math.inf]
    num_stopped = sum(r.state == "stopped" and r.reason != "budget" for r in records)
    return StoppingCheck(len(checked), len(better), max(better, default=0.0), extra, num_stopped)


def rows(
    records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]
) -> list[dict[str, Any]]:
    """One JSON-able row a trial, ranked ones first, for tables and `--format json`.

    Metrics are those of the last epoch in full precision; a non-finite one is None.
    """
    ranked = rank(records, objectives)
    places = {record.number: place for place, record in enumerate(ranked, start=1)}
    front = {record.number for record in pareto(records, objectives)}
    others = sorted((r for r in records if r.number not in places), key=lambda r: r.number)
    return [
        {
            "rank": places.get(record.number),
            "number": record.number,
            "name": record.name,
            "state": record.state,
            "reason": record.reason,
            "attempt": record.attempt,
            "epochs": _num_epochs(record),
            "metrics": {name: _finite(value) for name, value in record.last.items()},
            "params": dict(record.params),
            "config_hash": record.config_hash,
            "on_pareto": record.number in front,
        }
        for record in [*ranked, *others]
    ]


def _by_loss(
    records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]
) -> list[tuple[tuple[float, ...], TrialRecord]]:
    modes = [objective.mode for objective in objectives]
    found = [(values(record, objectives), record) for record in records]
    losses = [(_losses(value, modes), record) for value, record in found if value is not None]
    return sorted(losses, key=lambda pair: (pair[0], pair[1].number))


def _losses(point: Sequence[float], modes: Sequence[Mode]) -> tuple[float, ...]:
    return tuple(
        [-value if mode == "max" else value for value, mode in zip(point, modes, strict=True)]
    )


def dominates(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Whether one badness is nowhere worse than another, and not the same."""
    return first != second and all(map(operator.le, first, second))


def _volume(losses: Sequence[tuple[float, ...]], corner: tuple[float, ...]) -> float:
    """Volume between losses and a corner that is worse than each of them."""
    if not losses:
        return 0.0
    if len(corner) == 1:
        return corner[0] - min(losses)[0]
    if len(corner) == 2:
        return _area(sorted(losses), corner)
    # Sliced along the last axis: between two heights the cross-section stays the same.
    by_height = sorted(losses, key=operator.itemgetter(-1))
    heights = [loss[-1] for loss in by_height] + [corner[-1]]
    return sum(
        (above - height) * _volume([loss[:-1] for loss in by_height[: index + 1]], corner[:-1])
        for index, (height, above) in enumerate(itertools.pairwise(heights))
        if above > height
    )


def _area(losses: Sequence[tuple[float, ...]], corner: tuple[float, ...]) -> float:
    """Area between losses sorted by their first value and a corner."""
    area, ceiling = 0.0, corner[1]
    for x, y in losses:
        if y < ceiling:
            area += (corner[0] - x) * (ceiling - y)
            ceiling = y
    return area


def _num_epochs(record: TrialRecord) -> int:
    return record.epochs[-1].epoch if record.epochs else 0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
