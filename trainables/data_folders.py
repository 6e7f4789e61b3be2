"""Finds a data set's folder, or says exactly what is missing and how to get it."""

import os
from pathlib import Path

from trainables.config import DataConfig
from trainables.data_cards import DataCard
from trainables.errors import InputError

ROOT_VARIABLE = "SPIKETUNE_DATA"


def data_root(data: DataConfig, card: DataCard) -> Path:
    """The folder that `data.root`, or the environment, names.

    Raises:
        InputError: neither names one.
    """
    given = data.root or os.environ.get(ROOT_VARIABLE)
    if not given:
        raise InputError(
            f"data.root (or {ROOT_VARIABLE}) must name the folder that holds {card.title}; "
            f"{card.how_to_get}"
        )
    return Path(given).expanduser()


def set_folder(data: DataConfig, card: DataCard) -> Path:
    """The data set's own folder: below the root, or the root itself.

    Raises:
        InputError: the data set is in neither.
    """
    root = data_root(data, card)
    for base in (root / card.folder, root):
        if (base / card.layout).is_dir():
            return base
    raise missing(root / card.folder / card.layout, card)


def missing(path: Path, card: DataCard) -> InputError:
    """The error for a path of a data set that is not there."""
    return InputError(f"{path}: {card.title} must be there, but is not; {card.how_to_get}")
