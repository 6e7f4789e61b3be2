"""Points as rows of numbers: there and back, and only valid values on the way."""

import math
from pathlib import Path

import numpy as np
from ledgers import made_spec

from search.encoding import Encoder
from spaces.space import SearchSpace

MIXED = """
name: mixed
recipe: digits
space:
  model.timesteps: {int: [1, 16]}
  model.width: {int: [8, 64], step: 8}
  model.attention: {choice: [statten, sdt, ssa]}
  model.block_size: {int: [1, 8], when: {model.attention: statten}}
  train.lr: {float: [1.0e-4, 1.0e-1], log: true}
  train.batch_size: {int: [8, 512], log: true}
  data.hflip: {float: [0.0, 1.0]}
budget: {trials: 4}
"""


def mixed(folder: Path) -> SearchSpace:
    return made_spec(folder, text=MIXED).search_space


def test_parameters_survive_the_way_there_and_back(tmp_path: Path) -> None:
    space = mixed(tmp_path)
    encoder = Encoder(space)
    rng = np.random.default_rng(0)
    for _ in range(100):
        params = space.sample(rng)
        back = encoder.decode(encoder.encode(params))
        assert back.keys() == params.keys()
        for key, value in params.items():
            if isinstance(value, float):
                assert math.isclose(back[key], value, rel_tol=1e-12, abs_tol=1e-12)
            else:
                assert back[key] == value


def test_drawn_and_moved_rows_hold_values_of_their_domains(tmp_path: Path) -> None:
    space = mixed(tmp_path)
    encoder = Encoder(space)
    rng = np.random.default_rng(1)
    drawn = encoder.uniform(rng, 300)
    moved = encoder.moved(drawn, rng, np.full(300, 0.3), np.full(300, 0.4))
    for row in np.vstack([drawn, moved]):
        params = encoder.decode(row)
        assert set(params) == space.active_keys(params)
        assert all(space.domains[key].contains(value) for key, value in params.items())
        np.testing.assert_allclose(encoder.encode(params), row, atol=1e-9)
    same = (np.nan_to_num(drawn, nan=-1) == np.nan_to_num(moved, nan=-1)).all(axis=1)
    assert same.mean() < 0.05


def test_whole_numbers_are_drawn_evenly(tmp_path: Path) -> None:
    encoder = Encoder(mixed(tmp_path))
    column = encoder.columns[encoder.keys.index("model.timesteps")]
    counts = np.unique(column.uniform(np.random.default_rng(0), 16_000), return_counts=True)[1]
    assert len(counts) == 16
    assert counts.min() > 850


def test_features_tell_other_choices_and_absent_parameters_apart(tmp_path: Path) -> None:
    space = mixed(tmp_path)
    encoder = Encoder(space)
    base = {
        "model.timesteps": 8,
        "model.width": 32,
        "model.attention": "sdt",
        "train.lr": 1e-2,
        "train.batch_size": 64,
        "data.hflip": 0.5,
    }
    other = base | {"model.attention": "ssa"}
    with_child = base | {"model.attention": "statten", "model.block_size": 8}
    features = encoder.features(np.array([encoder.encode(p) for p in (base, other, with_child)]))
    squared = ((features[:, None] - features) ** 2).sum(-1)
    assert math.isclose(squared[0, 1], 1.0)
    assert math.isclose(squared[0, 2], 2.0)
