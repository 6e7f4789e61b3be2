"""PED-ANOVA importances of many targets at once, without Optuna's evaluator.

Optuna's brings scikit-learn with it, which takes seconds to import, and counts every trial anew for
each target; shuffled values are forty targets on the same trials. A test holds both together.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

_STEPS = 50  # of the grid that a range is rounded to
_LEAST_ACTIVE = 2
_PRIOR_WEIGHT = 1.0
_TINY = 1e-12
_IQR_OF_SIGMA, _SCOTT = 1.34, 1.059
_LEAST_SIGMA = 0.5 / 1.64


def ped_anova(
    params: Sequence[Mapping[str, Any]],
    described: Mapping[str, BaseDistribution],
    targets: Sequence[Bools],
) -> list[dict[str, float]]:
    """How much each parameter sets a target's trials apart from all, before scaling.

    Args:
        params: of every trial; inactive ones are absent.
        described: the distribution of each parameter that is asked for.
        targets: which trials belong to each target [N].

    Returns:
        The importances by parameter, one mapping a target.

    Source: Watanabe et al., IJCAI 2023 (arXiv 2304.10255) and, for conditional parameters, arXiv
    2601.20800.
    """
    found: list[dict[str, float]] = [dict.fromkeys(described, 0.0) for _ in targets]
    for key, distribution in described.items():
        at = np.array([place for place, own in enumerate(params) if key in own], dtype=int)
        if len(at) < _LEAST_ACTIVE or distribution.single():
            continue
        cells, size = _cells(distribution, [params[place][key] for place in at])
        density = _density_of(distribution, size)
        local = density(np.bincount(cells, minlength=size)) + _TINY
        for importances, target in zip(found, targets, strict=True):
            chosen = cells[target[at]]
            if len(chosen):
                top = density(np.bincount(chosen, minlength=size)) + _TINY
                divergence = float(local @ ((top / local - 1) ** 2))
                # The paper's alpha^2 / beta of the trials that have it, times (gamma' / gamma)^2.
                importances[key] = len(chosen) ** 2 / (len(params) * len(at)) * divergence
    return found


def _cells(distribution: BaseDistribution, values: Sequence[Any]) -> tuple[NDArray[Any], int]:
    """Where values lie on a parameter's grid, and how many cells it has."""
    if isinstance(distribution, CategoricalDistribution):
        at = [int(distribution.to_internal_repr(value)) for value in values]
        return np.array(at), len(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)  # noqa: S101
    low, high, steps = float(distribution.low), float(distribution.high), _STEPS
    if isinstance(distribution, IntDistribution) and distribution.log:
        steps = min(math.ceil(math.log(high - low + 1) / math.log(2)) + 1, steps)
    elif distribution.step is not None:
        steps = min(round((high - low) / distribution.step) + 1, steps)
    found = np.asarray(values, dtype=np.float64)
    if distribution.log:
        low, high, found = math.log(low), math.log(high), np.log(found)
    cells = np.ceil((found - low) / ((high - low) / (steps - 1)) - 0.5).astype(int)
    return np.clip(cells, 0, steps - 1), steps


def _density_of(distribution: BaseDistribution, size: int) -> Callable[[NDArray[Any]], Floats]:
    """What estimates a density on the grid from the counts of its cells."""
    if isinstance(distribution, CategoricalDistribution):
        return _listed_density
    prior = _kernel(np.arange(size + 1) - size / 2.0, float(size))

    def density(counts: NDArray[Any]) -> Floats:
        at = np.flatnonzero(counts)
        weights = counts[at]
        # A cell's edges lie as far from a kernel's centre as those of others from another's.
        below = _below(np.arange(1 - size, size + 1) - 0.5, _sigma(at, weights))
        edges = below[np.arange(size + 1)[None, :] - at[:, None] + size - 1]
        kernels = np.diff(edges, axis=1) / (edges[:, -1:] - edges[:, :1])
        return np.asarray(
            (weights @ kernels + _PRIOR_WEIGHT * prior) / (weights.sum() + _PRIOR_WEIGHT)
        )

    return density


def _listed_density(counts: NDArray[Any]) -> Floats:
    at = np.flatnonzero(counts)
    weights = counts[at]
    num_kernels = len(at) + 1
    flat = _PRIOR_WEIGHT / num_kernels
    kernels = np.full((num_kernels, len(counts)), flat)
    kernels[np.arange(len(at)), at] += 1
    kernels /= kernels.sum(axis=1, keepdims=True)
    all_weights = np.append(weights, _PRIOR_WEIGHT)
    return np.asarray(all_weights @ kernels / all_weights.sum())


def _sigma(at: NDArray[Any], weights: NDArray[Any]) -> float:
    """Scott's rule over cells with so many trials each."""
    up_to = np.cumsum(weights)
    total = up_to[-1]
    mean = (at @ weights) / total
    sigma = math.sqrt(((at - mean) ** 2 @ weights) / max(1, total - 1))
    first = at[np.searchsorted(up_to, total // 4, side="left")]
    third = at[min(len(at) - 1, int(np.searchsorted(up_to, total * 3 // 4, side="right")))]
    scott = _SCOTT * min((third - first) / _IQR_OF_SIGMA, sigma) * float(total) ** -0.2
    return max(float(scott), _LEAST_SIGMA)


def _kernel(edges: Floats, sigma: float) -> Floats:
    """Mass of the cells between edges, which are distances to a normal kernel's centre."""
    below = _below(edges, sigma)
    return np.asarray(np.diff(below) / (below[-1] - below[0]))


def _below(distances: Floats, sigma: float) -> Floats:
    scaled = (distances / (-sigma * math.sqrt(2.0))).tolist()
    return 0.5 * np.array([math.erfc(one) for one in scaled])
