"""Training that begins with fewer timesteps: the network, its input, what is recorded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_optimization import BASE

import spaces
from spaces import SpaceError, load_search_space
from trainables import checkpoint as checkpoints
from trainables.config import ModelConfig, TrialConfig, with_overrides
from trainables.data.digits_dvs import event_frames
from trainables.launch import train_alone
from trainables.loop import TrialRun
from trainables.model import build_model
from trainables.model.timesteps import at_timesteps, run_at, shown_in
from trainables.model.weights import load_model

CPU = torch.device("cpu")
CASES: dict[str, dict[str, Any]] = {
    "statten": {"block_size": 4},
    "statten, event data": {"block_size": 4, "event_data": True},
    "sdt": {"attention": "sdt"},
    "ssa": {"attention": "ssa"},
    "spikformer": {"backbone": "spikformer", "block_size": 2},
}


def config(**train: Any) -> TrialConfig:
    overrides = {f"train.{key}": value for key, value in train.items()}
    return TrialConfig.model_validate(with_overrides(BASE, overrides))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("timesteps", [1, 2, 3, 4])
def test_a_network_run_at_fewer_timesteps_is_the_one_built_with_them(
    case: str, timesteps: int
) -> None:
    shape = {"width": 16, "heads": 2, "depth": 1, "timesteps": 4, "image_size": 8}
    model = ModelConfig.model_validate(shape | {"in_channels": 2, "pooling": "0010"} | CASES[case])
    torch.manual_seed(3)
    network = build_model(model).eval()
    steps = (timesteps,) if model.event_data else ()
    x = 4 * torch.rand(3, *steps, 2, 8, 8)
    built = load_model(at_timesteps(model, timesteps)[0], network.state_dict(), CPU)
    for batchnorm in (m for n in (network, built) for m in n.modules()):
        batchnorm.train(isinstance(batchnorm, torch.nn.BatchNorm2d))  # else deep layers are silent
    run_at(network, model, timesteps)
    found = network(x)
    assert found.shape[0] == timesteps
    assert torch.equal(found, built(x))
    run_at(network, model, 4)
    whole = load_model(model, network.state_dict(), CPU)
    whole.train(), network.train()
    x = 4 * torch.rand(3, *((4,) if steps else ()), 2, 8, 8)
    assert torch.equal(network(x), whole(x))


def test_frames_added_up_are_those_of_fewer_timesteps() -> None:
    whole = event_frames(8, 16)[:50]
    for fewer in (8, 4, 2, 1):
        assert torch.equal(shown_in(whole, fewer), event_frames(fewer, 16)[:50])
    images = torch.rand(2, 3, 8, 8)
    assert shown_in(images, 2) is images


def test_the_last_epochs_are_of_all_timesteps_and_each_says_its_own(tmp_path: Path) -> None:
    trial = config(start_timesteps=1)
    reports = list(train_alone(trial, tmp_path))
    assert [report["timesteps"] for report in reports] == [1, 1, 2, 2, 2]
    found = checkpoints.last_good(tmp_path)
    assert found is not None
    run = TrialRun(trial)
    run.model = load_model(trial.model, found.model, CPU)
    run.optimization._model = run.model
    again = run.evaluate(run.splits.val)
    assert again.energy.energy_mj == reports[-1]["energy_mj"]
    assert again.loss == reports[-1]["val_loss"]


def test_averaged_weights_are_evaluated_with_the_epochs_timesteps() -> None:
    run = TrialRun(config(start_timesteps=1, ema_decay=0.5))
    seen: set[int] = set()
    run.optimization.evaluated.register_forward_hook(lambda _m, _a, out: seen.add(out.shape[0]))
    run.step()
    assert seen == {1}


def test_event_frames_are_added_up_while_there_are_few_timesteps() -> None:
    tree = with_overrides(
        BASE,
        {
            "data.name": "digits_dvs",
            "data.shift_px": 0,
            "model.event_data": True,
            "model.in_channels": 2,
            "model.image_size": 16,
            "train.start_timesteps": 1,
        },
    )
    run = TrialRun(TrialConfig.model_validate(tree))
    seen: list[tuple[int, float]] = []
    run.model.register_forward_pre_hook(
        lambda _m, args: seen.append((args[0].shape[1], float(args[0].sum())))
    )
    assert run.step()[0]["timesteps"] == 1
    inputs, _ = run.splits.val.batch(torch.arange(len(run.splits.val)), CPU)
    assert {steps for steps, _ in seen} == {1}
    assert seen[-1][1] == inputs.sum()  # no event is lost


def test_a_better_accuracy_of_fewer_timesteps_is_not_the_best(tmp_path: Path) -> None:
    run = TrialRun(config(start_timesteps=1, start_frac=0.3))
    for accuracy, best in ((90.0, 1), (50.0, 2), (40.0, 2), (60.0, 4)):
        run.step()
        run.metrics = {**run.metrics, "val_top1": accuracy}
        run.save(tmp_path)
        assert checkpoints.load(tmp_path / checkpoints.BEST).epoch == best


def test_a_start_that_does_not_fit_is_never_proposed() -> None:
    path = Path(spaces.__file__).parent / "digits.yaml"
    spec = load_search_space(path, ["space.train.start_timesteps.choice=[0, 1, 3, 4]"])
    rng = np.random.default_rng(0)
    configs = [spec.trial_config(spec.search_space.sample(rng)) for _ in range(100)]
    assert {c.train.start_timesteps for c in configs} == {0, 1, 3, 4}
    with pytest.raises(SpaceError, match=r"digits.yaml:\d+:1: space: .*start_timesteps <= model"):
        load_search_space(path, ["trial.train.start_timesteps=16"])
