"""How many samples a network trains on: of the published data set, or as many as lie here.

Importable without torch.
"""

from functools import lru_cache
from pathlib import Path

from trainables.cifar_files import read_batch
from trainables.config import DataConfig
from trainables.data_cards import CARDS, DataCard, count_pictures
from trainables.data_folders import set_folder
from trainables.errors import InputError

# Files of CIFAR's training images, and where their labels are.
_CIFAR = {
    "cifar-10-batches-py": ("data_batch_*", "labels"),
    "cifar-100-python": ("train", "fine_labels"),
}
# Files of a recording each below the card's layout, and the share of them that does not test.
_RECORDINGS = {
    "cifar10_dvs": ("*/*.aedat", 0.9),
    "ncaltech101": ("*/*.bin", 0.9),
    "nmnist": ("*/*.bin", 1.0),
}


def training_images(data: DataConfig) -> int:
    """Samples an epoch of the whole data set trains on; a subset on disk has fewer."""
    card = CARDS[data.name]
    test_frac = data.test_frac if card.test_samples == 0 else 0.0
    return round(card.train_samples * (1.0 - data.val_frac - test_frac))


def images_here(data: DataConfig) -> int:
    """As `training_images`, about as many as lie on this machine's disk where any do."""
    card = CARDS[data.name]
    try:
        found = _count(card, set_folder(data, card) / card.layout)
    except (InputError, OSError):
        return training_images(data)  # it may lie where the search runs; training names damage
    return round(found * (1.0 - data.val_frac)) if found else training_images(data)


@lru_cache(maxsize=32)  # a plan asks for hundreds of configurations
def _count(card: DataCard, folder: Path) -> int:
    """Samples that are trained and validated on; 0 where that is not known."""
    if card.name == "imagenet":
        return count_pictures(folder)
    if card.layout in _CIFAR:
        pattern, labels = _CIFAR[card.layout]
        return sum(len(read_batch(path, labels)[1]) for path in folder.glob(pattern))
    if card.name in _RECORDINGS:
        pattern, share = _RECORDINGS[card.name]
        return round(share * sum(1 for _ in folder.glob(pattern)))
    return _gestures(folder)


def _gestures(folder: Path) -> int:
    """Rows of all training recordings' labels, but their heads; 0 where one is missing."""
    try:
        names = (folder / "trials_to_train.txt").read_text().split()
        labels = [(folder / name).with_name(f"{Path(name).stem}_labels.csv") for name in names]
        return sum(len(path.read_text().split()) - 1 for path in labels)
    except OSError:
        return 0
