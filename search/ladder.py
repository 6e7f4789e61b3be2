"""What results of few epochs say of the full budget: one Gaussian process a level.

The lowest level has results of nearly all trials, the highest those of the few that were not
stopped. Each level is a multiple of the level below plus a process of its own, so that values of
different epochs are never mixed, and a trial that was stopped says what it has shown and no more.

Source: Kennedy and O'Hagan, Biometrika 2000; recursive form: Le Gratiet and Garnier, 2014. It
differs in that the multiple is drawn towards 1: the few that went on are alike, and a slope fitted
to them alone says nothing of the rest.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from search.encoding import Floats
from search.gaussian import Kernel, Process, fit_kernel

MAX_POINTS = 200  # of one level: the best half and a draw of the rest
MIN_PAIRS = 4
_PULL = 2.0  # results that the prior slope of 1 is worth
_STEP_NOISE = 0.05
_LEAST_SLOPE, _MOST_SLOPE = 0.2, 2.0


@dataclass(frozen=True)
class Step:
    """How a level follows from the one below."""

    offset: float
    slope: float
    process: Process


class Ladder:
    """Predicts badness at the highest level that enough trials have reached.

    Args:
        features: of all trials [N, F].
        owners: which parameter each feature belongs to [F].
        badness: at each level, NaN where a trial has not come so far [N, L].
        failed: trials that have failed; they count as bad [N].
        running: trials whose next levels are to be expected [N].
        rng: chooses among many points.
    """

    def __init__(
        self,
        features: Floats,
        owners: NDArray[np.int64],
        badness: Floats,
        failed: NDArray[np.bool_],
        running: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> None:
        """Fit the lowest level, then each step."""
        reached = np.isfinite(badness)
        capped = _capped(badness, reached)
        at, y = self._lowest(capped, reached, failed, rng)
        self.seen = at
        self._shift, self._unit = float(y.mean()), float(y.std()) or 1.0
        standard = (y - self._shift) / self._unit
        kernel = fit_kernel(features[at], standard, owners, rng)
        self._ground = Process(kernel, features[at], standard)
        self._ground.believe(features[running & ~reached[:, 0]][-MAX_POINTS:])
        self._steps: list[Step] = []
        self._spread = float(capped[reached[:, 0], 0].std()) or 1.0
        for level in range(1, badness.shape[1]):
            here = np.flatnonzero(reached[:, level])
            if len(here) < MIN_PAIRS:
                break
            if len(here) > MAX_POINTS:
                here = here[np.argsort(capped[here, level], kind="stable")[:MAX_POINTS]]
            step = self._step(features[here], capped[here, level - 1], capped[here, level], kernel)
            step.process.believe(features[running & ~reached[:, level]][-MAX_POINTS:])
            self._steps.append(step)

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Expected badness and its variance [A]."""
        means, variances = self._ground.predict(x)
        means, variances = self._shift + self._unit * means, variances * self._unit**2
        for step in self._steps:
            change, doubt = step.process.predict(x)
            means = step.offset + step.slope * means + change
            variances = step.slope**2 * variances + doubt
        return means, variances

    @staticmethod
    def _lowest(
        capped: Floats,
        reached: NDArray[np.bool_],
        failed: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int64], Floats]:
        shown = np.flatnonzero(reached[:, 0])
        lost = np.flatnonzero(failed & ~reached[:, 0])
        known = capped[shown, 0]
        # Worse than all others, also where these are all the same.
        worst = float(known.max() + 0.5 * ((known.max() - known.min()) or 1.0))
        at = np.concatenate([shown, lost])
        y = np.concatenate([known, np.full(len(lost), worst)])
        if len(at) > MAX_POINTS:
            order = np.argsort(y, kind="stable")
            half = MAX_POINTS // 2
            kept = np.concatenate([order[:half], rng.permutation(order[half:])[:half]])
            at, y = at[kept], y[kept]
        return at, y

    def _step(self, x: Floats, below: Floats, above: Floats, kernel: Kernel) -> Step:
        low, high = below - below.mean(), above - above.mean()
        pull = _PULL * self._spread**2
        slope = float((low @ high + pull) / (low @ low + pull))
        slope = min(max(slope, _LEAST_SLOPE), _MOST_SLOPE)
        rest = high - slope * low
        variance = float((rest @ rest + (0.2 * self._spread) ** 2) / (len(rest) + 1))
        own = replace(kernel, variance=variance, noise=_STEP_NOISE * variance)
        return Step(float(above.mean() - slope * below.mean()), slope, Process(own, x, rest))


def _capped(badness: Floats, reached: NDArray[np.bool_]) -> Floats:
    """Badness without the tail: how bad a bad result is says nothing of where the good ones are."""
    capped = badness.copy()
    for level in range(badness.shape[1]):
        here = reached[:, level]
        if here.any():
            values = badness[here, level]
            middle = float(np.median(values))
            reach = 1.0 if level == 0 else 2.0
            capped[here, level] = np.minimum(values, middle + reach * (middle - values.min()))
    return capped
