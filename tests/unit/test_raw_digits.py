"""The digits are scikit-learn's, whichever way they are read."""

import numpy as np
from sklearn.datasets import load_digits

from trainables.data.raw_digits import raw_digits


def test_the_file_read_is_what_scikit_learn_loads() -> None:
    images, labels = raw_digits()
    wanted = load_digits()
    assert np.array_equal(images, wanted.images)
    assert np.array_equal(labels, wanted.target)
