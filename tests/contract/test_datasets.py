import shutil
from pathlib import Path
from typing import get_args

import data_sets
import numpy as np
import pytest
import torch
from data_sets import CASES, Case

from trainables.config import DataConfig, DatasetName, TrialConfig
from trainables.data import DATASETS, DataSplits, check_data, load_data
from trainables.data_cards import CARDS
from trainables.errors import InputError, TrialFailedError
from trainables.samples import images_here, training_images

CPU = torch.device("cpu")
ON_DISK = [case for case in CASES if not CARDS[case.name].is_embedded]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def root(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.lay_out(tmp_path_factory.mktemp(case.name))


@pytest.fixture(scope="module")
def splits(case: Case, root: Path) -> DataSplits:
    return load_data(case.data_config(root), case.model_config)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def first_samples(splits: DataSplits) -> torch.Tensor:
    return torch.cat(
        [part.batch(torch.arange(4), CPU)[0] for part in (splits.train, splits.val)], dim=0
    )


def test_every_data_set_has_card_loader_and_case() -> None:
    assert CARDS.keys() == DATASETS.keys() == {case.name for case in CASES}
    assert set(get_args(DatasetName)) == CARDS.keys()


def test_samples_are_counted_where_they_lie(case: Case, root: Path, splits: DataSplits) -> None:
    classes = CARDS[case.name].classes  # each of them rounds
    there = len(splits.train)
    assert images_here(case.data_config(root)) == pytest.approx(there, rel=0.02, abs=classes / 2)
    if not CARDS[case.name].is_embedded:
        nowhere = case.data_config(root / "none")
        assert images_here(nowhere) == training_images(nowhere) > 1.5 * there


def test_a_damaged_batch_counts_as_the_whole_set(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "cifar100")
    data = case.data_config(case.lay_out(tmp_path))
    batch = tmp_path / "cifar100" / "cifar-100-python" / "train"
    batch.write_bytes(b"nothing")
    assert images_here(data) == training_images(data)
    batch.unlink()
    batch.mkdir()
    assert images_here(data) == training_images(data)


def test_training_batches_have_the_networks_shape(case: Case, splits: DataSplits) -> None:
    x, y = splits.train.batch(torch.tensor([3, 0, 5]), CPU, seeded(0))
    model = case.model_config
    size, channels = model.image_size, model.in_channels
    wanted: tuple[int, ...] = (channels, size, size)
    if case.name.startswith("seq_"):
        wanted = (size, channels, size, 1)
    elif model.event_data:
        wanted = (model.timesteps, channels, size, size)
    assert tuple(x.shape) == (3, *wanted)
    assert splits.train.sample_shape == wanted
    assert x.dtype == torch.float32
    assert torch.isfinite(x).all()
    assert y.dtype == torch.int64
    assert y.tolist() == splits.train.labels[[3, 0, 5]].tolist()


def test_evaluation_batches_are_not_augmented(case: Case, splits: DataSplits) -> None:
    side = case.data.get("eval_size", case.model_config.image_size)
    for part in (splits.train, splits.val, splits.test):
        first, _ = part.batch(torch.arange(3), CPU)
        second, _ = part.batch(torch.arange(3), CPU)
        assert torch.equal(first, second)
        assert first.shape[-2] == side


def test_labels_are_in_range(case: Case, splits: DataSplits) -> None:
    for part in (splits.train, splits.val, splits.test):
        assert len(part) == len(part.labels) > 0
        assert int(part.labels.min()) >= 0
        assert int(part.labels.max()) < case.model_config.num_classes


def test_validation_is_stratified(splits: DataSplits) -> None:
    train, val = (np.bincount(part.labels, minlength=101) for part in (splits.train, splits.val))
    share = val.sum() / (train.sum() + val.sum())
    expected = share * (train + val)
    assert (np.abs(val - expected) <= 1.0).all()


def test_parts_share_no_sample(case: Case, splits: DataSplits) -> None:
    seen: set[int] = set()
    total = 0
    for part in (splits.train, splits.val, splits.test):
        for start in range(0, len(part), 256):
            indices = torch.arange(start, min(start + 256, len(part)))
            x, _ = part.batch(indices, CPU)
            total += len(x)
            seen |= {hash(sample.numpy().tobytes()) for sample in x}
    # a few real samples are equal to each other; parts that overlapped would lose many more
    assert len(seen) >= 0.99 * total


def test_split_is_seeded(case: Case, root: Path, splits: DataSplits) -> None:
    same = DATASETS[case.name](case.data_config(root), case.model_config)
    other = DATASETS[case.name](case.data_config(root, split_seed=1), case.model_config)
    assert torch.equal(first_samples(same), first_samples(splits))
    assert not torch.equal(first_samples(other), first_samples(splits))
    assert torch.equal(same.train.labels, splits.train.labels)


def test_official_test_part_ignores_the_seed(case: Case, root: Path, splits: DataSplits) -> None:
    if CARDS[case.name].test_samples == 0 and CARDS[case.name].is_embedded:
        pytest.skip(f"{case.name} has no official test part: it is drawn by the seed")
    other = load_data(case.data_config(root, split_seed=5, val_frac=0.3), case.model_config)
    indices = torch.arange(min(8, len(splits.test)))
    assert torch.equal(other.test.batch(indices, CPU)[0], splits.test.batch(indices, CPU)[0])


def test_augmented_batches_follow_the_generator(case: Case, splits: DataSplits) -> None:
    indices = torch.arange(min(32, len(splits.train)))
    first, _ = splits.train.batch(indices, CPU, seeded(7))
    np.random.default_rng()
    torch.rand(3)  # the process-wide generators are nobody's business
    second, _ = splits.train.batch(indices, CPU, seeded(7))
    third, _ = splits.train.batch(indices, CPU, seeded(8))
    assert torch.equal(first, second)
    if case.data:
        assert not torch.equal(first, third)


def test_network_that_does_not_fit_is_refused(case: Case, root: Path) -> None:
    data = case.data_config(root)
    for field, wrong in (("in_channels", 4), ("num_classes", 2)):
        model = case.model_config.model_copy(update={field: wrong})
        with pytest.raises(InputError, match=f"model.{field}"):
            load_data(data, model)


@pytest.mark.parametrize("absent", ON_DISK, ids=lambda case: case.name)
def test_missing_data_names_path_and_remedy(absent: Case, tmp_path: Path) -> None:
    config = TrialConfig(data=absent.data_config(tmp_path), model=absent.model_config)
    card = CARDS[absent.name]
    with pytest.raises(InputError) as error:
        check_data(config)
    text = str(error.value)
    assert str(tmp_path / card.folder / card.layout) in text
    assert "spiketune data prepare" in text or "download" in text


@pytest.mark.parametrize("absent", ON_DISK, ids=lambda case: case.name)
def test_no_root_is_refused(absent: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPIKETUNE_DATA", raising=False)
    data = DataConfig(name=absent.name)
    with pytest.raises(InputError, match=r"data\.root \(or SPIKETUNE_DATA\)"):
        load_data(data, absent.model_config)


def test_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_sets.write_cifar100(tmp_path)
    monkeypatch.setenv("SPIKETUNE_DATA", str(tmp_path))
    case = next(case for case in CASES if case.name == "cifar100")
    found = load_data(DataConfig(name="cifar100", val_frac=0.2), case.model_config)
    assert len(found.train) == 400


@pytest.mark.parametrize("damaged", ON_DISK, ids=lambda case: case.name)
def test_truncated_file_is_found_before_training(damaged: Case, tmp_path: Path) -> None:
    damaged.lay_out(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "copy", symlinks=False)
    target = tmp_path / "copy" / CARDS[damaged.name].folder / damaged.sample
    if target.is_dir():
        target = min(path for path in target.rglob("*") if path.is_file())
    target.chmod(0o644)
    # some whole events of 5 and of 8 bytes, and a part of one
    lost = target.stat().st_size // 2 // 40 * 40 + 3
    target.write_bytes(target.read_bytes()[:-lost])
    config = TrialConfig(data=damaged.data_config(tmp_path / "copy"), model=damaged.model_config)
    with pytest.raises(InputError) as error:
        check_data(config)
    assert str(target) in str(error.value)


def test_picture_damaged_later_fails_the_trial(tmp_path: Path) -> None:
    data_sets.write_pictures(tmp_path)
    data = DataConfig(name="imagenet", root=str(tmp_path), val_frac=0.2)
    case = next(case for case in CASES if case.name == "imagenet")
    splits = load_data(data, case.model_config)
    for path in tmp_path.rglob("*.JPEG"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(TrialFailedError) as error:
        splits.train.batch(torch.arange(2), CPU, seeded(0))
    assert error.value.reason == "bad_data"


def test_event_readers_agree_with_spikingjelly(tmp_path: Path) -> None:
    from spikingjelly.datasets.cifar10_dvs import _load_origin_data
    from spikingjelly.datasets.utils import load_aedat_v3

    from trainables.data.event_files import read_aedat2, read_aedat3

    data_sets.write_aedat3(tmp_path / "three.aedat", seed=3)
    pairs = [(read_aedat3, load_aedat_v3, tmp_path / "three.aedat")]
    real = data_sets.SHARED / "cifar10dvs_standin/extract/cat/cifar10_cat_0.aedat"
    if real.exists():
        pairs.append((read_aedat2, _load_origin_data, real))
    for ours, theirs, path in pairs:
        found, wanted = ours(path), theirs(path)
        for key in "txyp":
            assert np.array_equal(found[key], wanted[key]), (path, key)
