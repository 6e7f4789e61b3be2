"""The model over levels: what it predicts of points with known answers."""

import numpy as np

from search.gaussian import Process, fit_kernel
from search.ladder import Ladder

OWNERS = np.arange(2)


def points(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((num, 2))


def test_a_process_goes_through_what_it_has_seen_and_learns_which_parameter_matters() -> None:
    x = points(60)
    y = np.sin(5.0 * x[:, 0])
    kernel = fit_kernel(x, (y - y.mean()) / y.std(), OWNERS, np.random.default_rng(0))
    assert kernel.lengths[1] > 2.0 * kernel.lengths[0]
    process = Process(kernel, x, y)
    means, variances = process.predict(x)
    np.testing.assert_allclose(means, y, atol=0.1)
    away = points(200, seed=1)
    np.testing.assert_allclose(process.mean(away), np.sin(5.0 * away[:, 0]), atol=0.25)
    assert process.predict(away)[1].mean() > variances.mean()


def test_believing_a_point_keeps_the_mean_and_takes_the_doubt() -> None:
    x = points(20)
    y = x[:, 0]
    process = Process(fit_kernel(x, y - y.mean(), OWNERS, np.random.default_rng(0)), x, y)
    asked = np.array([[0.5, 0.99]])
    before, doubt = process.predict(asked)
    process.believe(asked)
    after, rest = process.predict(asked)
    np.testing.assert_allclose(after, before, atol=1e-2)
    assert rest[0] < doubt[0]


def ladder(badness: np.ndarray, x: np.ndarray, failed: np.ndarray | None = None) -> Ladder:
    none = np.zeros(len(x), bool)
    return Ladder(
        x, OWNERS, badness, none if failed is None else failed, none, np.random.default_rng(0)
    )


def test_higher_levels_correct_what_low_ones_say() -> None:
    """After few epochs small x[0] looks good; in the end, of those that went on, large x[1]."""
    x = points(60)
    early = x[:, 0]
    final = 0.3 * x[:, 0] - 1.5 * x[:, 1]
    went_on = early < np.quantile(early, 0.5)
    badness = np.column_stack([early, np.where(went_on, final, np.nan)])
    asked = np.array([[0.2, 0.1], [0.2, 0.9]])
    means, _ = ladder(badness, x).predict(asked)
    assert means[1] < means[0] - 0.3
    alone, _ = ladder(badness[:, :1], x).predict(asked)
    assert abs(alone[1] - alone[0]) < 0.2


def test_units_do_not_matter() -> None:
    x = points(40)
    badness = np.column_stack([x[:, 0], np.where(x[:, 0] < 0.4, x[:, 0] - 1.0, np.nan)])
    asked = points(30, seed=2)
    small, _ = ladder(badness, x).predict(asked)
    large, _ = ladder(1000.0 * badness + 7.0, x).predict(asked)
    np.testing.assert_allclose(large, 1000.0 * small + 7.0, rtol=1e-3, atol=1.0)


def test_failures_count_as_bad_and_far_values_do_not_count_more() -> None:
    x = points(40)
    badness = x[:, :1].copy()
    badness[3] = 1e12
    failed = x[:, 1] > 0.7
    badness[failed] = np.nan
    asked = np.array([[0.5, 0.3], [0.5, 0.95]])
    means, _ = ladder(badness, x, failed).predict(asked)
    assert means[1] > means[0] + 0.1
    assert abs(means).max() < 10.0
