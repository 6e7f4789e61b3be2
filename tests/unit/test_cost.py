import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainables.config import DataConfig, ModelConfig, TrainConfig, TrialConfig
from trainables.cost import (
    macs_per_timestep,
    parameter_count,
    predict_epoch_s,
    total_macs,
)
from trainables.model import build_model
from trainables.samples import training_images


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 2_567_082),
        ({"width": 512}, 10_233_546),
        ({"width": 512, "num_classes": 100}, 10_279_716),
        ({"in_channels": 2}, 2_566_794),
        ({"in_channels": 2, "num_classes": 101}, 2_590_181),
        ({"in_channels": 2, "num_classes": 11}, 2_567_051),
        ({"neuron": "plif"}, 2_567_082 + 4 + 2 * 7 + 1),
    ],
)
def test_parameter_count_is_the_papers(fields: dict[str, object], count: int) -> None:
    assert parameter_count(ModelConfig.model_validate(fields)) == count


@pytest.mark.parametrize(
    ("depth", "width", "millions"),
    [(8, 384, 16.82), (6, 512, 23.37), (8, 512, 29.69), (10, 512, 36.01), (8, 768, 66.34)],
)
def test_parameter_count_of_imagenet_networks(depth: int, width: int, millions: float) -> None:
    model = ModelConfig(depth=depth, width=width, num_classes=1000)
    assert parameter_count(model) / 1e6 == pytest.approx(millions, abs=0.005)


def test_parameter_count_takes_a_mapping() -> None:
    model = ModelConfig(depth=3, width=64)
    assert parameter_count(model.model_dump()) == parameter_count(model)


def test_macs_of_imagenet_8_768_are_the_papers() -> None:
    model = ModelConfig(
        depth=8, width=768, num_classes=1000, image_size=224, pooling="1111", in_channels=3
    )
    macs = macs_per_timestep(model)
    embedding = sum(macs[name] for name in macs if name.startswith("patch_embed."))
    blocks = sum(macs[name] for name in macs if name.startswith("block.") and "_conv" in name)
    first = macs["patch_embed.proj_conv"]
    assert first / 1e9 == pytest.approx(0.130, abs=5e-4)
    assert (embedding - first) / 1e9 == pytest.approx(7.28, abs=5e-3)
    assert blocks / 1e9 == pytest.approx(11.10, abs=5e-3)


@pytest.mark.parametrize("attention", ["statten", "sdt", "ssa"])
@pytest.mark.parametrize("depth", [1, 3])
def test_total_macs_sums_layers_and_timesteps(attention: str, depth: int) -> None:
    model = ModelConfig.model_validate({"attention": attention, "depth": depth, "width": 64})
    assert total_macs(model) == model.timesteps * sum(macs_per_timestep(model).values())


@pytest.mark.parametrize("attention", ["statten", "ssa"])
def test_a_sequence_costs_what_its_columns_do(attention: str) -> None:
    model = ModelConfig.model_validate(
        {"attention": attention, "depth": 1, "width": 16, "timesteps": 8, "image_size": 32}
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build_model(model).eval()(torch.randn(1, 8, 3, 32, 1))
    told = total_macs(model, is_sequence=True)
    assert told == 8 * sum(macs_per_timestep(model, is_sequence=True).values())
    assert 2 * told == counter.get_total_flops()


def test_only_sequential_sets_are_predicted_as_sequences() -> None:
    model = ModelConfig(timesteps=32, block_size=32)
    whole, columns = (
        predict_epoch_s(TrialConfig(model=model, data=DataConfig(name=name)), 1000)
        for name in ("cifar10", "seq_cifar10")
    )
    assert columns < whole / 8


def test_attention_products_cost_what_their_formula_says() -> None:
    tokens, width, heads = 8 * 8, 64, 8
    products = {
        mode: macs_per_timestep({**ModelConfig().model_dump(), "attention": mode, "width": width})[
            "block.0.attn.kv"
        ]
        for mode in ("statten", "sdt", "ssa")
    }
    assert products == {
        "statten": tokens * width * (width // heads),
        "sdt": tokens * width,
        "ssa": tokens * tokens * width,
    }


def test_predicted_seconds_grow_with_width_and_timesteps() -> None:
    def predict(width: int, timesteps: int) -> float:
        model = ModelConfig(depth=1, image_size=16, in_channels=1, width=width, timesteps=timesteps)
        return 8 * predict_epoch_s(TrialConfig(model=model, train=TrainConfig(batch_size=32)), 1078)

    assert 3 < predict(32, 2) < 6 < predict(64, 4) < 12 < predict(128, 4) < 25


def test_predicted_seconds_know_that_training_begins_with_few_timesteps() -> None:
    def predict(start: int) -> float:
        train = TrainConfig(epochs=8, cooldown_epochs=0, start_timesteps=start)
        return predict_epoch_s(TrialConfig(model=ModelConfig(timesteps=4), train=train), 1000)

    steps_s = predict_epoch_s(TrialConfig(model=ModelConfig(timesteps=4)), 1000)
    fewer = TrialConfig(model=ModelConfig(timesteps=2), train=TrainConfig(warmup_epochs=1))
    assert predict(0) == pytest.approx(steps_s)
    assert predict(2) == pytest.approx((steps_s + predict_epoch_s(fewer, 1000)) / 2)


def test_training_images_follow_the_split() -> None:
    assert training_images(DataConfig(val_frac=0.2, test_frac=0.2)) == 1078
    assert training_images(DataConfig(val_frac=0.1, test_frac=0.1)) == 1438
