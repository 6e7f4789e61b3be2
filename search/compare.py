"""Several searches side by side: fronts, the best after equal effort. Pure functions.

A trial counts from its last epoch on, with that epoch's values, as everywhere.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search.folder import SearchFolder
from search.records import TrialRecord
from search.results import ObjectiveLike, beats, best, hypervolume, pareto, values, worst
from spaces.schema import Objective, SearchSpec
from trainables.errors import InputError

LETTERS = "ABCDEF"  # more could not be told apart
EPOCH_S = "epoch_s"


@dataclass(frozen=True)
class Entry:
    """One of the searches that are compared.

    Attributes:
        letter: what tables and plots call it.
        label: what a person calls it.
        folder: where it lies.
        search_id: the ledger's.
        spec: what was searched.
        records: its trials.
        versions: of the packages that ran it last.
        running: whether a driver still runs it.
    """

    letter: str
    label: str
    folder: SearchFolder
    search_id: str
    spec: SearchSpec
    records: Sequence[TrialRecord]
    versions: dict[str, str]
    running: bool

    @property
    def epochs(self) -> int:
        """Epochs that all its trials have trained."""
        return sum(len(record.epochs) for record in self.records)

    @property
    def seconds(self) -> float | None:
        """Seconds that they took; None where an epoch's are not recorded."""
        found = [e.metrics.get(EPOCH_S, math.nan) for r in self.records for e in r.epochs]
        total = math.fsum(found)
        return total if math.isfinite(total) else None


@dataclass(frozen=True)
class Step:
    """A search when a trial's last epoch was over.

    Attributes:
        epochs: trained by all trials so far.
        seconds: that those took; None where they are not recorded.
        trials: with a result so far.
        best: the best trial so far, by the first objective.
        values: its objectives.
        hypervolume: of the front so far, by the shared reference point; None with one objective.
    """

    epochs: int
    seconds: float | None
    trials: int
    best: int
    values: tuple[float, ...]
    hypervolume: float | None


@dataclass(frozen=True)
class Matched:
    """The searches after equal effort.

    Attributes:
        unit: `epochs` or `seconds`.
        budget: what each has had: all of the one that had the least.
        steps: how far each was by then; None before its first result.
    """

    unit: str
    budget: float
    steps: tuple[Step | None, ...]


@dataclass(frozen=True)
class Fronts:
    """The Pareto fronts by the same measure.

    Attributes:
        numbers: trials on each search's front.
        reference: the worst value that any of the searches has seen of each objective.
        hypervolumes: of each front; None with one objective.
        of_all: hypervolume of all fronts together.
        coverage: `[i][j]` is the share of front j that front i beats: nowhere worse and somewhere
            better; None where front j is empty, and for a front itself.
    """

    numbers: tuple[tuple[int, ...], ...]
    reference: tuple[float, ...]
    hypervolumes: tuple[float | None, ...]
    of_all: float | None
    coverage: tuple[tuple[float | None, ...], ...]


def shared_objectives(entries: Sequence[Entry]) -> tuple[Objective, ...]:
    """Objectives that all searches have, in the order of the first one.

    Raises:
        InputError: there is none.
    """
    shared = tuple(
        objective
        for objective in entries[0].spec.objectives
        if all(objective in entry.spec.objectives for entry in entries)
    )
    if not shared:
        given = "; ".join(
            f"{e.label}: {', '.join(f'{o.metric} {o.mode}' for o in e.spec.objectives)}"
            for e in entries
        )
        raise InputError(f"searches must share an objective to be compared, but have {given}")
    return shared


def fronts(entries: Sequence[Entry], objectives: Sequence[ObjectiveLike]) -> Fronts:
    """Compare the Pareto fronts."""
    found = [pareto(entry.records, objectives) for entry in entries]
    reference = worst([r for entry in entries for r in entry.records], objectives)
    volumes = tuple(volume(front, reference, objectives) for front in found)
    return Fronts(
        numbers=tuple(tuple(record.number for record in front) for front in found),
        reference=reference,
        hypervolumes=volumes,
        of_all=volume([r for front in found for r in front], reference, objectives),
        coverage=tuple(
            tuple(None if one is other else covered(one, other, objectives) for other in found)
            for one in found
        ),
    )


def volume(
    front: Sequence[TrialRecord], reference: Sequence[float], objectives: Sequence[ObjectiveLike]
) -> float | None:
    """Hypervolume of a front; None with one objective."""
    if len(objectives) < 2:
        return None
    points = [values(record, objectives) or () for record in front]
    return hypervolume(points, reference, [o.mode for o in objectives]) if points else 0.0


def covered(
    one: Sequence[TrialRecord],
    other: Sequence[TrialRecord],
    objectives: Sequence[ObjectiveLike],
) -> float | None:
    """Share of the other front that this one beats; None where the other one is empty."""
    if not other:
        return None
    beaten = sum(beats(record, one, objectives) is None for record in other)
    return beaten / len(other)


def steps(
    entry: Entry, reference: Sequence[float], objectives: Sequence[ObjectiveLike]
) -> tuple[Step, ...]:
    """How a search came on, epoch by epoch in the order in which they were reported."""
    told = sorted(
        ((e.time_s, r.number, e.epoch, e, r) for r in entry.records for e in r.epochs),
        key=lambda row: row[:3],
    )
    timed = entry.seconds is not None
    found: list[Step] = []
    front: list[TrialRecord] = []
    top: TrialRecord | None = None
    spent_s, trials, area = 0.0, 0, None
    for count, (*_, epoch, record) in enumerate(told, start=1):
        spent_s += epoch.metrics.get(EPOCH_S, 0.0)
        if epoch is not record.epochs[-1] or values(record, objectives) is None:
            continue
        trials += 1
        beaten = beats(record, front, objectives)
        if beaten is not None:
            gone = {r.number for r in beaten}
            front = [*(r for r in front if r.number not in gone), record]
            area = volume(front, reference, objectives)
        top = best([top, record] if top else [record], objectives) or record
        found.append(
            Step(
                count,
                spent_s if timed else None,
                trials,
                top.number,
                values(top, objectives) or (),
                area,
            )
        )
    return tuple(found)


def matched(entries: Sequence[Entry], courses: Sequence[Sequence[Step]]) -> list[Matched]:
    """Each search after the effort of the one that had the least: in epochs, and in seconds."""
    found = [_matched("epochs", min(e.epochs for e in entries), courses, lambda s: s.epochs)]
    seconds = [entry.seconds for entry in entries]
    known = [total for total in seconds if total is not None]
    if len(known) == len(seconds):
        found.append(_matched("seconds", min(known), courses, lambda s: s.seconds or 0.0))
    return found


def _matched(
    unit: str,
    budget: float,
    courses: Sequence[Sequence[Step]],
    effort: Callable[[Step], float],
) -> Matched:
    # The sums of seconds differ in their last digit by how they are added up.
    within = budget * (1.0 + 1e-9)
    reached = [[step for step in course if effort(step) <= within] for course in courses]
    return Matched(unit, budget, tuple(found[-1] if found else None for found in reached))
