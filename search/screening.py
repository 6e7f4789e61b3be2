"""Which proposal becomes a trial: of several, the one whose untrained network promises most.

Each candidate comes from a sampler with a seed of its own, which is asked as if it were alone: what
is dropped leaves no trace in any of them. Trial and score depend on (seed, trial number, results so
far) only, so a resumed search run one trial at a time chooses what an uninterrupted one does.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from search.problem import Params
from search.propose import Proposer, make_proposer
from search.records import TrialRecord
from spaces.schema import SearchSpec
from trainables.config import TrialConfig
from trainables.cost import total_macs
from trainables.errors import InputError, SpiketuneError

logger = logging.getLogger(__name__)

_CHECKED_POINTS = 64


class ScreenError(SpiketuneError):
    """A proposal's network could not be scored."""


@dataclass(frozen=True)
class Choice:
    """Parameters of the next trial.

    Attributes:
        params: valid and not tried before.
        screen: `score` of its network and those of the candidates `dropped` for it; empty where
            there was nothing to choose from.
    """

    params: Params
    screen: Mapping[str, Any] = field(default_factory=dict)


class Chooser:
    """Chooses trials: what the sampler proposes, or the best-scored of several proposals.

    Args:
        spec: the search.
        rungs: epochs at which results are compared, ascending.
    """

    def __init__(self, spec: SearchSpec, rungs: Sequence[int]) -> None:
        """Build a sampler for each candidate; the first is the one of a search without screen."""
        self._spec = spec
        num = 1 if spec.screen is None else spec.screen.candidates
        self._proposers: list[Proposer] = [
            make_proposer(_reseeded(spec, index), rungs) for index in range(num)
        ]

    def choose(self, records: Sequence[TrialRecord]) -> Choice | None:
        """The next trial; None when every valid point has been tried.

        Raises:
            ScreenError: a candidate could not be scored; asked again, the choice is the same.
        """
        space = self._spec.search_space
        found: dict[str, Params] = {}
        for proposer in self._proposers:
            params = proposer.propose(records)
            if params is not None:
                found.setdefault(space.key(params), params)
        candidates = list(found.values())
        if not candidates:
            return None
        if len(candidates) == 1:
            return Choice(candidates[0])
        seed = _number(self._spec.sampler.seed, 0, len(records))
        scores = [score(self._spec.trial_config(params), seed) for params in candidates]
        best = int(np.argmax(scores))
        dropped = [value for index, value in enumerate(scores) if index != best]
        return Choice(candidates[best], {"score": scores[best], "dropped": dropped})


def score(config: TrialConfig, seed: int) -> float:
    """Score an untrained network, higher is better.

    Raises:
        ScreenError: data or memory do not suffice.
    """
    from trainables.screening import spike_diversity  # only those who screen load the network code

    try:
        return spike_diversity(config, seed)
    except (SpiketuneError, RuntimeError, MemoryError, OSError) as error:
        model = config.model
        raise ScreenError(
            f"screen: a network of depth {model.depth}, width {model.width} and "
            f"{model.timesteps} timesteps must be scored on the driver's CPU, but: "
            f"{type(error).__name__}: {error}"
        ) from error


def check_screen(spec: SearchSpec) -> None:
    """Score some valid networks before a search starts: each kind of data, and a large one.

    Raises:
        InputError: a network cannot be scored, or it takes so long that trials would be taken for
            hanging meanwhile.
    """
    if spec.screen is None:
        return
    rng = np.random.default_rng(spec.sampler.seed)
    space = spec.search_space
    configs = [spec.trial_config(space.sample(rng)) for _ in range(_CHECKED_POINTS)]
    configs.sort(key=lambda config: total_macs(config.model))
    shapes = {(c.data, c.model.timesteps, c.model.image_size): c for c in configs}
    took_s = 0.0
    for config in shapes.values():  # of each shape the largest; the last one is the largest of all
        start_s = time.monotonic()
        try:
            score(config, spec.sampler.seed)
        except ScreenError as error:
            raise InputError(str(error)) from error
        took_s = time.monotonic() - start_s
    _check_time(spec, took_s * spec.screen.candidates)


def _check_time(spec: SearchSpec, stalled_s: float) -> None:
    """The driver listens to nobody while it scores.

    Raises:
        InputError: that may take as long as a trial may be silent.
    """
    limit_s = spec.stopping.trial_timeout_s
    if limit_s is not None and stalled_s > 0.5 * limit_s:
        raise InputError(
            f"stopping.trial_timeout_s must be at least {2 * stalled_s:.3g} (twice what scoring "
            f"{spec.screen and spec.screen.candidates} large candidates takes), but got {limit_s}"
        )
    logger.info("screen: scoring the candidates of a trial takes up to %.2g s", stalled_s)


def _reseeded(spec: SearchSpec, index: int) -> SearchSpec:
    """The search with the sampler seed of one of its candidates; the first has the search's own."""
    if index == 0:
        return spec
    seed = _number(spec.sampler.seed, 1, index)
    sampler = spec.sampler.model_copy(update={"seed": seed})
    return spec.model_copy(update={"sampler": sampler})


def _number(*entropy: int) -> int:
    """A 32-bit seed made of several numbers."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
