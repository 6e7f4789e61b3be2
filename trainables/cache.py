"""Where this machine's own results are kept: compiled kernels, calibration."""

import os
from pathlib import Path

CACHE_VARIABLE = "SPIKETUNE_CACHE"


def cache_folder() -> Path:
    """SPIKETUNE_CACHE, or spiketune's folder in the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spiketune"
