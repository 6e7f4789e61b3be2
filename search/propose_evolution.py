"""The evolutionary sampler and the quasi-random one."""

import math
from collections.abc import Sequence

import numpy as np

from search.encoding import Encoder, Floats
from search.evidence import FAILED, Evidence
from search.fronts import best_of
from search.problem import Params, Problem
from search.propose_random import RandomProposer, Shared, around, fresh
from search.records import TrialRecord

POPULATION = 20
CROSSED = 0.9  # share of children with two parents
SWAPPED = 0.5  # share of parameters from the second one
STEP = 0.1  # of a mutation, in ranges of a parameter


class EvolutionProposer(RandomProposer):
    """NSGA-II, one child at a time, over the levels of early stopping.

    Parents are the best trials of the highest level that as many have reached: by front, and by
    what they add to its hypervolume. Two tournaments choose a pair, whose parameters are mixed and
    changed; a child that is invalid or known is replaced by a valid new point beside it.

    Source: Deb et al., 2002; differs by the hypervolume in place of the crowding distance, and by
    having no generations, as results come one by one; from the 128th trial on, several proposals
    share their parents.
    """

    def __init__(self, problem: Problem) -> None:
        """Keep how many trials are parents."""
        super().__init__(problem)
        self._encoder = Encoder(problem.space)
        self._evidence = Evidence(problem, self._encoder)
        quarter = POPULATION if problem.trials is None else math.ceil(problem.trials / 4)
        self._population = min(POPULATION, max(4, quarter))
        self._shared = Shared(self._parents, problem.seed)

    def propose(self, records: Sequence[TrialRecord]) -> Params | None:
        """A child of two of the best."""
        rng = self._rng(records)
        seen = self._known.keys(records)
        parents = self._shared.of(records)
        if parents is None:
            return fresh(self._space, seen, rng)
        row = self._child(parents, rng)
        params = self._encoder.decode(row)
        if self._space.allows(params):
            params = self._space.typed(params)
            if self._space.key(params) not in seen:
                return params
        return around(self._space, self._space.repair(params, rng), seen, rng)

    def _parents(
        self,
        records: Sequence[TrialRecord],
        rng: np.random.Generator,  # noqa: ARG002  # nothing is drawn
    ) -> Floats | None:
        """Rows of the best trials, best first [N, P]; None while there are too few."""
        evidence = self._evidence
        evidence.update(records)
        for level in reversed(range(evidence.shown.shape[1])):
            shown = evidence.shown[:, level]
            usable = np.flatnonzero(np.isfinite(shown[:, 0]) & (evidence.states != FAILED))
            if len(usable) >= self._population:
                losses = np.column_stack([evidence.broken[usable, level], shown[usable]])
                best: Floats = evidence.rows[usable[best_of(losses, self._population)]]
                return best
        return None

    def _child(self, parents: Floats, rng: np.random.Generator) -> Floats:
        first, second = (parents[rng.integers(len(parents), size=2).min()] for _ in range(2))
        swapped = rng.random(len(first)) < SWAPPED * (rng.random() < CROSSED)
        child = np.where(swapped, second, first)[None]
        share, scale = np.full(1, 1.0 / len(first)), np.full(1, STEP)
        row: Floats = self._encoder.moved(child, rng, scale, share)[0]
        return row


class QuasiRandomProposer(RandomProposer):
    """A scrambled Sobol sequence, which leaves fewer gaps than chance does.

    A point that rules forbid is replaced by a valid one near it.

    Source: Owen, 1998 (scrambling); Bergstra and Bengio, JMLR 2012 (for tuning).
    """

    def propose(self, records: Sequence[TrialRecord]) -> Params | None:
        """The next point of the sequence."""
        from scipy.stats.qmc import Sobol  # two seconds that the other samplers need not spend

        rng = self._rng(records)
        keys = self._space.keys
        sequence = Sobol(len(keys), scramble=True, rng=np.random.default_rng(self._seed))
        if records:  # SciPy cannot go forward by nothing
            sequence.fast_forward(len(records))
        units = sequence.random(1)[0]
        params: Params = {}
        for key, unit in zip(keys, units.tolist(), strict=True):
            if key in self._space.active_keys(params):
                params[key] = self._space.domains[key].draw(unit)
        seen = self._known.keys(records)
        return around(self._space, self._space.repair(params, rng), seen, rng)
