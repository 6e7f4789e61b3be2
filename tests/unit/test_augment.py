import random

import numpy as np
import pytest
import torch
from PIL import Image

from trainables.config import DataConfig
from trainables.data.augment import EVENT_AUGMENTS, _warp, flip_images, shift_images
from trainables.data.pictures import EvaluationPicture, TrainingPicture, pixels

MEAN = (0.49, 0.48, 0.45)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", sorted(EVENT_AUGMENTS))
def test_event_augment_treats_all_frames_of_a_sample_alike(name: str) -> None:
    frame = torch.randint(0, 5, (16, 1, 1, 24, 24), generator=seeded()).float()
    moved = EVENT_AUGMENTS[name](frame.expand(-1, 3, 2, -1, -1).contiguous(), seeded())
    assert torch.equal(moved, moved[:, :1, :1].expand_as(moved))
    assert not torch.equal(moved[:, :1, :1], frame)
    assert set(moved.unique().tolist()) <= set(range(5))  # counts stay counts


def test_warp_turns_by_the_angle_even_when_oblong() -> None:
    x = torch.zeros(1, 1, 21, 41)
    x[0, 0, 10, 25] = 1.0  # 5 right of the middle
    turned = _warp(x, torch.tensor([torch.pi / 2]), torch.zeros(1))
    (row, column) = turned[0, 0].nonzero()[0].tolist()
    assert (abs(row - 10), column) == (5, 20)


def test_warp_without_change_is_identity() -> None:
    x = torch.rand(4, 3, 9, 12, generator=seeded())
    assert torch.equal(_warp(x, torch.zeros(4), torch.zeros(4)), x)


def test_shift_repeats_edges_and_stays_within_bounds() -> None:
    x = torch.arange(8.0).expand(32, 1, 8, 8)
    shifts = (shift_images(x, seeded(), 2)[:, 0, 0] - x[:, 0, 0])[:, 3:5]
    assert set(shifts.unique().tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}


def test_flip_follows_its_probability() -> None:
    x = torch.rand(200, 1, 2, 3, generator=seeded())
    assert torch.equal(flip_images(x, seeded(), 0.0), x)
    assert torch.equal(flip_images(x, seeded(), 1.0), x.flip(-1))


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def test_randaugment_is_the_seeds_alone() -> None:
    data = DataConfig(name="cifar10", hflip=0.5, randaugment="rand-m9-n2-mstd0.5-inc1")
    made = TrainingPicture(data, 32, MEAN)
    random.seed(1)
    before = random.getstate()
    first = [pixels(made(picture(), seed)) for seed in range(20)]
    assert random.getstate() == before
    random.seed(2)
    again = [pixels(made(picture(), seed)) for seed in range(20)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({a.tobytes() for a in first}) > 10


@pytest.mark.parametrize("strength", ["m0", "m10", "m10-inc1", "m0-inc1", "m5-mmax30-mstd101"])
def test_every_operation_works_at_every_strength(strength: str) -> None:
    data = DataConfig(name="cifar10", randaugment=f"rand-{strength}-p1-n30")
    made = TrainingPicture(data, 32, MEAN)
    for seed in range(30):
        assert pixels(made(picture(), seed)).shape == (32, 32, 3)


def test_without_settings_a_picture_is_only_resized() -> None:
    made = TrainingPicture(DataConfig(name="cifar10"), 32, MEAN)
    assert np.array_equal(pixels(made(picture(), 3)), pixels(picture()))


def test_evaluation_cuts_the_middle() -> None:
    wide = Image.fromarray(np.zeros((375, 500, 3), dtype=np.uint8))
    assert EvaluationPicture(288, 0.9)(wide).size == (288, 288)
    assert np.array_equal(pixels(EvaluationPicture(32, 1.0)(picture())), pixels(picture()))


@pytest.mark.parametrize("text", ["rand", "rand-m", "rand-w0", "auto", "rand-m9-x1", "rand-m9 "])
def test_unknown_randaugment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="randaugment"):
        DataConfig(name="cifar10", randaugment=text)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("digits", {"hflip": 0.5}),
        ("cifar10", {"dvs_augment": "snda"}),
        ("nmnist", {"randaugment": "rand-m9"}),
        ("digits_dvs", {"eval_size": 32}),
    ],
)
def test_setting_that_the_data_do_not_use_is_refused(name: str, setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))}.*does not use it"):
        DataConfig.model_validate({"name": name} | setting)
