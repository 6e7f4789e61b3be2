from typing import Any

import pytest
import torch

from trainables.config import EnergyConfig, ModelConfig, TrainConfig, TrialConfig
from trainables.data.splits import TensorSplit
from trainables.errors import CheckpointError
from trainables.latency import MIN_RUNS, measure_latencies
from trainables.model import build_model
from trainables.model.timesteps import at_timesteps
from trainables.model.weights import load_model, state_shapes
from trainables.scoring import Scorer
from trainables.sweep import sweep

CPU = torch.device("cpu")


def config_of(**fields: object) -> TrialConfig:
    small = {
        "width": 16,
        "heads": 2,
        "depth": 1,
        "image_size": 8,
        "timesteps": 4,
        "num_classes": 6,
        "pooling": "0010",
    }
    model = ModelConfig.model_validate(small | fields)
    return TrialConfig(model=model, train=TrainConfig(eval_batch_size=5))


def network(config: TrialConfig) -> torch.nn.Module:
    """A network that fires, with running statistics of random images."""
    torch.manual_seed(1)
    model = build_model(config.model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            torch.nn.init.constant_(module.bias, 0.8)
    with torch.no_grad():
        model.train()(samples(config, 8).inputs)
    return model.eval()


def samples(config: TrialConfig, count: int) -> TensorSplit:
    model = config.model
    torch.manual_seed(2)
    frames = (model.timesteps,) if model.event_data else ()
    shape = (count, *frames, model.in_channels, model.image_size, model.image_size)
    return TensorSplit(torch.rand(shape) * 3, torch.arange(count) % model.num_classes)


@pytest.mark.parametrize(
    ("timesteps", "block"),
    [(10, 5), (9, 3), (8, 4), (7, 1), (6, 3), (5, 5), (4, 4), (2, 2), (1, 1)],
)
def test_blocks_are_the_largest_that_fill_the_timesteps(timesteps: int, block: int) -> None:
    trained = ModelConfig(timesteps=10, block_size=5, event_data=True, in_channels=2)
    model, note = at_timesteps(trained, timesteps)
    assert (model.timesteps, model.block_size) == (timesteps, block)
    wanted = "" if block == 5 else f"blocks of {block}, trained with 5 (scale 1/(H^2*{block}))"
    assert note == wanted


def test_only_blocks_of_attention_need_a_note() -> None:
    model, note = at_timesteps(ModelConfig(timesteps=4, block_size=4, attention="sdt"), 3)
    assert (model.timesteps, note) == (3, "")
    assert at_timesteps(ModelConfig(), 1)[1] == "blocks of 1, trained with 2 (same scale 1/H)"
    with pytest.raises(ValueError, match=r"1 <= timesteps <= 4.*timesteps=5"):
        at_timesteps(ModelConfig(), 5)


@pytest.mark.parametrize("event", [False, True])
@pytest.mark.parametrize("attention", ["statten", "sdt", "ssa"])
def test_rows_are_the_scores_of_networks_of_so_many_timesteps(attention: str, event: bool) -> None:
    config = config_of(attention=attention, event_data=event, in_channels=2)
    split, state = samples(config, 12), network(config).state_dict()
    rows = sweep(config, state, split, CPU, [1, 2, 3, 4])
    assert [row.timesteps for row in rows] == [1, 2, 3, 4]
    for row in rows:
        fields = config.model.model_dump() | {"timesteps": row.timesteps}
        if attention == "statten":
            assert row.block_size == {1: 1, 2: 2, 3: 1, 4: 2}[row.timesteps]
            fields["block_size"] = row.block_size
        else:
            assert (row.block_size, row.note) == (None, "")
        fresh = build_model(ModelConfig.model_validate(fields))
        fresh.load_state_dict(state)
        x = split.inputs[:, : row.timesteps] if event else split.inputs
        with Scorer(fresh, EnergyConfig(), "float32") as scorer:
            scorer.add(x, split.labels)
        alone = scorer.result()
        assert row.evaluation.top1 == alone.top1
        assert row.evaluation.loss == pytest.approx(alone.loss, rel=1e-5)
        assert row.evaluation.energy.layer_ops == pytest.approx(alone.energy.layer_ops, rel=1e-6)
    energies = [row.evaluation.energy.energy_mj for row in rows]
    assert energies == sorted(energies)


@pytest.mark.parametrize("backbone", ["sdt", "spikformer"])
@pytest.mark.parametrize("event", [False, True])
def test_whole_blocks_are_a_prefix_of_the_full_run(backbone: str, event: bool) -> None:
    config = config_of(
        timesteps=6, block_size=2, event_data=event, in_channels=2, backbone=backbone
    )
    full = network(config).double()
    x = samples(config, 3).inputs.double()
    with torch.no_grad():
        whole = full(x)
        for t in (2, 4):
            fewer = load_model(at_timesteps(config.model, t)[0], full.state_dict(), CPU)
            part = fewer(x[:, :t] if event else x)
            assert torch.allclose(part, whole[:t], atol=1e-12)


def test_weights_are_shared_between_the_networks_of_a_sweep() -> None:
    config = config_of()
    state = network(config).state_dict()
    loaded = load_model(config.model, state, CPU)
    assert not loaded.training
    assert loaded.get_parameter("head.weight").data_ptr() == state["head.weight"].data_ptr()


def test_sweep_tells_how_far_it_is() -> None:
    config = config_of()
    seen: list[Any] = []
    sweep(config, network(config).state_dict(), samples(config, 12), CPU, [4], seen.append)
    assert seen == [5, 10, 12]


def test_weights_of_another_network_are_named() -> None:
    config = config_of()
    state = dict(network(config).state_dict())
    state["extra"] = state.pop("head.bias")
    state["head.weight"] = torch.zeros(7, 16)
    with pytest.raises(CheckpointError) as error:
        load_model(config.model, state, CPU)
    assert "has an unknown extra" in str(error.value)
    assert "lacks head.bias" in str(error.value)
    assert "head.weight of shape (7, 16) instead of (6, 16)" in str(error.value)
    with pytest.raises(CheckpointError, match=r"\d+ more$"):
        load_model(config.model, {}, CPU)
    assert state_shapes(config.model)["head.weight"] == (6, 16)


def test_scorer_restores_the_mode_and_leaves_no_hook() -> None:
    config = config_of()
    model = network(config).train()
    with Scorer(model, EnergyConfig(), "float32") as scorer:
        assert {module.training for module in model.modules()} == {False}
        split = samples(config, 4)
        scorer.add(split.inputs, split.labels)
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())
    assert scorer.result().top5 >= scorer.result().top1


def test_latency_is_of_one_image_and_of_a_batch() -> None:
    config = config_of()
    one, batch = measure_latencies(config, network(config).state_dict(), samples(config, 12), CPU)
    assert (one.batch_size, batch.batch_size) == (1, 5)
    assert one.runs >= MIN_RUNS
    assert batch.image_ms == pytest.approx(batch.batch_ms / 5)
    assert one.quartiles_ms[0] <= one.batch_ms <= one.quartiles_ms[1]
