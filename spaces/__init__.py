"""What may be tried: strict search-space files and proposals that are valid by construction."""

from spaces.drawing import NoValidPointError
from spaces.loader import load_search_space, load_trial_config
from spaces.problems import Problem, SpaceError
from spaces.schema import SearchSpec
from spaces.space import SearchSpace

__all__ = [
    "NoValidPointError",
    "Problem",
    "SearchSpace",
    "SearchSpec",
    "SpaceError",
    "load_search_space",
    "load_trial_config",
]
