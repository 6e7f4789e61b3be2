"""The rung-aware Gaussian process sampler."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from search.encoding import Encoder, Floats
from search.evidence import FAILED, RUNNING, Evidence
from search.ladder import Ladder
from search.problem import Params, Problem
from search.propose_random import RandomProposer, Shared, around, fresh
from search.records import TrialRecord

MIN_RESULTS = 10
RANDOM_SHARE = 0.1
OPTIMISM = 2.0
NUM_ANYWHERE, NUM_NEAR = 1000, 200
NUM_CENTRES = 10
NEAR_SCALE = (0.02, 0.2)  # steps beside good points, in ranges of a parameter
NEAR_SHARES = (0.3, 1.0)  # of parameters that such a step changes
CHECKED = 32
WEIGHED = 256  # candidates whose costs are predicted, where they count
_LEAST_WEIGHT = 0.05


@dataclass(frozen=True)
class Board:
    """Candidates, and what the model says of them.

    Attributes:
        rows: encoded candidates [A, P].
        means: expected badness [A].
        deviations: how far it may be off [A].
        least: expected badness of the best trial so far.
        decoded: parameters of the candidates that were looked at; None of invalid ones.
    """

    rows: Floats
    means: Floats
    deviations: Floats
    least: float
    decoded: dict[int, Params | None] = field(default_factory=dict)


class GaussianProposer(RandomProposer):
    """Bayesian optimisation over the levels of early stopping.

    A Gaussian process a level, each built on the one below, predicts results of the full budget
    from all that trials have shown so far. Of points drawn anywhere and beside the best ones, the
    proposal is the one of the lowest bound, every proposal with an optimism of its own, so that
    many workers do not try the same. What runs counts with what is expected of it. One proposal in
    ten is random. Where the problem has a cost, of the points with the lowest bounds it is the one
    that may gain most a second. Several objectives are weighed anew for each model; failed trials
    and those that break an outcome constraint count as bad. From the 128th trial on, several
    proposals share a model and its candidates.

    Source: ladder of levels, see `search/ladder.py`; random optimism: Berk et al., 2021
    (arXiv 2006.04296); weights: Knowles, ParEGO, 2006.
    """

    def __init__(self, problem: Problem) -> None:
        """Keep the objectives and how many results a model needs."""
        super().__init__(problem)
        self._problem = problem
        self._encoder = Encoder(problem.space)
        self._evidence = Evidence(problem, self._encoder)
        quarter = MIN_RESULTS if problem.trials is None else math.ceil(problem.trials / 4)
        self._need = min(MIN_RESULTS, max(3, quarter))
        self._shared = Shared(self._board, problem.seed)

    def propose(self, records: Sequence[TrialRecord]) -> Params | None:
        """The most promising valid new point."""
        rng = self._rng(records)
        seen = self._known.keys(records)
        board = self._shared.of(records)
        if board is None or rng.random() < RANDOM_SHARE:
            return fresh(self._space, seen, rng)
        bound = board.means - OPTIMISM * abs(rng.normal()) * board.deviations
        order = np.argsort(bound, kind="stable")
        cost_s = self._problem.cost_s
        looked_at = order[: WEIGHED if cost_s else CHECKED].tolist()
        new = self._new(board, looked_at, seen)
        if cost_s is None:
            best = next((params for _, params in new), None)
        else:
            best = _paying(((p, board.least - float(bound[at])) for at, p in new), cost_s)
        if best is not None:
            return best
        near = self._space.repair(self._encoder.decode(board.rows[order[0]]), rng)
        return around(self._space, near, seen, rng)

    def _new(
        self, board: Board, looked_at: Iterable[int], seen: set[str]
    ) -> Iterator[tuple[int, Params]]:
        """Those candidates that are valid and were not tried, with their places."""
        for at in looked_at:
            if at not in board.decoded:
                params = self._encoder.decode(board.rows[at])
                is_valid = self._space.allows(params)
                board.decoded[at] = self._space.typed(params) if is_valid else None
            found = board.decoded[at]
            if found is not None and self._space.key(found) not in seen:
                yield at, found

    def _board(self, records: Sequence[TrialRecord], rng: np.random.Generator) -> Board | None:
        """What the model says after these trials; None while there are too few results."""
        self._evidence.update(records)
        badness = self._badness(rng)
        if np.isfinite(badness[:, :1]).sum() < self._need:
            return None
        return self._judged(badness, rng)

    def _badness(self, rng: np.random.Generator) -> Floats:
        """How bad each trial is at each level by weights drawn for this proposal [N, L]."""
        shown = self._evidence.shown
        if shown.shape[2] == 1:
            badness = shown[:, :, 0].copy()
        else:
            weights = np.maximum(rng.dirichlet(np.ones(shown.shape[2])), _LEAST_WEIGHT)
            badness = _weighed(shown, weights)
        badness[self._lost(badness)] = math.nan
        return badness

    def _lost(self, badness: Floats) -> NDArray[np.bool_]:
        """Trials that failed, or broke an outcome constraint where they were seen last [N]."""
        reached = np.isfinite(badness)
        depth = badness.shape[1]
        last = depth - 1 - np.argmax(reached[:, ::-1], axis=1)
        broken = self._evidence.broken[np.arange(len(badness)), last] & reached.any(axis=1)
        lost: NDArray[np.bool_] = broken | (self._evidence.states == FAILED)
        return lost

    def _judged(self, badness: Floats, rng: np.random.Generator) -> Board:
        """Candidates anywhere and beside the best trials, and what is expected of them."""
        rows, states = self._evidence.rows, self._evidence.states
        features = self._encoder.features(rows)
        unknown = ~np.isfinite(badness).any(axis=1)
        lost: NDArray[np.bool_] = unknown & ((states == FAILED) | self._evidence.broken.any(axis=1))
        owners = self._encoder.owners
        ladder = Ladder(features, owners, badness, lost, (states == RUNNING) & ~lost, rng)
        seen = ladder.seen
        expected, _ = ladder.predict(features[seen])
        best = seen[np.argsort(expected, kind="stable")[:NUM_CENTRES]]
        places = rng.exponential(len(best) / 3.0, NUM_NEAR).astype(int)
        centres = rows[best[np.minimum(places, len(best) - 1)]]
        least, most = (math.log(scale) for scale in NEAR_SCALE)
        scale = np.exp(rng.uniform(least, most, NUM_NEAR))
        near = self._encoder.moved(centres, rng, scale, rng.choice(NEAR_SHARES, NUM_NEAR))
        candidates = np.vstack([self._encoder.uniform(rng, NUM_ANYWHERE), near])
        means, variances = ladder.predict(self._encoder.features(candidates))
        return Board(candidates, means, np.sqrt(variances), float(expected.min()))


def _paying(
    candidates: Iterable[tuple[Params, float]], cost_s: Callable[[Params], float]
) -> Params | None:
    """The candidate of the largest gain a predicted second; None of none."""
    best, most = None, -math.inf
    for params, gain in candidates:
        paid = gain / cost_s(params) if gain > 0.0 else gain
        if paid > most:
            best, most = params, paid
    return best


def _weighed(shown: Floats, weights: Floats) -> Floats:
    """Augmented Chebyshev distance to the best of each objective [N, L]."""
    with np.errstate(all="ignore"):
        known = shown[np.isfinite(shown).all(axis=2)]
        if not len(known):
            return np.full(shown.shape[:2], math.nan)
        low, high = known.min(axis=0), np.median(known, axis=0)
        scaled = weights * (shown - low) / np.where(high > low, high - low, 1.0)
        distance: Floats = scaled.max(axis=2) + 0.05 * scaled.sum(axis=2)
    return distance
