"""Data sets of recorded events: CIFAR10-DVS, N-Caltech101, DVS128 Gesture, N-MNIST.

Shapes: N samples, B batch, T timesteps, H W image.
"""

import csv
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as nnf

from trainables.config import DataConfig, ModelConfig
from trainables.data.augment import event_augments
from trainables.data.event_files import Events, read_aedat2, read_aedat3, read_atis
from trainables.data.frames import Cut, Integration, Progress, Recording, open_frames
from trainables.data.splits import DataSplits, TensorSplit, hold_out
from trainables.data_cards import CARDS, DataCard
from trainables.data_folders import missing, set_folder
from trainables.errors import InputError

TRAIN_SHARE = 0.9  # of each class in file order, where a set has no official test part


class EventSet:
    """Where a data set's recordings are, which of them test, and how one is read."""

    suffix = ".bin"
    keeps_sensor_size = True  # False: frames are kept at model.image_size, nearest pixel

    def __init__(self, card: DataCard) -> None:
        """Keep the card."""
        self.card = card

    def recordings(self, base: Path) -> list[Recording]:
        """All recordings in a fixed order.

        Raises:
            InputError: folders or files are missing.
        """
        raise NotImplementedError

    def read(self, path: Path) -> Events:
        """Events of one file."""
        return read_atis(path)

    def integration(self, timesteps: int, image_size: int) -> Integration:
        """How the recordings become frames of a network's input."""
        _, height, width = self.card.sample_shape
        sensor = (height, width)
        stored = sensor if self.keeps_sensor_size else (image_size, image_size)
        return Integration(self.read, timesteps, sensor, stored)

    def _class_files(self, folder: Path, classes: Sequence[str]) -> list[list[Path]]:
        """Files of each class, sorted by name without its suffix, as published results have it."""
        found = [
            sorted((folder / name).glob(f"*{self.suffix}"), key=lambda path: path.stem)
            for name in classes
        ]
        if not any(found):
            raise missing(folder / "CLASS" / f"*{self.suffix}", self.card)
        return found


class NinetyPercentSet(EventSet):
    """One folder a class; the first 90 % of each class train, the rest test."""

    def recordings(self, base: Path) -> list[Recording]:
        """Class after class; see EventSet."""
        folder = base / self.card.layout
        recordings = []
        for label, paths in enumerate(self._class_files(folder, _classes(folder))):
            num_train = math.ceil(len(paths) * TRAIN_SHARE)
            recordings += [
                Recording(path, (Cut(label),), is_test=number >= num_train)
                for number, path in enumerate(paths)
            ]
        return recordings


class Cifar10Dvs(NinetyPercentSet):
    """AEDAT 2.0 files of a DVS128."""

    suffix = ".aedat"

    def read(self, path: Path) -> Events:
        """Events of one file."""
        return read_aedat2(path)


class NCaltech101(NinetyPercentSet):
    """ATIS files of 101 classes; frames are kept at the network's size, nearest pixel."""

    keeps_sensor_size = False


class NMnist(EventSet):
    """ATIS files in `Train/CLASS` and `Test/CLASS`."""

    def recordings(self, base: Path) -> list[Recording]:
        """Training recordings, then those that test; see EventSet."""
        extract = (base / self.card.layout).parent
        if not (extract / "Test").is_dir():
            raise missing(extract / "Test", self.card)
        classes = _classes(extract / "Train")
        return [
            Recording(path, (Cut(label),), is_test=part == "Test")
            for part in ("Train", "Test")
            for label, paths in enumerate(self._class_files(extract / part, classes))
            for path in paths
        ]


class DvsGesture(EventSet):
    """AEDAT 3.1 files with several gestures each, cut by the times in their labels file."""

    suffix = ".aedat"

    def recordings(self, base: Path) -> list[Recording]:
        """Recordings in the order of the two lists of trials; see EventSet."""
        folder = base / self.card.layout
        recordings = []
        for part in ("train", "test"):
            listing = folder / f"trials_to_{part}.txt"
            if not listing.is_file():
                raise missing(listing, self.card)
            for name in listing.read_text().split():
                path = folder / name
                labels = path.with_name(f"{path.stem}_labels.csv")
                for wanted in (path, labels):
                    if not wanted.is_file():
                        raise missing(wanted, self.card)
                recordings.append(Recording(path, self._cuts(labels), is_test=part == "test"))
        return recordings

    def read(self, path: Path) -> Events:
        """Events of one file."""
        return read_aedat3(path)

    def _cuts(self, path: Path) -> tuple[Cut, ...]:
        try:
            rows = list(csv.reader(path.read_text().splitlines()))[1:]
            cuts = tuple(Cut(int(row[0]) - 1, int(row[1]), int(row[2])) for row in rows if row)
        except (ValueError, IndexError) as error:
            raise InputError(f"{path}: must have rows of class, start, end ({error})") from error
        if not cuts:
            raise InputError(f"{path}: must list at least one gesture")
        if any(not 0 <= cut.label < self.card.classes for cut in cuts):
            raise InputError(f"{path}: classes must be 1 to {self.card.classes}")
        return cuts


EVENT_SETS: dict[str, EventSet] = {
    "cifar10_dvs": Cifar10Dvs(CARDS["cifar10_dvs"]),
    "ncaltech101": NCaltech101(CARDS["ncaltech101"]),
    "dvs_gesture": DvsGesture(CARDS["dvs_gesture"]),
    "nmnist": NMnist(CARDS["nmnist"]),
}


def load_events(data: DataConfig, model: ModelConfig) -> DataSplits:
    """Frames of a recorded data set, integrated to the network's timesteps where they are not yet.

    Raises:
        InputError: recordings are missing or damaged.
    """
    event_set = EVENT_SETS[data.name]
    base = set_folder(data, event_set.card)
    frames, labels, is_test = prepare_events(event_set, base, model.timesteps, model.image_size)
    train, val = hold_out(np.flatnonzero(~is_test), labels, data.val_frac, data.split_seed)
    finish = partial(resized, size=model.image_size)
    augments = event_augments(data)
    return DataSplits(
        *(
            TensorSplit(
                frames, torch.from_numpy(labels[part]), finish, augments, torch.from_numpy(part)
            )
            for part in (train, val, np.flatnonzero(is_test))
        )
    )


def prepare_events(
    event_set: EventSet,
    base: Path,
    timesteps: int,
    image_size: int,
    progress: Progress | None = None,
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Frames `[N,T,2,H,W]`, labels `[N]` and whether each sample tests, of a whole data set.

    Raises:
        InputError: recordings are missing or damaged.
    """
    recordings = event_set.recordings(base)
    how = event_set.integration(timesteps, image_size)
    frames = open_frames(base, recordings, how, progress)
    labels = [cut.label for recording in recordings for cut in recording.cuts]
    is_test = [recording.is_test for recording in recordings for _ in recording.cuts]
    return frames, np.array(labels, dtype=np.int64), np.array(is_test)


def resized(frames_BTCHW: torch.Tensor, size: int) -> torch.Tensor:
    """Counts as float32 at the network's size, bilinear without antialiasing, as in 2022."""
    frames = frames_BTCHW.float()
    if frames.shape[-2:] == (size, size):
        return frames
    flat = nnf.interpolate(
        frames.flatten(0, 1), size=(size, size), mode="bilinear", align_corners=False
    )
    return torch.as_tensor(flat.unflatten(0, frames.shape[:2]))


def _classes(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._"
    )
