"""What a sampler is given of a search."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from search.results import ObjectiveLike
from spaces.constraints import OutcomeConstraint
from spaces.space import SearchSpace

Params = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """What a sampler needs to know of a search.

    Attributes:
        space: the points that may be proposed.
        objectives: metrics to make large or small.
        outcome_constraints: bounds on measured metrics.
        levels: epochs at which results are compared, ascending; the last is the full budget.
        seed: of all draws.
        trials: how many there will be at most; None when only time ends the search.
        cost_s: predicts the seconds that a point takes, up to a factor; None: all cost the same.
    """

    space: SearchSpace
    objectives: tuple[ObjectiveLike, ...]
    outcome_constraints: tuple[OutcomeConstraint, ...]
    levels: tuple[int, ...]
    seed: int
    trials: int | None = None
    cost_s: Callable[[Params], float] | None = None
