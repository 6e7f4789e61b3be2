"""Checkpoints: whole or refused, never wrong, never unpickled."""

import random
from pathlib import Path

import pytest
import torch

from trainables import checkpoint as checkpoints
from trainables.config import DataConfig, ModelConfig, TrainConfig, TrialConfig
from trainables.errors import CheckpointError
from trainables.loop import TrialRun

CONFIG = TrialConfig(
    model=ModelConfig(
        width=16, heads=2, depth=1, timesteps=2, image_size=8, in_channels=1, pooling="1100"
    ),
    data=DataConfig(),
    train=TrainConfig(epochs=3, cooldown_epochs=0, batch_size=256, warmup_epochs=1, lr=5e-3),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialRun, Path]:
    folder = tmp_path_factory.mktemp("trial")
    run = TrialRun(CONFIG)
    run.step()
    return run, run.save(folder)


def test_a_checkpoint_says_what_made_it(trained: tuple[TrialRun, Path]) -> None:
    run, path = trained
    saved = checkpoints.load(path)
    assert saved.config == CONFIG
    assert saved.epoch == 1
    assert saved.metrics == run.metrics
    assert saved.versions["torch"] == checkpoints.versions()["torch"]
    assert all(torch.equal(saved.model[k], v) for k, v in run.model.state_dict().items())


def test_resume_equals_an_uninterrupted_run_bit_for_bit(tmp_path: Path) -> None:
    whole = TrialRun(CONFIG)
    history = [whole.step()[0] for _ in range(3)]
    first = TrialRun(CONFIG)
    first.step()
    first.save(tmp_path)
    resumed = TrialRun(CONFIG)
    found = checkpoints.last_good(tmp_path)
    assert found is not None
    resumed.restore(found)
    again = [resumed.step()[0] for _ in range(2)]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    for mine, theirs in zip(again, history[1:], strict=True):
        for name in ("train_loss", "val_loss", "val_top1", "energy_mj", "firing_rate"):
            assert mine[name] == theirs[name]


def test_every_truncation_and_bit_flip_is_noticed(
    trained: tuple[TrialRun, Path], tmp_path: Path
) -> None:
    whole = trained[1].read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    rng = random.Random(7)
    for _ in range(60):
        damaged.write_bytes(whole[: rng.randrange(len(whole))])
        with pytest.raises(CheckpointError):
            checkpoints.load(damaged)
    places = [rng.randrange(len(whole)) for _ in range(120)] + list(range(0, 400, 7))
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        damaged.write_bytes(bytes(flipped))
        with pytest.raises(CheckpointError):
            checkpoints.load(damaged)


def test_a_damaged_last_epoch_falls_back_to_the_one_before(tmp_path: Path) -> None:
    run = TrialRun(CONFIG)
    for _ in range(3):
        run.step()
        run.save(tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["best.safetensors", "epoch-0002.safetensors", "epoch-0003.safetensors"]
    last = checkpoints.epoch_path(tmp_path, 3)
    last.write_bytes(last.read_bytes()[:-5])
    found = checkpoints.last_good(tmp_path)
    assert found is not None
    assert found.epoch == 2


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    run = TrialRun(CONFIG)
    best = -1.0
    for _ in range(3):
        metrics, _ = run.step()
        run.save(tmp_path)
        best = max(best, metrics["val_top1"])
        assert checkpoints.best_top1(tmp_path) == best


def test_a_full_disk_leaves_the_earlier_file(
    trained: tuple[TrialRun, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = trained
    before = path.read_bytes()

    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        run.save(path.parent)
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*.tmp"))


def test_another_configuration_is_refused(trained: tuple[TrialRun, Path]) -> None:
    other = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"lr": 1e-3})})
    with pytest.raises(CheckpointError, match="another configuration"):
        TrialRun(other).restore(checkpoints.load(trained[1]))


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "epoch-0001.safetensors"
    torch.save({"model": {}}, path)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        checkpoints.load(path)
    assert checkpoints.last_good(tmp_path) is None
