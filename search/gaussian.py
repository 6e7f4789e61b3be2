"""Gaussian processes: of one level of results, and of a ladder of levels on top of each other.

Shapes: N points, A points asked for, F features, P parameters.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize

from search.encoding import Floats

_ROOT5 = math.sqrt(5.0)
_JITTER = 1e-6
_NOISE = 0.02  # of the variance, before any data speak
_STEPS = 8  # of L-BFGS, from the prior's centre each time
_FIT_POINTS = 64
_FAR = 1e-12


@dataclass(frozen=True)
class Kernel:
    """Matérn 5/2 with one length a parameter.

    Attributes:
        lengths: by parameter [P], in units of a parameter's range.
        owners: which parameter each feature belongs to [F].
        variance: of the function.
        noise: of the observations.
    """

    lengths: Floats
    owners: NDArray[np.int64]
    variance: float
    noise: float

    def __call__(self, first: Floats, second: Floats) -> Floats:
        """Covariances [N, A]."""
        first, second = (x / self.lengths[self.owners] for x in (first, second))
        squared = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2.0 * first @ second.T
        # In place: this is where most of a proposal's time goes.
        np.maximum(squared, 0.0, out=squared)
        squared *= 5.0
        scaled: Floats = np.sqrt(squared, out=squared)
        covariances = scaled / 3.0
        covariances += 1.0
        covariances *= scaled
        covariances += 1.0
        np.negative(scaled, out=scaled)
        covariances *= np.exp(scaled, out=scaled)
        covariances *= self.variance
        return covariances


def fit_kernel(x: Floats, y: Floats, owners: NDArray[np.int64], rng: np.random.Generator) -> Kernel:
    """The kernel of greatest posterior density, roughly: a few steps on some of the points.

    Args:
        x: features [N, F].
        y: standardised values [N].
        owners: which parameter each feature belongs to [F].
        rng: chooses the points where there are many.

    Source: Rasmussen and Williams, 2006, section 5.4.
    """
    if len(y) > _FIT_POINTS:
        some = np.sort(rng.permutation(len(y))[:_FIT_POINTS])
        x, y = x[some], y[some]
    num = int(owners.max()) + 1
    apart = np.stack([_squared(x[:, owners == p]) for p in range(num)])
    # Lengths grow with the number of parameters, as distances do.
    centre = np.array([*[math.log(0.35 * math.sqrt(num))] * num, 0.0, math.log(_NOISE)])
    spread = np.array([*[1.0] * num, 1.0, 1.5])
    found = minimize(
        _loss,
        centre,
        args=(apart, y, centre, spread),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-3.0, 4.0)] * num + [(-3.0, 3.0), (-9.0, 1.0)],
        options={"maxiter": _STEPS, "maxfun": _STEPS + 5},
    )
    theta = found.x
    return Kernel(
        np.exp(theta[:num]), owners, math.exp(theta[num]), math.exp(theta[num + 1]) + 1e-3
    )


def _loss(
    theta: Floats, apart: Floats, y: Floats, centre: Floats, spread: Floats
) -> tuple[float, Floats]:
    """Negative log posterior of the kernel's parameters, and its gradient."""
    num = len(apart)
    inverse = np.exp(-2.0 * theta[:num])
    squared = np.tensordot(inverse, apart, 1)
    scaled = _ROOT5 * np.sqrt(squared)
    decay = math.exp(theta[num]) * np.exp(-scaled)
    signal = (1.0 + scaled + 5.0 / 3.0 * squared) * decay
    noise = math.exp(theta[num + 1])
    whole = signal + (noise + 1e-3) * np.eye(len(y))
    lower = np.linalg.cholesky(whole)
    precision = cho_solve((lower, True), np.eye(len(y)), check_finite=False)
    weights = precision @ y
    pull = precision - np.outer(weights, weights)
    off = (theta - centre) / spread
    loss = 0.5 * float(y @ weights) + float(np.log(np.diag(lower)).sum()) + 0.5 * float(off @ off)
    slope = 5.0 / 3.0 * (1.0 + scaled) * decay * pull
    gradient = off / spread
    gradient[:num] += 0.5 * inverse * np.tensordot(apart, slope, ([1, 2], [0, 1]))
    gradient[num] += 0.5 * float((pull * signal).sum())
    gradient[num + 1] += 0.5 * float(np.trace(pull)) * noise
    return loss, gradient


def _squared(x: Floats) -> Floats:
    squared: Floats = ((x[:, None, :] - x[None]) ** 2).sum(-1)
    return squared


class Process:
    """A zero-mean Gaussian process that has seen values at points.

    Args:
        kernel: of the process.
        x: features of the points [N, F].
        y: values there [N].
    """

    def __init__(self, kernel: Kernel, x: Floats, y: Floats) -> None:
        """Condition on the values."""
        self._kernel = kernel
        self._x, self._y = x, y
        self._condition()

    def believe(self, x: Floats) -> None:
        """Take what is expected at points for seen, so that they are not asked for again.

        Source: Ginsbourger et al., 2010 (the kriging believer).
        """
        if not len(x):
            return
        expected = self.mean(x)
        self._x, self._y = np.vstack([self._x, x]), np.concatenate([self._y, expected])
        self._condition()

    def mean(self, x: Floats) -> Floats:
        """Expected values [A]."""
        means: Floats = self._kernel(x, self._x) @ self._weights
        return means

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Expected values and their variances [A]."""
        shared = self._kernel(x, self._x)
        half = solve_triangular(self._lower, shared.T, lower=True, check_finite=False)
        variances = np.maximum(self._kernel.variance - (half**2).sum(0), _FAR)
        return shared @ self._weights, variances

    def _condition(self) -> None:
        whole = self._kernel(self._x, self._x)
        whole[np.diag_indices_from(whole)] += self._kernel.noise + _JITTER * self._kernel.variance
        self._lower = np.linalg.cholesky(whole)
        self._weights = cho_solve((self._lower, True), self._y, check_finite=False)
