"""Data cards: what each data set is, how it is split and where to get it.

Importable without torch. Nothing but predictions uses the numbers of samples: a subset in the same
layout works like the full set.
"""

from dataclasses import dataclass
from pathlib import Path

PICTURE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
_MOST_COUNTED = 20  # folders; the others are taken to hold as many


@dataclass(frozen=True)
class Archive:
    """One file to download.

    Attributes:
        file: its name.
        md5: its checksum as the publisher gives it.
        url: where it is, or None where a person has to fetch it.
    """

    file: str
    md5: str
    url: str | None = None


@dataclass(frozen=True)
class DataCard:
    """What a data set is.

    Attributes:
        name: as in `data.name`.
        title: as in the literature.
        classes: number of classes.
        sample_shape: `(C, H, W)` as published; an event data set gives T such frames.
        is_event: whether samples are recordings of an event camera, as ON and OFF counts.
        split_rule: which samples test.
        train_samples: samples that are trained and validated on; all where nothing is official.
        test_samples: samples of the official test part; 0 where the test part is drawn.
        size_mib: roughly, the disk space of the unpacked set; 0 where it is embedded.
        licence: the publisher's terms.
        source: page of the publisher.
        folder: the set's folder below `data.root`.
        layout: path in that folder by which the set is recognised; empty where it is embedded.
        archives: what to download.
        mean: of each channel, of pixels in [0, 1]; empty for event counts.
        std: likewise.
        note: what a person must know.
        is_sequence: whether column w of an image is the frame of timestep w.
    """

    name: str
    title: str
    classes: int
    sample_shape: tuple[int, int, int]
    is_event: bool
    split_rule: str
    train_samples: int
    test_samples: int
    size_mib: int
    licence: str
    source: str
    folder: str = ""
    layout: str = ""
    archives: tuple[Archive, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    note: str = ""
    is_sequence: bool = False

    @property
    def is_embedded(self) -> bool:
        """Whether the data come with the installation."""
        return not self.layout

    @property
    def can_download(self) -> bool:
        """Whether every archive has a public address."""
        return bool(self.archives) and all(archive.url for archive in self.archives)

    @property
    def how_to_get(self) -> str:
        """What to do to have the data, in a sentence or two."""
        if self.is_embedded:
            return "nothing to do: embedded"
        if self.can_download:
            return f"run `spiketune data prepare {self.name} --root DIR` to download it"
        if not self.archives:
            return self.note
        files = " and ".join(archive.file for archive in self.archives)
        return (
            f"download {files} from {self.source} into DIR/{self.folder}/download, "
            f"then run `spiketune data prepare {self.name} --root DIR`"
        )


_DRAWN = "stratified by class with data.split_seed: data.test_frac tests, data.val_frac validates"
_OFFICIAL = "official test part; data.val_frac of the rest validates, stratified, data.split_seed"
_NINETY = (
    "last 10 % of each class in file order test; data.val_frac of the rest validates, stratified"
)
_CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_CIFAR_TERMS = "none stated; cite Krizhevsky 2009"
_CIFAR10_STATS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CIFAR100_STATS = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_CIFAR10_ARCHIVE = Archive(
    "cifar-10-python.tar.gz",
    "c58f30108f718f92721af3b95e74349a",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
_CIFAR100_ARCHIVE = Archive(
    "cifar-100-python.tar.gz",
    "eb9058c3a382ffc7106e4002c42a8d85",
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
)
_FIGSHARE = "https://ndownloader.figshare.com/files"
_CIFAR10_DVS_ARCHIVES = tuple(
    Archive(f"{name}.zip", md5, f"{_FIGSHARE}/{number}")
    for name, number, md5 in (
        ("airplane", 7712788, "0afd5c4bf9ae06af762a77b180354fdd"),
        ("automobile", 7712791, "8438dfeba3bc970c94962d995b1b9bdd"),
        ("bird", 7712794, "a9c207c91c55b9dc2002dc21c684d785"),
        ("cat", 7712812, "52c63c677c2b15fa5146a8daf4d56687"),
        ("deer", 7712815, "b6bf21f6c04d21ba4e23fc3e36c8a4a3"),
        ("dog", 7712818, "f379ebdf6703d16e0a690782e62639c3"),
        ("frog", 7712842, "cad6ed91214b1c7388a5f6ee56d08803"),
        ("horse", 7712851, "e7cbbf77bec584ffbf913f00e682782a"),
        ("ship", 7712836, "41c7bd7d6b251be82557c6cce9a7d5c9"),
        ("truck", 7712839, "89f3922fd147d9aeff89e76a2b0b70a7"),
    )
)


def _cifar(name: str, title: str, classes: int, *, is_sequence: bool = False) -> DataCard:
    mean, std = _CIFAR10_STATS if classes == 10 else _CIFAR100_STATS
    return DataCard(
        name=name,
        title=title,
        classes=classes,
        sample_shape=(3, 32, 32),
        is_event=False,
        split_rule=_OFFICIAL,
        train_samples=50_000,
        test_samples=10_000,
        size_mib=178,
        licence=_CIFAR_TERMS,
        source=_CIFAR_PAGE,
        folder=f"cifar{classes}",
        layout="cifar-10-batches-py" if classes == 10 else "cifar-100-python",
        archives=(_CIFAR10_ARCHIVE if classes == 10 else _CIFAR100_ARCHIVE,),
        mean=mean,
        std=std,
        note=_COLUMNS if is_sequence else "",
        is_sequence=is_sequence,
    )


_COLUMNS = "column w of the image is the frame of timestep w: model.timesteps = model.image_size"

_CARDS = (
    DataCard(
        name="digits",
        title="UCI handwritten digits (scikit-learn)",
        classes=10,
        sample_shape=(1, 8, 8),
        is_event=False,
        split_rule=_DRAWN,
        train_samples=1_797,
        test_samples=0,
        size_mib=0,
        licence="CC BY 4.0",
        source="https://archive.ics.uci.edu/dataset/80",
        mean=(0.305,),
        std=(0.376,),
    ),
    DataCard(
        name="digits_dvs",
        title="UCI handwritten digits seen by a simulated event camera",
        classes=10,
        sample_shape=(2, 8, 8),
        is_event=True,
        split_rule=_DRAWN,
        train_samples=1_797,
        test_samples=0,
        size_mib=0,
        licence="CC BY 4.0",
        source="https://archive.ics.uci.edu/dataset/80",
        note="made on loading: three saccades over each digit, drawn at model.image_size",
    ),
    _cifar("cifar10", "CIFAR-10", 10),
    _cifar("cifar100", "CIFAR-100", 100),
    _cifar("seq_cifar10", "sequential CIFAR-10", 10, is_sequence=True),
    _cifar("seq_cifar100", "sequential CIFAR-100", 100, is_sequence=True),
    DataCard(
        name="imagenet",
        title="ImageNet-1k, or any set of images in class folders",
        classes=1_000,
        sample_shape=(3, 224, 224),
        is_event=False,
        split_rule=_OFFICIAL.replace("official test part", "folder val tests"),
        train_samples=1_281_167,
        test_samples=50_000,
        size_mib=148_000,
        licence="non-commercial research, after registration",
        source="https://www.image-net.org/download.php",
        folder="imagenet",
        layout="train",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        note=(
            "register at https://www.image-net.org/download.php, download ILSVRC2012_img_train.tar "
            "and ILSVRC2012_img_val.tar, and unpack them as DIR/imagenet/train/CLASS/*.JPEG and "
            "DIR/imagenet/val/CLASS/*.JPEG"
        ),
    ),
    DataCard(
        name="cifar10_dvs",
        title="CIFAR10-DVS",
        classes=10,
        sample_shape=(2, 128, 128),
        is_event=True,
        split_rule=_NINETY,
        train_samples=9_000,
        test_samples=1_000,
        size_mib=16_000,
        licence="CC BY 4.0",
        source="https://figshare.com/articles/dataset/4724671",
        folder="cifar10_dvs",
        layout="extract",
        archives=_CIFAR10_DVS_ARCHIVES,
        note="frames are resized bilinearly to model.image_size, without antialiasing",
    ),
    DataCard(
        name="ncaltech101",
        title="N-Caltech101",
        classes=101,
        sample_shape=(2, 180, 240),
        is_event=True,
        split_rule=_NINETY,
        train_samples=7_838,
        test_samples=871,
        size_mib=4_300,
        licence="CC BY-SA 4.0 (check the publisher's page)",
        source="https://www.garrickorchard.com/datasets/n-caltech101",
        folder="ncaltech101",
        layout="extract/Caltech101",
        archives=(Archive("Caltech101.zip", "66201824eabb0239c7ab992480b50ba3"),),
        note="frames are resized to model.image_size by the nearest pixel",
    ),
    DataCard(
        name="dvs_gesture",
        title="DVS128 Gesture",
        classes=11,
        sample_shape=(2, 128, 128),
        is_event=True,
        split_rule=_OFFICIAL.replace("official test part", "trials_to_test.txt tests"),
        train_samples=1_176,
        test_samples=288,
        size_mib=5_600,
        licence="CC BY 4.0",
        source="https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8/folder/50167556794",
        folder="dvs_gesture",
        layout="extract/DvsGesture",
        archives=(Archive("DvsGesture.tar.gz", "8a5c71fb11e24e5ca5b11866ca6c00a1"),),
        note="class k of the labels files is index k - 1, in the order of numbers",
    ),
    DataCard(
        name="nmnist",
        title="N-MNIST",
        classes=10,
        sample_shape=(2, 34, 34),
        is_event=True,
        split_rule=_OFFICIAL,
        train_samples=60_000,
        test_samples=10_000,
        size_mib=1_400,
        licence="CC BY-SA 4.0 (check the publisher's page)",
        source="https://www.garrickorchard.com/datasets/n-mnist",
        folder="nmnist",
        layout="extract/Train",
        archives=(
            Archive("Train.zip", "20959b8e626244a1b502305a9e6e2031"),
            Archive("Test.zip", "69ca8762b2fe404d9b9bad1103e97832"),
        ),
    ),
)

CARDS: dict[str, DataCard] = {card.name: card for card in _CARDS}


def count_pictures(folder: Path) -> int:
    """About how many pictures lie in a folder of classes: exact for few classes."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    counted = classes[:: max(1, len(classes) // _MOST_COUNTED)]
    found = sum(
        file.suffix.lower() in PICTURE_SUFFIXES for path in counted for file in path.iterdir()
    )
    return round(found * len(classes) / len(counted)) if counted else 0
