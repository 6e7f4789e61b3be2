"""How much memory a search's trials are predicted to take, from the smallest to the largest."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spaces.schema import SearchSpec
from trainables.config import TrialConfig
from trainables.footprint import DeviceType, predicted_memory

_LISTED = 512


@dataclass(frozen=True)
class Extremes:
    """The trials of a search that take least and most memory, of all or of many drawn ones.

    Attributes:
        smallest: the one that takes least.
        largest: the one that takes most.
        largest_params: its parameters.
    """

    smallest: TrialConfig
    largest: TrialConfig
    largest_params: Mapping[str, Any]


def extremes(spec: SearchSpec, device: DeviceType) -> Extremes:
    """Find the smallest and the largest trial of a search.

    Args:
        spec: the search.
        device: of which memory.
    """
    found = [(spec.trial_config(params), params) for params in _points(spec)]
    sizes = [predicted_memory(config, device).safe_mib for config, _ in found]
    low, high = sizes.index(min(sizes)), sizes.index(max(sizes))
    return Extremes(found[low][0], found[high][0], found[high][1])


def _points(spec: SearchSpec) -> Iterator[dict[str, Any]]:
    space = spec.search_space
    if space.cardinality() <= _LISTED:
        yield from space.enumerate_valid(_LISTED)
        return
    rng = np.random.default_rng(spec.sampler.seed)
    for _ in range(_LISTED):
        yield space.sample(rng)
