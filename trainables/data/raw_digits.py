"""scikit-learn's digits, read from its own file without importing it.

Importing scikit-learn takes seconds in every worker process; the file is all that is needed.
"""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

SIDE = 8


@lru_cache(maxsize=1)
def raw_digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 images `[N,8,8]` of values 0 to 16 (float32), and their labels `[N]` (int64).

    Source: Alpaydin and Kaynak, UCI Optical Recognition of Handwritten Digits, 1998.
    """
    spec = find_spec("sklearn")
    places = spec.submodule_search_locations if spec else None
    for place in places or ():
        path = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            table = np.loadtxt(path, delimiter=",", dtype=np.float32)
            return table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images.astype(np.float32), found.target.astype(np.int64)
