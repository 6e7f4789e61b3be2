"""Image data sets: digits, CIFAR as images and as sequences of columns, folders of JPEGs.

Shapes: N samples, B batch, C channels, H W image, S side, T timesteps.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as nnf

from trainables.cifar_files import read_batch
from trainables.config import DataConfig, ModelConfig
from trainables.data.augment import tensor_augments
from trainables.data.kept import shared_array
from trainables.data.pictures import EvaluationPicture, Picture, TrainingPicture, pixels
from trainables.data.raw_digits import raw_digits
from trainables.data.splits import Augment, DataSplits, TensorSplit, hold_out, stratified_indices
from trainables.data_cards import CARDS, PICTURE_SUFFIXES, DataCard
from trainables.data_folders import missing, set_folder
from trainables.errors import InputError, TrialFailedError

DIGITS_MAX = 16.0
CIFAR_FILES = {
    "cifar-10-batches-py": ([f"data_batch_{i}" for i in range(1, 6)], "test_batch", "labels"),
    "cifar-100-python": (["train"], "test", "fine_labels"),
}
CIFAR_FORMAT = 1  # raise it when samples are kept otherwise
CIFAR_SAMPLE = np.dtype([("image", "u1", (32, 32, 3)), ("label", "u1"), ("is_test", "?")])


class PictureSource(Protocol):
    """Pictures by number, wherever they are stored."""

    def picture(self, index: int) -> Picture:
        """One RGB picture."""


@dataclass(frozen=True, eq=False)
class StoredPictures:
    """Pictures in memory, `[N,H,W,3]` bytes."""

    data: np.ndarray

    def picture(self, index: int) -> Picture:
        """One RGB picture."""
        return Image.fromarray(self.data[index])


@dataclass(frozen=True, eq=False)
class PictureFiles:
    """Picture files that are decoded when they are asked for."""

    paths: Sequence[Path]

    def picture(self, index: int) -> Picture:
        """One RGB picture.

        Raises:
            TrialFailedError: the file is missing or damaged (`bad_data`).
        """
        path = self.paths[index]
        try:
            with Image.open(path) as picture:
                return picture.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise TrialFailedError(
                "bad_data", f"{path}: not a readable picture ({error})"
            ) from error


@dataclass(frozen=True, eq=False)
class PictureSplit:
    """A split whose pictures are cut, augmented and converted a batch at a time.

    Attributes:
        source: all pictures of the data set.
        indices: which of them are this split's.
        labels: class indices `[N]` of these.
        train: what training does to a picture.
        evaluation: what evaluation does to it.
        card: mean and standard deviation.
        size: side of a training picture.
        as_columns: give column w as the frame of timestep w.
        augments: applied in training to the finished batch.
    """

    source: PictureSource
    indices: np.ndarray
    labels: torch.Tensor
    train: TrainingPicture
    evaluation: EvaluationPicture
    card: DataCard
    size: int
    as_columns: bool
    augments: tuple[Augment, ...]

    decodes = True

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one training input."""
        channels = len(self.card.mean)
        if self.as_columns:
            return (self.size, channels, self.size, 1)
        return (channels, self.size, self.size)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.indices)

    def batch(
        self,
        indices: torch.Tensor,
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Some samples as the network takes them; see Split.

        Raises:
            TrialFailedError: a picture cannot be decoded (`bad_data`).
        """
        numbers = self.indices[indices.numpy()].tolist()
        if generator is None:
            made = _mapped(self._evaluated, numbers)
        else:
            seeds = torch.randint(0, 2**62, (len(numbers),), generator=generator).tolist()
            made = _mapped(self._trained, numbers, seeds)
        x_BHWC = torch.from_numpy(np.stack(list(made))).to(device)
        x = self._normalised(x_BHWC)
        if generator is not None:
            for augment in self.augments:
                x = augment(x, generator)
        return (to_columns(x) if self.as_columns else x), self.labels[indices].to(device)

    def _trained(self, number: int, seed: int) -> np.ndarray:
        return pixels(self.train(self.source.picture(number), seed))

    def _evaluated(self, number: int) -> np.ndarray:
        return pixels(self.evaluation(self.source.picture(number)))

    def _normalised(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        x = x_BHWC.permute(0, 3, 1, 2).float() / 255.0
        mean = torch.tensor(self.card.mean, device=x.device).view(1, -1, 1, 1)
        std = torch.tensor(self.card.std, device=x.device).view(1, -1, 1, 1)
        return (x - mean) / std


def to_columns(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Columns as frames: `[B,C,H,W]` to `[B,T=W,C,H,1]`."""
    return x_BCHW.permute(0, 3, 1, 2).unsqueeze(-1).contiguous()


def load_digit_images(data: DataConfig, model: ModelConfig) -> DataSplits:
    """scikit-learn's 1,797 digits, 8x8, drawn up bilinearly to `image_size` and normalised.

    Source: Alpaydin and Kaynak, UCI Optical Recognition of Handwritten Digits, 1998.
    """
    images_NHW, target = raw_digits()
    card = CARDS["digits"]
    pixels_N1HW = torch.from_numpy(images_NHW).unsqueeze(1) / DIGITS_MAX
    images = nnf.interpolate(
        pixels_N1HW, size=(model.image_size,) * 2, mode="bilinear", align_corners=False
    )
    images = (images - card.mean[0]) / card.std[0]
    labels = torch.from_numpy(target)
    parts = stratified_indices(target, data.val_frac, data.test_frac, data.split_seed)
    return DataSplits(
        *(TensorSplit(images[i], labels[i], augments=tensor_augments(data)) for i in parts)
    )


def load_cifar(data: DataConfig, model: ModelConfig) -> DataSplits:
    """CIFAR-10 or CIFAR-100 in the layout of the publisher's Python archive, whole or a subset.

    The sequential sets give the columns of each image as frames, one a timestep.

    Raises:
        InputError: files are missing or damaged, or timesteps do not fit the columns.
    """
    card = CARDS[data.name]
    is_sequence = card.is_sequence
    if is_sequence and model.timesteps != model.image_size:
        raise InputError(
            f"model.timesteps must be model.image_size ({model.image_size} columns) for data "
            f"{data.name}, but got {model.timesteps}"
        )
    if is_sequence and data.eval_size not in (None, model.image_size):
        raise InputError(
            f"data.eval_size must be model.image_size for data {data.name}, "
            f"but got {data.eval_size}"
        )
    images, labels, num_train = read_cifar(set_folder(data, card), card)
    train, val = hold_out(np.arange(num_train), labels, data.val_frac, data.split_seed)
    parts = (train, val, np.arange(num_train, len(labels)))
    return _picture_splits(data, model, StoredPictures(images), labels, parts, is_sequence)


def read_cifar(base: Path, card: DataCard) -> tuple[np.ndarray, np.ndarray, int]:
    """All images `[N,32,32,3]`, labels `[N]` and how many of them, from the start, train.

    Raises:
        InputError: a file is missing or damaged, or a label is out of range.
    """
    folder = base / card.layout
    train_names, test_name, label_key = CIFAR_FILES[card.layout]
    paths = [folder / name for name in (*train_names, test_name)]
    for path in paths:
        if not path.is_file():
            raise missing(path, card)
    samples = shared_array(_name(paths), lambda: _read_samples(paths, label_key))
    labels = samples["label"].astype(np.int64)
    if labels.max() >= card.classes:
        raise InputError(
            f"{folder}: labels must be 0 to {card.classes - 1}, but got {labels.max()}"
        )
    return samples["image"], labels, int((~samples["is_test"]).sum())


def _name(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256(f"{CIFAR_FORMAT}".encode())
    for path in paths:
        state = path.stat()
        digest.update(f"\0{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}".encode())
    return f"cifar-{digest.hexdigest()[:12]}"


def _read_samples(paths: Sequence[Path], label_key: str) -> np.ndarray:
    """All samples, those of the last file for test.

    Raises:
        InputError: a file is damaged, or a label is no class of any set.
    """
    read = [read_batch(path, label_key) for path in paths]
    labels = np.concatenate([part for _, part in read])
    samples = np.zeros(len(labels), dtype=CIFAR_SAMPLE)
    if labels.min() < 0 or labels.max() > np.iinfo(samples["label"].dtype).max:
        raise InputError(
            f"{paths[0].parent}: labels must be 0 to 255, but got {labels.min()} to {labels.max()}"
        )
    samples["image"] = np.concatenate([part for part, _ in read])
    samples["label"] = labels
    samples["is_test"][len(labels) - len(read[-1][1]) :] = True
    return samples


def load_picture_folders(data: DataConfig, model: ModelConfig) -> DataSplits:
    """Pictures in `train/CLASS/` and `val/CLASS/`, decoded when needed; `val` is the test part.

    Raises:
        InputError: folders are missing or empty, or `val` has a class that `train` has not.
    """
    card = CARDS[data.name]
    base = set_folder(data, card)
    source, labels, num_train = list_picture_folders(base, card)
    train, val = hold_out(np.arange(num_train), labels, data.val_frac, data.split_seed)
    parts = (train, val, np.arange(num_train, len(labels)))
    return _picture_splits(data, model, source, labels, parts, as_columns=False)


def list_picture_folders(base: Path, card: DataCard) -> tuple[PictureFiles, np.ndarray, int]:
    """All pictures, their labels `[N]` and how many of them, from the start, train.

    Raises:
        InputError: folders are missing or empty, `val` has a class that `train` has not, or the
            first picture of a class is damaged.
    """
    if not (base / "val").is_dir():
        raise missing(base / "val", card)
    classes = sorted(folder.name for folder in (base / "train").iterdir() if folder.is_dir())
    train_paths, train_labels = _listed(base / "train", classes, card)
    test_paths, test_labels = _listed(base / "val", classes, card)
    source = PictureFiles(train_paths + test_paths)
    labels = np.array(train_labels + test_labels, dtype=np.int64)
    _try_each_class(source, labels)
    return source, labels, len(train_paths)


def _listed(folder: Path, classes: list[str], card: DataCard) -> tuple[list[Path], list[int]]:
    unknown = {path.name for path in folder.iterdir() if path.is_dir()} - set(classes)
    if unknown:
        raise InputError(f"{folder}: class {min(unknown)} must be in train as well")
    paths, labels = [], []
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            continue
        found = sorted(
            path for path in (folder / name).iterdir() if path.suffix.lower() in PICTURE_SUFFIXES
        )
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise missing(folder / "CLASS" / "*.JPEG", card)
    return paths, labels


def _try_each_class(source: PictureFiles, labels: np.ndarray) -> None:
    _, firsts = np.unique(labels, return_index=True)
    try:
        for index in firsts.tolist():
            source.picture(index)
    except TrialFailedError as error:
        raise InputError(f"{error}; fetch it again") from error


def _picture_splits(
    data: DataConfig,
    model: ModelConfig,
    source: PictureSource,
    labels: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray, np.ndarray],
    as_columns: bool,  # noqa: FBT001
) -> DataSplits:
    card = CARDS[data.name]
    train = TrainingPicture(data, model.image_size, card.mean)
    evaluation = EvaluationPicture(data.eval_size or model.image_size, data.crop_pct)
    augments = tensor_augments(data)
    all_labels = torch.from_numpy(labels)
    return DataSplits(
        *(
            PictureSplit(
                source,
                part,
                all_labels[part],
                train,
                evaluation,
                card,
                model.image_size,
                as_columns,
                augments,
            )
            for part in parts
        )
    )


def _mapped(work: Callable[..., np.ndarray], *given: Sequence[int]) -> Iterator[np.ndarray]:
    num_threads = torch.get_num_threads()
    if num_threads == 1:
        return map(work, *given)  # the thread that feeds is one already; another only waits
    # As many as the trial was given; PIL lets go of the interpreter's lock while it works.
    return _pool(num_threads).map(work, *given)


@lru_cache(maxsize=1)
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=num_threads, thread_name_prefix="pictures")
