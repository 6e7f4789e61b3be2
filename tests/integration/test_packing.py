"""Trials that share a card by their predicted memory, on real Ray with cards that are counted."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_trial
import forked
import packed_trial
import pytest
from fake_search import worker_environment
from processes import ray_cluster
from tiny_search import environment

from search.folder import SearchFolder
from search.packing import GROWTH, correction
from search.recorded import open_ledger

# Halves, one that leaves no room for them, and a half that needs more than that.
SPACE = """
name: packed
recipe: digits
trial:
  model.image_size: 8
  model.heads: 2
  model.attention: sdt
  model.depth: 1
  train.epochs: 2
  train.batch_size: 256
space:
  model.timesteps: {choice: [1, 2, 4, 8]}
  model.width: {choice: [16, 128]}
constraints: ["model.width == 16 or model.timesteps == 8"]
sampler:
  name: random
  points:
    - {model.timesteps: 1, model.width: 16}
    - {model.timesteps: 2, model.width: 16}
    - {model.timesteps: 8, model.width: 128}
    - {model.timesteps: 4, model.width: 16}
stopping: {name: none}
budget: {trials: 4}
resources: {cpus: 1, gpus: auto, gpu_memory_gib: GIB}
tracking: {required: false}
"""
GIB = 2.0
Run = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path, cluster: str, empty_store: Path) -> Run:
    def program(text: str) -> subprocess.CompletedProcess[str]:
        space, runs = tmp_path / "packed.yaml", tmp_path / "runs"
        space.write_text(text)
        runs.mkdir()
        shutil.copy(empty_store, runs / "mlflow.db")
        return forked.run(
            packed_trial.main,
            *(str(runs), str(space), cluster),
            folder=tmp_path,
            variables={
                **environment(tmp_path),
                **worker_environment(),
                "RAY_AUTH_MODE": "disabled",
            },
        )

    return program


def notes(runs: Path) -> dict[int, list[dict[str, Any]]]:
    files = sorted(fake_trial.side_record(runs, "packed").glob("*.jsonl"))
    return {
        int(path.stem): [json.loads(line) for line in path.read_text().splitlines()]
        for path in files
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Any:
    variables = {**worker_environment(), "RAY_enable_worker_prestart": "0"}
    with ray_cluster(tmp_path_factory.mktemp("ray"), 4, variables, gpus=1) as address:
        yield address


def test_trials_share_a_card_by_their_size(tmp_path: Path, run: Run) -> None:
    done = run(SPACE.replace("GIB", str(GIB)))
    assert done.returncode == 0, done.stderr
    ledger = open_ledger(SearchFolder(tmp_path / "runs", "packed"))[1]
    ledger.close()
    records = ledger.records
    assert [record.state for record in records] == ["finished"] * 4, done.stderr
    found = notes(tmp_path / "runs")
    shares = {n: [x["share"] for x in lines if "share" in x] for n, lines in found.items()}
    # The first two have waited for each other, so they ran at once; the third ran alone.
    assert set(shares[0] + shares[1]) == {0.5}
    assert set(shares[2]) == {0.9375}
    began, ended = found[2][0]["time_s"], found[2][-1]["time_s"]
    for number, lines in found.items():
        assert number == 2 or not any(began <= line["time_s"] <= ended for line in lines)
    # The fourth runs out of half a card, once, and goes on with more.
    assert [attempt.reason for attempt in records[3].attempts] == ["share_too_small", ""]
    assert not any(attempt.charged for attempt in records[3].attempts)
    assert shares[3][0] == 0.5
    assert set(shares[3][1:]) == {0.6875}
    assert correction(records) == GROWTH


def test_a_trial_larger_than_a_card_is_found_before_the_first(run: Run) -> None:
    done = run(SPACE.replace("GIB", "1.0"))
    assert done.returncode == 2, done.stderr
    assert "must fit on a card of 1.0 GiB" in done.stderr
    assert "model.width=128" in done.stderr
