"""Who is best where several objectives count: by constraints, fronts and hypervolume."""

import math

import numpy as np
from numpy.typing import NDArray

from search.encoding import Floats
from search.results import Mode, hypervolume


def best_of(losses: Floats, num: int) -> list[int]:
    """The best rows: fewest broken constraints, then by front, then by hypervolume in a front.

    Args:
        losses: violation of constraints, then each objective; smaller is better [N, 1 + M].
        num: how many.
    """
    broken: NDArray[np.bool_] = ~np.all(np.isfinite(losses), axis=1)
    violation = np.where(broken, math.inf, losses[:, 0])
    objectives = np.where(broken[:, None], 0.0, losses[:, 1:])
    left = np.arange(len(losses))
    best: list[int] = []
    while len(best) < num and len(left):
        feasible = left[violation[left] == violation[left].min()]
        front = feasible[~_dominated(objectives[feasible])]
        room = num - len(best)
        if len(front) > room:
            front = front[np.lexsort((front, -_added(objectives[front])))[:room]]
        best += front.tolist()
        left = np.setdiff1d(left, front)
    return best


def _dominated(losses: Floats) -> NDArray[np.bool_]:
    """Whether another row is nowhere worse and somewhere better [N]."""
    # In this order a row can be dominated only by rows before it.
    rows, places = np.unique(losses, axis=0, return_inverse=True)
    found = np.zeros(len(rows), np.bool_)
    if rows.shape[1] == 2:
        found[1:] = np.minimum.accumulate(rows[:, 1])[:-1] <= rows[1:, 1]
        return found[places]
    front = rows[:1]
    for index in range(1, len(rows)):
        found[index] = np.all(front <= rows[index], axis=1).any()
        if not found[index]:
            front = np.vstack([front, rows[index]])
    return found[places]


def _added(front: Floats) -> Floats:
    """What each point of a front adds to its hypervolume, in units of the front's range [N]."""
    low, high = front.min(axis=0), front.max(axis=0)
    points = ((front - low) / np.where(high > low, high - low, 1.0)).tolist()
    corner: list[float] = [1.1] * front.shape[1]
    modes: list[Mode] = ["min"] * front.shape[1]
    whole = hypervolume(points, corner, modes)
    rest = [hypervolume(points[:i] + points[i + 1 :], corner, modes) for i in range(len(points))]
    return whole - np.array(rest)
