import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from trainables import checkpoint as checkpoints
from trainables.config import DataConfig, ModelConfig, TrialConfig
from trainables.errors import CheckpointError
from trainables.model import build_model
from trainables.reference import (
    as_checkpoint,
    dataset_fields,
    model_fields,
    read_reference,
    save_reference,
)

ARGUMENTS = {
    "dataset": "torch/cifar10",
    "time_steps": 4,
    "chunk_size": 2,
    "attention_mode": "STAtten",
    "num_heads": 2,
    "pooling_stat": "0011",
    "img_size": 32,
    "layer": 2,
    "dim": 32,
    "mlp_ratio": 4,
}


def config_of(**fields: object) -> TrialConfig:
    model = ModelConfig.model_validate({"width": 32, "heads": 2, "depth": 2} | fields)
    return TrialConfig(model=model, data=DataConfig(name="cifar10"))


def weights(config: TrialConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(build_model(config.model).state_dict())


def write(path: Path, **content: Any) -> Path:
    torch.save(content, path)
    return path


def saved(path: Path, state: dict[str, torch.Tensor], **arguments: Any) -> Path:
    """A checkpoint as timm writes it."""
    return write(
        path,
        epoch=299,
        arch="sdt",
        state_dict=state,
        optimizer={"state": {}, "param_groups": [{"lr": 1e-5, "betas": (0.9, 0.999)}]},
        version=2,
        args=argparse.Namespace(**(ARGUMENTS | arguments)),
        amp_scaler={"scale": 65536.0},
        metric=96.03,
    )


def reference_keys(depth: int) -> set[str]:
    """The reference's state dict as the papers' specification lists it."""
    bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {"head.weight", "head.bias"}
    for stage in ("", "1", "2", "3"):
        keys |= {f"patch_embed.proj_conv{stage}.weight"}
        keys |= {f"patch_embed.proj_bn{stage}.{slot}" for slot in bn}
    keys |= {"patch_embed.rpe_conv.weight", *(f"patch_embed.rpe_bn.{slot}" for slot in bn)}
    for i in range(depth):
        keys.add(f"block.{i}.attn.talking_heads.weight")
        for part in ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2"):
            keys.add(f"block.{i}.{part}_conv.weight")
            keys |= {f"block.{i}.{part}_bn.{slot}" for slot in bn}
            if part[-1] not in "qkv":
                keys.add(f"block.{i}.{part}_conv.bias")
    return keys


def test_keys_are_the_references() -> None:
    assert len(reference_keys(2)) == 112
    for depth in (1, 2, 8):
        assert set(weights(config_of(depth=depth))) == reference_keys(depth)


@pytest.mark.parametrize("attention", ["statten", "sdt"])
@pytest.mark.parametrize("event", [False, True])
def test_round_trip_keeps_configuration_and_logits(
    tmp_path: Path, attention: str, event: bool
) -> None:
    config = config_of(attention=attention, event_data=event, in_channels=2 if event else 3)
    state = weights(config)
    ours = checkpoints.Checkpoint(config, 7, state, None, {"val_top1": 91.5}, {})
    theirs = tmp_path / "model_best.pth.tar"
    save_reference(theirs, ours)

    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(theirs, weights_only=True)
    assert set(content["state_dict"]) == reference_keys(2)
    assert content["args"].attention_mode == {"statten": "STAtten", "sdt": "SDT"}[attention]

    found = read_reference(theirs)
    fields, missing = model_fields(found)
    assert missing == []
    assert ModelConfig.model_validate(fields) == config.model
    back = as_checkpoint(found, config)
    assert (back.epoch, back.metrics) == (7, {"reference_top1": 91.5})
    path = tmp_path / "back.safetensors"
    checkpoints.save(path, back)
    again = build_model(config.model).eval()
    again.load_state_dict(dict(checkpoints.load(path).model))
    first = build_model(config.model).eval()
    first.load_state_dict(state)
    x = torch.rand(2, *((4,) if event else ()), config.model.in_channels, 32, 32) * 3
    with torch.no_grad():
        assert torch.equal(again(x), first(x))


def test_a_timm_checkpoint_with_prefixes_and_without_dead_weights(tmp_path: Path) -> None:
    config = config_of()
    state = {
        f"module.{name}": x for name, x in weights(config).items() if "talking_heads" not in name
    }
    found = read_reference(saved(tmp_path / "last.pth.tar", state))
    assert (found.epoch, found.metric, found.has_ema) == (300, 96.03, False)
    fields, missing = model_fields(found)
    assert (ModelConfig.model_validate(fields), missing) == (config.model, [])
    assert dataset_fields(found, fields) == {"name": "cifar10"}
    done = as_checkpoint(found, config)
    assert set(done.model) == reference_keys(2)
    assert not done.model["block.1.attn.talking_heads.weight"].any()
    assert torch.equal(done.model["head.weight"], state["module.head.weight"])


def test_averaged_weights_are_a_choice(tmp_path: Path) -> None:
    config = config_of()
    path = write(tmp_path / "a.pth", state_dict=weights(config), state_dict_ema=weights(config, 1))
    plain, averaged = read_reference(path), read_reference(path, ema=True)
    assert plain.has_ema
    assert averaged.has_ema
    assert torch.equal(averaged.state["head.weight"], weights(config, 1)["head.weight"])
    assert not torch.equal(plain.state["head.weight"], averaged.state["head.weight"])
    bare = saved(tmp_path / "b.pth", weights(config))
    with pytest.raises(CheckpointError, match="must hold `state_dict_ema`, but holds epoch, arch"):
        read_reference(bare, ema=True)


def test_a_bare_state_dict_tells_its_shapes_only(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({name: x.half() for name, x in weights(config_of()).items()}, path)
    found = read_reference(path)
    assert found.state["head.weight"].dtype == torch.float32
    fields, missing = model_fields(found)
    assert missing == ["timesteps", "block_size", "pooling", "attention", "image_size"]
    assert fields == {
        "width": 32,
        "depth": 2,
        "heads": 2,
        "mlp_ratio": 4,
        "in_channels": 3,
        "num_classes": 10,
        "event_data": False,
        "neuron": "lif",
    }


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ({"time_steps": None, "T": 6}, "timesteps", 6),
        ({"time_steps": None, "time_step": 8}, "timesteps", 8),
        ({"attention_mode": "SDT"}, "attention", "sdt"),
        ({"img_size": None, "input_size": [3, 224, 224]}, "image_size", 224),
        ({"pooling_stat": 9}, "pooling", "0011"),  # YAML 1.1 reads 0011 as octal
        ({"pooling_stat": 0o111}, "pooling", "0111"),
        ({"pooling_stat": 1111}, "pooling", "1111"),
        ({"dvs_mode": True}, "event_data", True),
        ({"dim": 9999, "layer": 77}, "width", 32),  # shapes know better
    ],
)
def test_arguments_in_several_spellings(
    tmp_path: Path, arguments: dict[str, Any], field: str, value: object
) -> None:
    found = read_reference(saved(tmp_path / "a.pth", weights(config_of()), **arguments))
    fields, missing = model_fields(found)
    assert fields[field] == value
    assert missing == []


def test_unusable_arguments_are_as_good_as_none(tmp_path: Path) -> None:
    wrong = {"time_steps": "4", "pooling_stat": "12", "num_heads": 16}
    found = read_reference(saved(tmp_path / "a.pth", weights(config_of()), **wrong))
    fields, missing = model_fields(found)
    assert missing == ["timesteps", "pooling"]
    assert fields["heads"] == 2


def test_plif_of_the_reference_is_completed_by_neurons_that_equal_lif(tmp_path: Path) -> None:
    config = config_of(neuron="plif")
    everywhere = weights(config)
    state = {k: x for k, x in everywhere.items() if not k.endswith(".w") or ".mlp." in k}
    state["block.0.mlp.fc1_lif.w"] = torch.tensor(0.7)
    found = read_reference(saved(tmp_path / "a.pth", state))
    assert model_fields(found)[0]["neuron"] == "plif"
    done = as_checkpoint(found, config).model
    assert set(done) == set(everywhere)
    assert float(done["block.0.attn.q_lif.w"]) == 0.0
    assert float(done["block.0.mlp.fc1_lif.w"]) == pytest.approx(0.7)


def test_datasets_are_told_by_name_or_by_classes(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", weights(config_of()), dataset="")
    found = read_reference(path)
    shape = {"num_classes": 101, "in_channels": 2}
    assert dataset_fields(found, shape) == {"name": "ncaltech101"}
    big = {"num_classes": 1000, "in_channels": 3}
    assert dataset_fields(found, big) == {"name": "imagenet", "crop_pct": 0.95}
    assert dataset_fields(found, {"num_classes": 7, "in_channels": 3}) == {}


class Canary:
    """Makes a folder when a careless reader unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("where", ["top", "arguments", "weights", "plain pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, where: str) -> None:
    trap, path = tmp_path / "trap", tmp_path / "evil.pth"
    canary, state = Canary(trap), weights(config_of())
    if where == "top":
        write(path, state_dict=state, args=canary)
    elif where == "arguments":
        write(path, state_dict=state, args=argparse.Namespace(time_steps=canary))
    elif where == "weights":
        write(path, state_dict=state | {"head.bias": canary})
    else:
        path.write_bytes(pickle.dumps({"state_dict": canary}))
    with pytest.raises(CheckpointError) as error:
        read_reference(path)
    assert not trap.exists()
    assert "\n" not in str(error.value)
    assert "refused" in str(error.value)
    # the trap does work where it is let
    if where == "plain pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert trap.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a readable checkpoint|refused"),
        (b"PK\x03\x04 not a zip", "not a readable checkpoint"),
        (b"hello world", "not a readable checkpoint|refused"),
    ],
)
def test_what_is_no_checkpoint_is_an_error(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_reference(path)


def test_a_truncated_or_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", weights(config_of()))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_reference(path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_reference(tmp_path / "none.pth")


def test_weights_of_something_else_are_named(tmp_path: Path) -> None:
    found = read_reference(write(tmp_path / "a.pth", state_dict={"fc.weight": torch.zeros(2, 2)}))
    with pytest.raises(CheckpointError, match=r"STAtten-SDT network.*got fc\.weight"):
        model_fields(found)
    torch.save([1], tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="must hold a dict, but holds a list"):
        read_reference(tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="must hold tensors as weights"):
        read_reference(write(tmp_path / "c.pth", state_dict={"a": 1}))


def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    found = read_reference(saved(tmp_path / "a.pth", weights(config_of())))
    with pytest.raises(CheckpointError, match="instead of"):
        as_checkpoint(found, config_of(width=64))
    with pytest.raises(CheckpointError, match="backbone must be sdt"):
        as_checkpoint(found, config_of(backbone="spikformer"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"backbone": "spikformer"}, r"model\.backbone must be sdt"),
        ({"attention": "ssa"}, r"model\.attention must be statten or sdt.*ssa"),
        ({"neuron": "plif"}, r"model\.neuron must be lif"),
    ],
)
def test_what_the_reference_does_not_have_is_not_written(
    tmp_path: Path, fields: dict[str, object], words: str
) -> None:
    config = config_of(**fields)
    ours = checkpoints.Checkpoint(config, 1, weights(config), None, {}, {})
    with pytest.raises(CheckpointError, match=words):
        save_reference(tmp_path / "a.pth", ours)
    assert not list(tmp_path.iterdir())
