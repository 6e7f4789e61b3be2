"""Our PED-ANOVA against Optuna's, on the same trials."""

import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import create_trial

from search.ped_anova import ped_anova

DESCRIBED: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "drop": FloatDistribution(0.0, 0.5),
    "width": CategoricalDistribution([16, 32, 64]),
    "flag": CategoricalDistribution([True, False]),
    "depth": IntDistribution(1, 6),
    "patch": IntDistribution(2, 200, step=2),
    "heads": IntDistribution(1, 64, log=True),
    "only": IntDistribution(3, 3),
}


def drawn(described: BaseDistribution, rng: np.random.Generator) -> Any:
    if isinstance(described, CategoricalDistribution):
        return described.choices[rng.integers(len(described.choices))]
    assert isinstance(described, FloatDistribution | IntDistribution)
    if isinstance(described, FloatDistribution):
        if described.log:
            return float(np.exp(rng.uniform(np.log(described.low), np.log(described.high))))
        return float(rng.uniform(described.low, described.high))
    return int(rng.integers(0, (described.high - described.low) // described.step + 1)) * int(
        described.step
    ) + int(described.low)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [8, 37, 300])
def test_it_is_optunas(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    params, values = [], []
    for _ in range(count):
        own = {key: drawn(described, rng) for key, described in DESCRIBED.items()}
        if own["flag"] and rng.random() < 0.9:
            del own["drop"]  # exists in some trials only
        value = float(np.log(own["lr"]) ** 2 + own["depth"] + rng.normal())
        params.append(own)
        values.append(value)
        described = {key: DESCRIBED[key] for key in own}
        study.add_trial(create_trial(params=own, distributions=described, value=value))
    best = np.array(values) <= np.sort(values)[int(np.ceil(0.25 * count)) - 1]
    chance = rng.permutation(count) < best.sum()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = PedAnovaImportanceEvaluator(target_quantile=0.25)
        asked = [key for key in DESCRIBED if any(key in own for own in params)]
        expected = [
            evaluator.evaluate(study, asked),
            evaluator.evaluate(study, asked, target=lambda t: float(not chance[t.number])),
        ]
    found = ped_anova(params, {key: DESCRIBED[key] for key in asked}, [best, chance])
    for own_result, optunas in zip(found, expected, strict=True):
        assert own_result == pytest.approx(optunas, rel=1e-9, abs=1e-12)


def test_a_parameter_of_one_value_tells_nothing() -> None:
    target = np.array([True, False, False])
    assert ped_anova([{"only": 3}] * 3, {"only": DESCRIBED["only"]}, [target]) == [{"only": 0.0}]
