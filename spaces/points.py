"""Points that are to be tried first, completed to valid ones of a space."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from spaces.domains import ChoiceDomain
from spaces.drawing import NoValidPointError
from spaces.reading import recipe, recipe_names
from spaces.space import SearchSpace
from trainables.config import flatten

Params = dict[str, Any]


def completed(space: SearchSpace, given: Mapping[str, Any]) -> Params | None:
    """The valid point that has the given values and else as much as may be of the recipe.

    Args:
        space: whose points are wanted.
        given: values by key, each of its key's domain; other keys may be missing.

    Returns:
        None when no valid point has these values.
    """
    near = _nearest(space, {**space.base, **given})
    point = space.completed(given, near, np.random.default_rng(0))
    if point is None or any(key not in point or point[key] != given[key] for key in given):
        return None
    return point


def projected(space: SearchSpace, wanted: Mapping[str, Any]) -> Params:
    """A valid point near to what is wanted: each value the nearest of its domain that rules allow.

    Raises:
        NoValidPointError: the space has no valid point.
    """
    return space.repair(_nearest(space, wanted), np.random.default_rng(0))


def _nearest(space: SearchSpace, wanted: Mapping[str, Any]) -> Params:
    """What is wanted, each value the nearest of its domain, whatever the rules say."""
    near: Params = {}
    for key in space.keys:
        if key in wanted and key in space.active_keys(near):
            domain, value = space.domains[key], wanted[key]
            if isinstance(domain, ChoiceDomain):
                near |= {key: value} if domain.contains(value) else {}
            elif isinstance(value, int | float):
                near[key] = domain.nearest(value)
    return near


def paper_points(space: SearchSpace, name: str) -> Iterator[Params]:
    """The published configurations for a recipe's data set, as near as the space has them.

    The recipe itself comes first; of others, those that the space can express in the searched keys.

    Args:
        space: whose points are wanted.
        name: of a recipe.
    """
    first = recipe(name)
    others = (recipe(other) for other in recipe_names() if other != name)
    same = (config for config in others if config.data.name == first.data.name)
    seen: set[str] = set()
    for config in (first, *same):
        try:
            point = projected(space, flatten(config.model_dump()))
        except NoValidPointError:
            return
        if space.key(point) not in seen:
            seen.add(space.key(point))
            yield point
