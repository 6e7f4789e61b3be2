"""Several processes that train one network: on this machine, and in a trial by Ray Train."""

import multiprocessing
import signal
from os import kill
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_search import spiketune, spiketune_json, write_space

from search.cli import main
from trainables import checkpoint as checkpoints
from trainables.config import TrialConfig
from trainables.errors import TrialFailedError
from trainables.launch import train_here
from trainables.trial import SCRATCH

TINY: dict[str, Any] = {
    "model": {
        "width": 16, "heads": 2, "depth": 1, "timesteps": 2, "block_size": 2, "image_size": 8,
        "in_channels": 1, "pooling": "0010", "mlp_ratio": 1,
    },
    "train": {"epochs": 3, "cooldown_epochs": 0, "warmup_epochs": 0, "lr": 5e-3, "device": "cpu"},
}  # fmt: skip


def test_a_lost_process_ends_the_training_and_the_next_start_continues(tmp_path: Path) -> None:
    config = TrialConfig.model_validate(TINY)
    epochs = train_here(config, tmp_path, 2)
    first = next(epochs)
    assert first["epoch"] == 1
    pids = [child.pid for child in multiprocessing.active_children()]
    assert len(pids) == 2
    kill(pids[1] or 0, signal.SIGKILL)
    with pytest.raises(TrialFailedError, match="lost") as lost:
        for _ in epochs:
            pass
    assert lost.value.reason == "worker_lost"
    assert not multiprocessing.active_children()
    found = checkpoints.last_good(tmp_path)
    assert found is not None
    again = list(train_here(config, tmp_path, 2))
    assert [e["epoch"] for e in again] == list(range(found.epoch, 4))
    assert again[0]["val_loss"] == found.metrics["val_loss"]  # the restored epoch, reported again
    assert again[-1]["done"]


def test_why_training_failed_is_told_through_the_command_line(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "trainables" / "recipes" / "digits.yaml"
    settings = ("train.lr=1.0e+30", "train.warmup_lr=1.0e+30", "model.width=16", "model.heads=2")
    options = [part for setting in settings for part in ("--set", setting)]
    arguments = ["train", str(recipe), "--processes", "2", "--out", str(tmp_path), *options]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert "loss is" in done.output
    assert "Traceback" not in done.output
    assert "lost" not in done.output


@pytest.mark.slow  # Ray Train starts some ten processes a trial
def test_trials_of_two_processes_give_back_what_they_occupy(tmp_path: Path) -> None:
    # Two CPUs and two trials of two processes: the second starts only if the first has let go.
    shared = (
        "resources.cpus=2",
        "resources.processes=2",
        "trial.train.epochs=2",
        "budget.trials=2",
    )
    options = [part for setting in (*shared, "stopping.name=none") for part in ("--set", setting)]
    spiketune(tmp_path, "search", str(write_space(tmp_path)), *options, timeout_s=900)
    tree = spiketune_json(tmp_path, "status", "tiny")
    assert tree["states"]["finished"] == 2
    for name in ("00000", "00001"):
        folder = tmp_path / "runs" / "tiny" / "trials" / name
        saved = checkpoints.last_good(folder)
        assert saved is not None
        assert saved.epoch == 2
        assert not (folder / SCRATCH).exists()
    # What an actor that was ended too early has left goes with the next session.
    (tmp_path / "runs" / "tiny" / "trials" / "00001" / SCRATCH / "shared").mkdir(parents=True)
    spiketune(tmp_path, "resume", "tiny", timeout_s=300)
    assert not list(tmp_path.rglob(SCRATCH))
