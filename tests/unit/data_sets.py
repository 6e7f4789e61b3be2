"""Small data sets in the publishers' own containers: real ones where they lie beside the project.

Everything is below a folder of the test's own: real recordings are linked, the rest is written.
"""

import pickle
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainables.cifar_files import read_batch
from trainables.config import DataConfig, DatasetName, ModelConfig

SHARED = Path(__file__).parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Case:
    """A data set, a network's shape that fits it, and the file of it to damage."""

    name: DatasetName
    model: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    link: tuple[str, str] | None = None  # (folder below SHARED, folder below the root)
    sample: str = ""

    def data_config(self, root: Path, **changes: Any) -> DataConfig:
        return DataConfig.model_validate(
            {"name": self.name, "root": str(root), "val_frac": 0.2} | self.data | changes
        )

    @property
    def model_config(self) -> ModelConfig:
        return ModelConfig(attention="sdt", width=16, **self.model)

    def lay_out(self, root: Path) -> Path:
        """Put the data below `root`; skip where real ones are absent."""
        if self.link is not None:
            target = root / self.link[1]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(self.real_data())
        elif self.name in WRITERS:
            WRITERS[self.name](root)
        return root

    def lay_out_few(self, root: Path) -> Path:
        """As `lay_out`, but of large sets only some samples of some classes."""
        if self.name in SHORTENERS and self.link is not None:
            SHORTENERS[self.name](self.real_data(), root / self.link[1])
            return root
        return self.lay_out(root)

    def real_data(self) -> Path:
        """Where the real data lie; skip where they are absent."""
        source = SHARED / (self.link[0] if self.link else "")
        if not source.exists():
            pytest.skip(f"{source} is absent: it holds real data that are not shipped")
        return source


EVENTS = {"event_data": True, "in_channels": 2}
RAND = {"randaugment": "rand-m9-n2-mstd0.5-inc1", "hflip": 0.5}
CASES = [
    Case("digits", {"image_size": 16, "in_channels": 1}, {"shift_px": 1}),
    Case("digits_dvs", {"image_size": 16, "timesteps": 4, **EVENTS}, {"dvs_augment": "snda"}),
    Case(
        "cifar10",
        {},
        {**RAND, "shift_px": 2},
        ("cifar10_5k", "cifar10"),
        "cifar-10-batches-py/data_batch_3",
    ),
    Case("cifar100", {"num_classes": 100}, RAND, sample="cifar-100-python/train"),
    Case(
        "seq_cifar10",
        {"timesteps": 32},
        RAND,
        ("cifar10_5k", "cifar10"),
        "cifar-10-batches-py/test_batch",
    ),
    Case(
        "seq_cifar100",
        {"num_classes": 100, "image_size": 16, "timesteps": 16},
        sample="cifar-100-python/test",
    ),
    Case(
        "imagenet",
        {"image_size": 48, "num_classes": 20},
        {**RAND, "crop_scale": 0.2, "crop_pct": 0.95, "eval_size": 56},
        ("tiny_imagenet_20c", "imagenet"),
        "train",
    ),
    Case(
        "cifar10_dvs",
        {"image_size": 64, "timesteps": 5, **EVENTS},
        {"dvs_augment": "cutout", "hflip": 0.5},
        ("cifar10dvs_standin/extract", "cifar10_dvs/extract"),
        "extract/cat/cifar10_cat_3.aedat",
    ),
    Case(
        "ncaltech101",
        {"image_size": 32, "timesteps": 4, **EVENTS},
        {"dvs_augment": "snda"},
        ("ncaltech101_standin/extract", "ncaltech101/extract"),
        "extract/Caltech101/ant",
    ),
    Case(
        "dvs_gesture",
        {"image_size": 128, "timesteps": 3, "num_classes": 11, **EVENTS},
        {"dvs_augment": "trivial"},
        sample="extract/DvsGesture/user01_led.aedat",
    ),
    Case(
        "nmnist",
        {"image_size": 34, "timesteps": 4, **EVENTS},
        {"dvs_augment": "snda", "shift_px": 1},
        ("nmnist/extract", "nmnist/extract"),
        "extract/Train/3",
    ),
]


def write_cifar100(root: Path) -> None:
    folder = root / "cifar100" / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 500), ("test", 100)):
        tree = {
            b"fine_labels": [i % 100 for i in range(count)],
            b"coarse_labels": [0] * count,
            b"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
        }
        (folder / name).write_bytes(pickle.dumps(tree, protocol=2))


def write_gesture(root: Path) -> None:
    """Six recordings of eleven gestures each, five of them for training."""
    folder = root / "dvs_gesture" / "extract" / "DvsGesture"
    folder.mkdir(parents=True)
    lists = {"train": [f"user0{i}_led.aedat" for i in range(1, 6)], "test": ["user24_led.aedat"]}
    for part, names in lists.items():
        (folder / f"trials_to_{part}.txt").write_text("\n".join(names) + "\n\n")
        for number, name in enumerate(names):
            write_aedat3(folder / name, seed=number + 10 * (part == "test"))
            rows = [f"{k + 1},{1000 * k},{1000 * (k + 1)}" for k in range(11)]
            text = "class,startTime_usec,endTime_usec\n" + "\n".join(rows) + "\n"
            (folder / f"{Path(name).stem}_labels.csv").write_text(text)


def write_aedat3(path: Path, seed: int, num_events: int = 3300) -> None:
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, 11_000, num_events)).astype(np.uint32)
    x, y = rng.integers(0, 128, (2, num_events), dtype=np.uint32)
    on = rng.integers(0, 2, num_events, dtype=np.uint32)
    words = np.stack([x << 17 | y << 2 | on << 1 | 1, times], axis=1).astype("<u4")
    with path.open("wb") as file:
        file.write(b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n")
        for kind, chunk in ((1, words[:1000]), (0, words[:2]), (1, words[1000:])):
            count = len(chunk)
            file.write(struct.pack("<HHIIIIII", kind, 1, 8, 4, 0, count, count, count))
            file.write(chunk.tobytes())


def write_pictures(folder: Path, classes: int = 3, each: int = 6) -> None:
    rng = np.random.default_rng(1)
    for part, count in (("train", each), ("val", 2)):
        for label in range(classes):
            target = folder / part / f"n{label}"
            target.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(target / f"{number}.JPEG")


def shorten_cifar10(source: Path, target: Path, each: int = 64) -> None:
    """The first images of each batch file."""
    folder = "cifar-10-batches-py"
    (target / folder).mkdir(parents=True)
    for path in (source / folder).glob("*_batch*"):
        images, labels = read_batch(path, "labels")
        rows = images[:each].transpose(0, 3, 1, 2).reshape(each, -1)
        tree = {b"data": np.ascontiguousarray(rows), b"labels": labels[:each].tolist()}
        (target / folder / path.name).write_bytes(pickle.dumps(tree, protocol=2))


def shorten_pictures(source: Path, target: Path, classes: int = 3) -> None:
    """The first classes."""
    for part in ("train", "val"):
        (target / part).mkdir(parents=True)
        for folder in sorted((source / part).iterdir())[:classes]:
            (target / part / folder.name).symlink_to(folder)


SHORTENERS = {
    "cifar10": shorten_cifar10,
    "seq_cifar10": shorten_cifar10,
    "imagenet": shorten_pictures,
}

WRITERS = {
    "cifar100": write_cifar100,
    "seq_cifar100": write_cifar100,
    "dvs_gesture": write_gesture,
}
