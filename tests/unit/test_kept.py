"""Data that all trials of a machine share."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import write_cifar100

from trainables.cache import CACHE_VARIABLE
from trainables.data import splits
from trainables.data.images import read_cifar
from trainables.data.kept import shared_array
from trainables.data.splits import TensorSplit
from trainables.data_cards import CARDS

NUMBERS = np.arange(24, dtype=np.uint8).reshape(4, 6)


def never() -> np.ndarray:
    raise AssertionError("it is there already")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def test_an_array_is_made_once_and_mapped_after(cache: Path) -> None:
    assert np.array_equal(shared_array("x", lambda: NUMBERS), NUMBERS)
    found = shared_array("x", never)
    assert isinstance(found, np.memmap)
    assert np.array_equal(found, NUMBERS)
    found[0] = 99  # a trial that writes into its copy changes nobody else's
    assert np.array_equal(shared_array("x", never), NUMBERS)
    assert [path.name for path in cache.iterdir() if path.suffix != ".lock"] == ["x"]


def test_another_process_maps_the_same_file(cache: Path) -> None:
    shared_array("x", lambda: NUMBERS)
    code = (
        "from trainables.data.kept import shared_array; found = shared_array('x', None);"
        "print(found.filename, int(found.sum()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == [str(cache / "x" / "array.npy"), str(int(NUMBERS.sum()))]


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_damaged_byte_is_noticed_and_the_array_made_again(
    cache: Path, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    shared_array("x", lambda: NUMBERS)
    path = cache / "x" / "array.npy"
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 0x55
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(shared_array("x", lambda: NUMBERS), NUMBERS)
    assert "made again" in caplog.text
    assert np.array_equal(shared_array("x", never), NUMBERS)


def test_a_cut_off_array_is_made_again(cache: Path) -> None:
    shared_array("x", lambda: NUMBERS)
    path = cache / "x" / "array.npy"
    os.truncate(path, path.stat().st_size - 1)
    assert np.array_equal(shared_array("x", lambda: NUMBERS), NUMBERS)
    assert np.array_equal(shared_array("x", never), NUMBERS)


def test_without_a_cache_everyone_has_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(shared_array("x", lambda: NUMBERS), NUMBERS)
    assert caplog.text.count("every trial has its own copy") == 1


@pytest.mark.usefixtures("cache")
def test_other_files_are_other_images(tmp_path: Path) -> None:
    card = CARDS["cifar100"]
    write_cifar100(tmp_path)
    base = tmp_path / "cifar100"
    first, labels, num_train = read_cifar(base, card)
    assert np.array_equal(read_cifar(base, card)[0], first)
    assert isinstance(first, np.memmap)
    assert 0 < num_train < len(labels)
    test = base / card.layout / "test"
    train = base / card.layout / "train"
    train.write_bytes(test.read_bytes())
    again, _, _ = read_cifar(base, card)
    assert len(again) != len(first) or not np.array_equal(again, first)


def test_a_small_set_stays_on_the_device() -> None:
    meta = torch.device("meta")
    inputs = torch.arange(24, dtype=torch.uint8).reshape(6, 4)
    labels = torch.arange(6)
    first, last = (TensorSplit(inputs, labels[:3], rows=torch.arange(i, i + 3)) for i in (0, 3))
    for split in (first, last):
        x, _ = split.batch(torch.tensor([0, 2]), meta)
        assert (x.device, x.shape, x.dtype) == (meta, (2, 4), torch.float32)
    there = splits.resident(inputs, meta)
    assert (there.device, there.dtype) == (meta, torch.uint8)
    assert splits.resident(inputs, meta) is there
    assert splits.resident(inputs, torch.device("cpu")) is inputs
    for _ in range(5):
        splits.resident(torch.zeros(3), meta)
    assert len(splits._RESIDENT) <= splits.MAX_RESIDENT


def test_a_large_set_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "RESIDENT_BYTES", 23)
    inputs = torch.arange(24, dtype=torch.uint8)
    assert splits.resident(inputs, torch.device("meta")) is inputs
