"""Fetches, verifies and unpacks a data set's archives; safe to kill and to run twice at once."""

import hashlib
import http.client
import logging
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from trainables.data_cards import Archive, DataCard
from trainables.errors import InputError, SpiketuneError

logger = logging.getLogger(__name__)

CHUNK_BYTES = 2**20
TIMEOUT_S = 60

# Called with the file's name, bytes so far and bytes in all (0 where the server does not say).
ByteProgress = Callable[[str, int, int], None]


def fetch_and_unpack(card: DataCard, root: Path, progress: ByteProgress | None = None) -> Path:
    """Make sure that a data set lies unpacked in its folder, and return that folder.

    Archives that a person put into `download/` are used; others are fetched where a public address
    allows.

    Raises:
        InputError: an archive has to be fetched by a person, or one that lies there is damaged.
        SpiketuneError: a download failed.
    """
    base = root / card.folder
    for found in (base, root):
        if (found / card.layout).is_dir():
            return found
    if not card.archives:
        raise InputError(f"{base / card.layout}: {card.title} must be there; {card.how_to_get}")
    folder = base / "download"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(base / ".prepare.lock"):
        if not (base / card.layout).is_dir():  # another process may have unpacked it meanwhile
            paths = [_archive(card, archive, folder, progress) for archive in card.archives]
            _unpack(card, base, paths)
    return base


def _archive(card: DataCard, archive: Archive, folder: Path, progress: ByteProgress | None) -> Path:
    path = folder / archive.file
    if path.is_file():
        if (found := _md5(path)) != archive.md5:
            raise InputError(
                f"{path}: the MD5 checksum must be {archive.md5}, but is {found}; delete the file "
                "and fetch it again"
            )
        return path
    if archive.url is None:
        raise InputError(f"{path}: must be fetched by hand; {card.how_to_get}")
    partial = path.with_name(f".{path.name}.part")
    _download(archive.url, partial, archive.file, progress)
    if (found := _md5(partial)) != archive.md5:
        partial.unlink()
        raise SpiketuneError(
            f"{archive.url}: the MD5 checksum must be {archive.md5}, but what arrived has {found}; "
            "run the command again"
        )
    partial.replace(path)
    return path


def _download(url: str, path: Path, label: str, progress: ByteProgress | None) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, path.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            done = 0
            while chunk := answer.read(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(label, done, total)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise SpiketuneError(
            f"{url}: could not be downloaded ({reason}); run the command again, or fetch the file "
            f"by hand and put it at {path.with_name(label)}"
        ) from error


def _unpack(card: DataCard, base: Path, archives: list[Path]) -> None:
    for left in base.glob(".unpack.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=".unpack.", suffix=".tmp", dir=base))
    try:
        for path in archives:
            logger.info("unpacking %s", path)
            _extract(path, making)
        top, _, inner = card.layout.partition("/")
        # Event sets are read from `extract/`; an image archive holds the folder itself.
        source = making if top == "extract" else making / top
        if not (source / inner).is_dir():
            raise InputError(f"{archives[0]}: must hold {card.layout}, but does not")
        source.chmod(0o755)  # mkdtemp's own is for one user only
        source.replace(base / top)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _extract(path: Path, folder: Path) -> None:
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
        else:
            with tarfile.open(path) as tar:
                tar.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise InputError(f"{path}: not a readable archive ({error}); fetch it again") from error


def _md5(path: Path) -> str:
    # The publishers' checksums are MD5: against accidents, not against attackers.
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
