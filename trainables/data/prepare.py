"""Gets a data set ready before any trial: unpacked, checked, frames made."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainables.data.download import ByteProgress, fetch_and_unpack
from trainables.data.events import EVENT_SETS, prepare_events
from trainables.data.frames import Progress
from trainables.data.images import list_picture_folders, read_cifar
from trainables.data_cards import CARDS, DataCard
from trainables.errors import InputError


@dataclass(frozen=True)
class Prepared:
    """What a data set on disk turned out to hold.

    Attributes:
        folder: where it is; None where it is embedded.
        train_samples: samples to train and validate on.
        test_samples: samples of the official test part.
        classes: classes that occur.
    """

    folder: Path | None
    train_samples: int
    test_samples: int
    classes: int


@dataclass(frozen=True)
class Wanted:
    """Frames to make of event data: timesteps, and the side of sets that are kept resized."""

    timesteps: int
    image_size: int
    progress: Progress | None = None


def prepare_data(
    name: str, root: Path | None, wanted: Wanted, on_bytes: ByteProgress | None = None
) -> Prepared:
    """Download, verify and unpack a data set, then read it once; event data become frames.

    Raises:
        InputError: the name is unknown, or the data are missing, damaged or to be fetched by hand.
        SpiketuneError: a download failed.
    """
    if name not in CARDS:
        raise InputError(f"NAME must be one of {', '.join(CARDS)}, but got {name}")
    card = CARDS[name]
    if card.is_embedded:
        return Prepared(None, card.train_samples, card.test_samples, card.classes)
    if root is None:
        raise InputError(f"--root must name the folder for {card.title}")
    base = fetch_and_unpack(card, root, on_bytes)
    labels, is_test = _READERS.get(name, _read_cifar)(base, card, wanted)
    num_test = int(is_test.sum())
    return Prepared(base, len(labels) - num_test, num_test, len(np.unique(labels)))


def _read_cifar(base: Path, card: DataCard, _wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    _, labels, num_train = read_cifar(base, card)
    return labels, np.arange(len(labels)) >= num_train


def _read_pictures(base: Path, card: DataCard, _wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    _, labels, num_train = list_picture_folders(base, card)
    return labels, np.arange(len(labels)) >= num_train


def _read_events(base: Path, card: DataCard, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    _, labels, is_test = prepare_events(
        EVENT_SETS[card.name], base, wanted.timesteps, wanted.image_size, wanted.progress
    )
    return labels, is_test


Reader = Callable[[Path, DataCard, Wanted], tuple[np.ndarray, np.ndarray]]

_READERS: dict[str, Reader] = {
    "imagenet": _read_pictures,
    **dict.fromkeys(EVENT_SETS, _read_events),
}
