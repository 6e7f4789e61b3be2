"""Searches whose outcome is known, for tests of what is learnt from them."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from records import record

from search.insight import Insight, insight
from search.records import TrialRecord
from spaces import SearchSpec, load_search_space

SPACE = """
name: made
recipe: digits
trial: {train.epochs: 9, train.warmup_epochs: 1, train.cooldown_epochs: 0}
objectives: [{metric: val_top1, mode: max}]
space:
  model.depth: {int: [1, 4]}
  model.attention: {choice: [statten, sdt, ssa]}
  model.block_size: {choice: [1, 2, 4], when: {model.attention: statten}}
  train.lr: {float: [1.0e-3, 1.0e-1], log: true}
  train.weight_decay: {float: [0.0, 0.2]}
sampler: {name: random}
stopping: {name: asha, grace_epochs: 1, reduction_factor: 3}
budget: {trials: 60}
"""


Score = Callable[[Mapping[str, Any], np.random.Generator], float]


OBJECTIVES = {
    "max": "objectives=[{metric: val_top1, mode: max}]",
    "min": "objectives=[{metric: val_loss, mode: min}]",
}


def made(folder: Path, *overrides: str, text: str = SPACE) -> SearchSpec:
    path = folder / "made.yaml"
    path.write_text(text)
    return load_search_space(path, overrides)


def rate(params: Mapping[str, Any]) -> float:
    """0 at the lowest learning rate, 1 at the highest."""
    return math.log10(params["train.lr"] / 1e-3) / 2


def search(
    spec: SearchSpec, score: Score, count: int = 60, seed: int = 0, epochs: int = 9
) -> list[TrialRecord]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        params = spec.search_space.sample(rng)
        value = score(params, rng)
        found.append(
            record(
                number,
                [value] * epochs,
                state="finished",
                params=params,
                extra_metrics={"val_loss": value},
            )
        )
    return found


def learnt(spec: SearchSpec, records: Sequence[TrialRecord]) -> Insight:
    found = insight(spec, records)
    assert found is not None
    return found


def kinds(found: Insight) -> dict[str, str]:
    return {hint.parameter: hint.kind for hint in found.hints}


def by_peak(params: Mapping[str, Any], rng: np.random.Generator) -> float:
    return 50 - 80 * (rate(params) - 0.4) ** 2 + 0.3 * rng.normal()


def by_chance(params: Mapping[str, Any], rng: np.random.Generator) -> float:
    return float(rng.normal())
