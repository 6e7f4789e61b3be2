"""What a search tries first: given points, the papers' configurations, earlier searches' best."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from search.folder import SearchFolder
from search.problem import Params
from search.propose_random import KnownPoints
from search.recorded import open_ledger
from search.records import TrialRecord
from search.results import ObjectiveLike, pareto, rank
from spaces.points import completed, paper_points, projected
from spaces.schema import SearchSpec
from spaces.space import SearchSpace
from trainables.errors import InputError

_WARM_FRAC = 0.25  # of the trials, for all earlier searches together


class FirstPoints:
    """Proposes some points in their order, and then what a sampler proposes.

    Args:
        points: valid ones; those that have been tried are left out.
        space: of the search.
        sampler: comes after them; it sees their results like all others.
    """

    def __init__(self, points: Sequence[Params], space: SearchSpace, sampler: Any) -> None:
        """Put the points before the sampler."""
        self._points = [(space.key(point), point) for point in points]
        self._known = KnownPoints(space)
        self._sampler = sampler

    def propose(self, records: Sequence[TrialRecord]) -> Params | None:
        """The next of the points, or the sampler's proposal."""
        if len(records) <= len(self._points):
            seen = self._known.keys(records)
            for key, point in self._points:
                if key not in seen:
                    return dict(point)
        proposed: Params | None = self._sampler.propose(records)
        return proposed


def first_points(spec: SearchSpec) -> list[Params]:
    """All that a search tries first, in order."""
    space, sampler = spec.search_space, spec.sampler
    given = [point for p in sampler.points if (point := completed(space, space.typed(p)))]
    papers = paper_points(space, spec.recipe) if sampler.start_from == "paper" else ()
    warm = [projected(space, {**space.base, **space.typed(p)}) for p in sampler.warm_points]
    return [*given, *papers, *warm]


def with_warm_points(spec: SearchSpec, folder: SearchFolder) -> SearchSpec:
    """Write down what earlier searches found best, for a search that is to start from them.

    Args:
        spec: of the search.
        folder: where it will lie, beside the others.

    Raises:
        InputError: one of them does not exist, or shares neither parameter nor objective.
    """
    names = spec.sampler.warm_start
    if not names:
        return spec
    most = max(1, int(_WARM_FRAC * spec.budget.trials))
    queues = [_best_of(spec, SearchFolder(folder.runs, name)) for name in names]
    points: list[Mapping[str, Any]] = []
    while queues and len(points) < most:
        queues = [queue for queue in queues if _take(queue, points)]
    sampler = spec.sampler.model_copy(update={"warm_points": tuple(map(dict, points[:most]))})
    return spec.model_copy(update={"sampler": sampler})


def _take(queue: Iterator[Mapping[str, Any]], points: list[Mapping[str, Any]]) -> bool:
    """Add the next point that is not there yet; False at the end of the queue."""
    new = next((point for point in queue if point not in points), None)
    if new is not None:
        points.append(new)
    return new is not None


def _best_of(spec: SearchSpec, folder: SearchFolder) -> Iterator[Mapping[str, Any]]:
    """What one earlier search found best in the parameters that both have, best first."""
    where = f"sampler.warm_start: {folder.name}"
    if not folder.exists:
        raise InputError(f"{where}: must be a search in {folder.runs}, but there is none")
    earlier, ledger = open_ledger(folder)
    ledger.close()
    shared = earlier.search_space.domains.keys() & spec.search_space.domains.keys()
    if not shared:
        raise InputError(f"{where}: must search at least one of the same parameters, but has none")
    ordered = _ordered(ledger.records, spec.objectives)
    if not ordered:
        raise InputError(f"{where}: must have a trial with a result, but has none")
    points = ({k: v for k, v in r.params.items() if k in shared} for r in ordered)
    return iter(
        [
            {k: v for k, v in point.items() if spec.search_space.domains[k].contains(v)}
            for point in points
        ]
    )


def _ordered(
    records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]
) -> list[TrialRecord]:
    """The Pareto set, then the other finished trials, then the stopped and paused ones."""
    finished = [r for r in records if r.state == "finished"]
    front = pareto(finished, objectives)
    numbers = {record.number for record in front}
    others = [r for r in rank(finished, objectives) if r.number not in numbers]
    stopped = rank([r for r in records if r.state in ("stopped", "paused")], objectives)
    return [*front, *others, *sorted(stopped, key=lambda r: -len(r.epochs))]
