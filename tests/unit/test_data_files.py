import hashlib
import io
import os
import pickle
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainables.cifar_files import read_batch
from trainables.data.download import fetch_and_unpack
from trainables.data.event_files import read_aedat3
from trainables.data_cards import CARDS, Archive
from trainables.errors import InputError, SpiketuneError


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch broken-into",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_batch_reads_back_whatever_the_protocol(protocol: int, tmp_path: Path) -> None:
    rows = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({b"data": rows, b"labels": [3, 1]}, protocol=protocol))
    images, labels = read_batch(path, "labels")
    assert images.shape == (2, 32, 32, 3)
    assert np.array_equal(images[1, 0, :, 0], rows[1, :32])
    assert labels.tolist() == [3, 1]


@pytest.mark.parametrize("content", [Malicious(), {"data": Malicious()}, [1], b"", {"data": 1}])
def test_batch_of_anything_else_is_refused(
    content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="batch"):
        read_batch(path, "labels")
    assert not (tmp_path / "broken-into").exists()


def test_array_of_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": np.array([Malicious()]), "labels": [0]}))
    with pytest.raises(InputError, match="not a readable CIFAR batch"):
        read_batch(path, "labels")


def served(tmp_path: Path, file: str, content: bytes) -> Archive:
    path = tmp_path / "public" / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return Archive(file, hashlib.md5(content).hexdigest(), path.as_uri())


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, b"12345678")
    return out.getvalue()


def test_archives_are_fetched_verified_and_unpacked(tmp_path: Path) -> None:
    archives = tuple(
        served(tmp_path, f"{name}.zip", zipped(f"{name}/{name}_0.aedat")) for name in ("cat", "dog")
    )
    card = replace(CARDS["cifar10_dvs"], archives=archives)
    seen: list[tuple[str, int, int]] = []
    base = fetch_and_unpack(card, tmp_path / "root", lambda *step: seen.append(step))
    assert (base / "extract" / "cat" / "cat_0.aedat").read_bytes() == b"12345678"
    assert (base / "extract" / "dog" / "dog_0.aedat").is_file()
    assert {file for file, *_ in seen} == {"cat.zip", "dog.zip"}
    assert fetch_and_unpack(card, tmp_path / "root") == base


def test_image_archive_unpacks_to_its_own_folder(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo("cifar-100-python/train")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    archive = served(tmp_path, "cifar-100-python.tar.gz", out.getvalue())
    card = replace(CARDS["cifar100"], archives=(archive,))
    base = fetch_and_unpack(card, tmp_path / "root")
    assert (base / "cifar-100-python" / "train").read_bytes() == b"abc"
    assert not list(base.glob(".unpack*"))


def test_wrong_checksum_is_not_kept(tmp_path: Path) -> None:
    archive = replace(served(tmp_path, "cat.zip", zipped("cat/cat_0.aedat")), md5="0" * 32)
    card = replace(CARDS["cifar10_dvs"], archives=(archive,))
    with pytest.raises(SpiketuneError, match="MD5"):
        fetch_and_unpack(card, tmp_path / "root")
    assert not list((tmp_path / "root" / "cifar10_dvs" / "download").iterdir())


def test_archive_to_fetch_by_hand_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        fetch_and_unpack(CARDS["dvs_gesture"], tmp_path)
    text = str(error.value)
    assert str(tmp_path / "dvs_gesture" / "download" / "DvsGesture.tar.gz") in text
    assert "https://ibm.ent.box.com" in text


def test_failed_download_names_the_address(tmp_path: Path) -> None:
    archive = Archive("cat.zip", "0" * 32, (tmp_path / "absent.zip").as_uri())
    card = replace(CARDS["cifar10_dvs"], archives=(archive,))
    with pytest.raises(SpiketuneError, match=r"absent\.zip: could not be downloaded"):
        fetch_and_unpack(card, tmp_path / "root")


def test_archive_cannot_write_outside(tmp_path: Path) -> None:
    archive = served(tmp_path, "cat.zip", zipped("../../evil", "cat/cat_0.aedat"))
    card = replace(CARDS["cifar10_dvs"], archives=(archive,))
    fetch_and_unpack(card, tmp_path / "root")
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "root" / "evil").exists()


def test_aedat3_without_header_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.aedat"
    path.write_bytes(b"#!AER-DAT3.1\r\nnothing")
    with pytest.raises(InputError, match="end of header"):
        read_aedat3(path)
