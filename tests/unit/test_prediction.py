"""Predicted step times: fitted to steps of this machine, kept, refused when unfit."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from search.cli import main
from spaces import load_search_space
from spaces.summary import summarize
from trainables import calibrate as calibrate_module
from trainables.calibrate import Measured, fitted, measure, training_step
from trainables.config import ModelConfig, TrainConfig, TrialConfig
from trainables.footprint import predicted_memory
from trainables.optimization import Optimization
from trainables.prediction import (
    FILE,
    TIME_WORK,
    load,
    machine,
    predict_epoch_s,
    predicted_step_s,
    save,
    step_work,
)

DIGITS = Path(__file__).parents[2] / "spaces" / "digits.yaml"
RATES = dict(zip(TIME_WORK, (2e-11, 1e-11, 4e-9, 3e-9, 2e-4, 1e-4, 1e-9), strict=True))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKETUNE_CACHE", str(tmp_path))


def config(index: int) -> TrialConfig:
    """Different in every kind of work."""
    model = {
        "timesteps": (1, 2, 4, 8)[index % 4], "depth": 1 + index % 3,
        "width": (32, 64, 96, 128, 192)[index % 5], "image_size": (16, 32)[index % 2],
        "attention": ("statten", "sdt", "ssa")[index % 3], "block_size": 1, "heads": 4,
    }  # fmt: skip
    batch = (8, 16, 24, 32, 48, 64, 12)[index % 7]
    return TrialConfig(model=ModelConfig.model_validate(model), train=TrainConfig(batch_size=batch))


def made_up(index: int) -> Measured:
    work = step_work(config(index))
    seconds = sum(RATES[name] * work[name] for name in TIME_WORK)
    return Measured(config(index), seconds)


def test_rates_that_made_the_steps_are_found() -> None:
    found = fitted([made_up(index) for index in range(14)], "float32", 1)
    assert found.time_error < 1e-6
    for index in range(14, 40):
        unseen = made_up(index)
        assert predicted_step_s(unseen.config, found) == pytest.approx(unseen.seconds)
    epoch_s = predict_epoch_s(config(16), 1000, found)
    assert epoch_s == pytest.approx(1000 // 24 * made_up(16).seconds)


def test_real_steps_are_measured() -> None:
    small, large = (
        TrialConfig(
            model=ModelConfig(
                width=width, depth=1, timesteps=2, block_size=1, image_size=16, pooling="0011"
            ),
            train=TrainConfig(batch_size=16),
        )
        for width in (16, 128)
    )
    threads = torch.get_num_threads()
    measured = [measure(each, 0.0) for each in (small, large)]
    assert torch.get_num_threads() == threads
    assert 0.0 < measured[0].seconds < measured[1].seconds


def test_compiling_takes_nothing_from_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def step_of(_config: TrialConfig) -> Callable[[], None]:
        return lambda: now.__setitem__(0, now[0] + 1000.0 * (now[0] == 0.0))

    def measured(of: TrialConfig, share_s: float) -> Measured:
        calibrate_module.training_step(of)()
        now[0] += share_s
        return replace(made_up(0), config=of)

    monkeypatch.setattr(calibrate_module, "training_step", step_of)
    monkeypatch.setattr(calibrate_module, "measure", measured)
    monkeypatch.setattr("trainables.calibrate.time.monotonic", lambda: now[0])
    assert calibrate_module.calibrate(budget_s=20.0).num_steps == len(calibrate_module._STEPS)


def test_a_step_of_parts_takes_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    train = TrainConfig(batch_size=8, accumulate=4)
    model = ModelConfig(width=16, depth=1, timesteps=2, block_size=1, image_size=16, pooling="0011")
    parts = TrialConfig(model=model, train=train)
    taken: list[int] = []
    step = Optimization.step

    def counted(self: Optimization, x: torch.Tensor, y: torch.Tensor, share: float) -> torch.Tensor:
        taken.append(len(x))
        return step(self, x, y, share)

    monkeypatch.setattr(Optimization, "step", counted)
    training_step(parts)()
    assert taken == [8]
    whole = parts.model_copy(update={"train": train.model_copy(update={"accumulate": 1})})
    one, four = step_work(whole), step_work(parts)
    assert four["macs1x1"] == one["macs1x1"]
    assert four["layers"] == 4 * one["layers"]


def test_a_step_that_recomputes_takes_a_forward_of_the_blocks_more() -> None:
    plain = config(5)
    assert plain.model.depth == 3
    train = plain.train.model_copy(update={"recompute": True})
    once, again = step_work(plain), step_work(plain.model_copy(update={"train": train}))
    more = {name: again[name] / once[name] for name in TIME_WORK}
    layers = pytest.approx((5 + 4 / 3 * 27) / (5 + 27))  # 9 of a block with ssa
    assert more.pop("macs1x1") == pytest.approx(4 / 3, rel=1e-3)  # all but the head
    assert more == {
        "macs3x3": 1.0, "embedding": 1.0, "blocks": pytest.approx(4 / 3), "layers": layers,
        "layer_steps": layers, "parameters": 1.0,
    }  # fmt: skip


def test_few_channels_take_as_long_as_the_lanes_they_leave_empty() -> None:
    def work(width: int) -> dict[str, float]:
        model = ModelConfig(
            width=width, depth=1, timesteps=2, block_size=1, image_size=16, pooling="0011"
        )
        return step_work(TrialConfig(model=model, train=TrainConfig(batch_size=8)))

    wide = 32 * 16 * 16 + 64 * 16 * 16 + 128 * 16 * 16 + 256 * (8 * 8 + 4 * 4)
    assert work(256)["embedding"] == 2 * 8 * wide
    narrow = 8 * (16 * 16 + 16 * 16 + 16 * 16) + 16 * (8 * 8 + 4 * 4)
    assert work(16)["embedding"] == 2 * 8 * narrow


def test_single_pixels_take_as_long_as_tiles_of_3x3_convolutions() -> None:
    def work(image_size: int) -> float:
        model = ModelConfig(
            width=64, depth=1, timesteps=2, block_size=1, image_size=image_size, pooling="1111"
        )
        return step_work(TrialConfig(model=model, train=TrainConfig(batch_size=8)))["macs3x3"]

    by_layer = [9 * n * k for n, k in pairwise((3, 8, 16, 32, 64, 64))]
    of_16 = sum(macs * size**2 for macs, size in zip(by_layer, (16, 8, 4, 2, 2), strict=True))
    assert work(16) == 2 * 8 * of_16  # the last grid is of one pixel


def test_a_calibration_is_kept_for_its_machine_only(tmp_path: Path) -> None:
    assert load() is None
    found = fitted([made_up(index) for index in range(14)], "float32", 1)
    path = save(found)
    assert path == tmp_path / FILE
    assert load() == found
    assert load(threads=2) is None
    save(replace(found, machine={**machine(1), "torch": "1.0"}))
    assert load() is None
    for broken in (b"", b"[]", b"{", b'{"format": 3}', path.read_bytes().replace(b"e-", b"x")):
        path.write_bytes(broken)
        assert load() is None
    save(found)
    content = json.loads(path.read_text())
    content["seconds"]["blocks"] = float("nan")
    path.write_text(json.dumps(content))
    assert load() is None


def test_check_says_what_was_measured() -> None:
    spec = load_search_space(DIGITS)
    rough = summarize(spec)
    assert "spiketune calibrate" in rough["notes"][-1]
    found = fitted([made_up(index) for index in range(14)], "float32", 1)
    save(found)
    summary = summarize(spec)
    assert "measured on this machine" in summary["notes"][-1]
    for example in summary["examples"]:
        trial = spec.trial_config(example["params"])
        assert example["cpu_memory_mib"] == predicted_memory(trial, "cpu").likely_mib
        assert example["cpu_epoch_s"] == predict_epoch_s(trial, 1078, found)
    save(replace(found, precision="bf16"))
    assert "spiketune calibrate" in summarize(spec)["notes"][-1]


def test_the_command_measures_and_keeps(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["calibrate", "--seconds", "1"])
    assert done.exit_code == 0, done.output
    assert "Each predicted by the others" in done.stdout
    found = load()
    assert found is not None
    assert found.seconds.keys() == set(TIME_WORK)
    assert str(tmp_path / FILE) in done.stdout.replace("\n", "")
    bad = CliRunner().invoke(main, ["calibrate", "--seconds", "0"])
    assert bad.exit_code == 2
