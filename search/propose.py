"""Proposals: pure functions of the search space and the ledger.

A proposal depends only on (seed, trial number, results so far): no state to save, so a resumed
search run one trial at a time proposes exactly what an uninterrupted one does. What a sampler
keeps between calls only saves it from reading the same records again.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import optuna

from search.first import FirstPoints, first_points
from search.problem import Params, Problem
from search.propose_evolution import EvolutionProposer, QuasiRandomProposer
from search.propose_gp import GaussianProposer
from search.propose_random import GridProposer, RandomProposer
from search.propose_tpe import TPEProposer, distribution, distributions
from search.records import TrialRecord
from spaces.schema import SearchSpec
from trainables.cost import predict_epoch_s
from trainables.samples import training_images

__all__ = ["PROPOSERS", "Params", "Problem", "Proposer", "distribution", "distributions"]


class Proposer(Protocol):
    """A sampler: what to try next, or None when every valid point has been tried."""

    def propose(self, records: Sequence[TrialRecord]) -> Params | None:
        """Parameters of the next trial, valid and not tried before."""


def make_proposer(spec: SearchSpec, rungs: Sequence[int]) -> Proposer:
    """Build the sampler a search names.

    Args:
        spec: the search.
        rungs: epochs at which results are compared, ascending.

    Raises:
        ValueError: the name is unknown; the message lists the valid ones.
    """
    problem = Problem(
        spec.search_space,
        spec.objectives,
        spec.outcome_constraints,
        (*rungs, spec.base_config.train.total_epochs),
        spec.sampler.seed,
        spec.budget.trials,
        _epoch_s(spec) if spec.sampler.cost_aware else None,
    )
    sampler = proposer_for(spec.sampler.name, problem)
    points = first_points(spec)
    return FirstPoints(points, spec.search_space, sampler) if points else sampler


def _epoch_s(spec: SearchSpec) -> Callable[[Params], float]:
    def predict(params: Params) -> float:
        config = spec.trial_config(params)
        return predict_epoch_s(config, training_images(config.data))

    return predict


def proposer_for(name: str, problem: Problem) -> Proposer:
    """Build a sampler by name.

    Raises:
        ValueError: the name is unknown; the message lists the valid ones.
    """
    if name not in PROPOSERS:
        raise ValueError(f"sampler.name must be one of {sorted(PROPOSERS)}, but got {name!r}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every in-memory study
    return PROPOSERS[name](problem)


PROPOSERS: dict[str, type[RandomProposer]] = {
    "gp": GaussianProposer,
    "tpe": TPEProposer,
    "nsga2": EvolutionProposer,
    "qmc": QuasiRandomProposer,
    "random": RandomProposer,
    "grid": GridProposer,
}
