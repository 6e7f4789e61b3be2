"""The data a trial sees."""

from collections.abc import Callable
from functools import lru_cache

from trainables.config import DataConfig, ModelConfig, TrialConfig
from trainables.data.digits_dvs import load_digit_events
from trainables.data.events import EVENT_SETS, load_events
from trainables.data.images import load_cifar, load_digit_images, load_picture_folders
from trainables.data.splits import DataSplits, Split
from trainables.data_cards import CARDS
from trainables.errors import InputError

DATASETS: dict[str, Callable[[DataConfig, ModelConfig], DataSplits]] = {
    "digits": load_digit_images,
    "digits_dvs": load_digit_events,
    "cifar10": load_cifar,
    "cifar100": load_cifar,
    "seq_cifar10": load_cifar,
    "seq_cifar100": load_cifar,
    "imagenet": load_picture_folders,
    **dict.fromkeys(EVENT_SETS, load_events),
}

__all__ = ["DATASETS", "DataSplits", "Split", "check_data", "load_data"]


def load_data(data: DataConfig, model: ModelConfig) -> DataSplits:
    """Load and split a data set; a worker that runs many trials loads it once.

    Raises:
        InputError: the data are missing, damaged or do not fit the network (channels, classes,
            frames).
    """
    card = CARDS[data.name]
    # Of the network only these decide what is loaded: trials that differ elsewhere share it.
    has_frames = card.is_event or card.is_sequence
    timesteps = model.timesteps if has_frames else 1
    splits = _load(
        data, ModelConfig(timesteps=timesteps, image_size=model.image_size, attention="sdt")
    )
    channels = splits.train.sample_shape[-3]
    classes = int(max(part.labels.max() for part in (splits.train, splits.val, splits.test))) + 1
    if channels != model.in_channels:
        raise InputError(
            f"model.in_channels must be {channels} for data {data.name}, "
            f"but got {model.in_channels}"
        )
    if classes > model.num_classes:
        raise InputError(
            f"model.num_classes must be at least {classes} for data {data.name}, "
            f"but got {model.num_classes}"
        )
    if card.is_event != model.event_data:
        raise InputError(f"model.event_data must be {card.is_event} for data {data.name}")
    return splits


@lru_cache(maxsize=2)
def _load(data: DataConfig, shape: ModelConfig) -> DataSplits:
    return DATASETS[data.name](data, shape)


def check_data(config: TrialConfig) -> DataSplits:
    """Load a trial's data now, so that what is missing is found before the first trial.

    Raises:
        InputError: the data are missing, corrupt, do not fit the network or fill no batch.
    """
    splits = load_data(config.data, config.model)
    if len(splits.train) < config.train.batch_size:
        raise InputError(
            f"train.batch_size must be at most {len(splits.train)} (training samples of "
            f"{config.data.name}), but got {config.train.batch_size}"
        )
    return splits
