"""What a search has learnt: which parameters mattered, how, and what to search next."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from search.effects import Effect, Importance, basis_of, effect, importances, searched
from search.hints import Hint, hints
from search.records import TrialRecord
from search.results import Mode
from spaces.schema import SearchSpec


@dataclass(frozen=True)
class Finding:
    """What mattered for one objective; importances come greatest first."""

    metric: str
    mode: Mode
    importances: tuple[Importance, ...]
    effects: tuple[Effect, ...]


@dataclass(frozen=True)
class Insight:
    """What a search has learnt.

    Attributes:
        epoch: whose values are compared.
        trials: usable trials that have reached it.
        of: trials of the search.
        objectives: what mattered for each, in the search's order.
        hints: what to search next.
    """

    epoch: int
    trials: int
    of: int
    objectives: tuple[Finding, ...]
    hints: tuple[Hint, ...]

    def tree(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @property
    def basis(self) -> str:
        """A sentence that says what it rests on."""
        return (
            f"Compared at epoch {self.epoch}, which {self.trials} of {self.of} trials have reached "
            "with usable values."
        )


def insight(spec: SearchSpec, records: Sequence[TrialRecord]) -> Insight | None:
    """Say what a search has learnt; None with too few trials.

    Args:
        spec: the search.
        records: its trials.
    """
    basis = basis_of(spec, records)
    keys = searched(spec)
    if basis is None or not keys:
        return None
    findings = tuple(
        Finding(
            objective.metric,
            objective.mode,
            importances(spec, basis, index),
            tuple(effect(spec.search_space.domains[key], key, basis, index) for key in keys),
        )
        for index, objective in enumerate(spec.objectives)
    )
    return Insight(
        basis.epoch,
        len(basis.records),
        basis.of,
        findings,
        hints(spec, basis, [f.importances for f in findings]),
    )
