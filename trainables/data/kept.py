"""Arrays that are made once and mapped from a file: all trials of a machine share one copy.

An array is a folder of its own name that holds `STEM.npy` and `STEM.json` with its checksum. It is
made under a lock, in a folder of another name, and renamed when it is whole: a reader sees all of
it or nothing, and what a killed maker leaves behind is cleared away by the next.
"""

import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock

from trainables.cache import cache_folder

logger = logging.getLogger(__name__)

CHUNK_BYTES = 2**24


@dataclass(frozen=True)
class Kept:
    """An array in a file.

    Attributes:
        folder: holds all arrays of a kind.
        name: of this one; names everything that its content depends on.
        stem: of the files in it.
    """

    folder: Path
    name: str
    stem: str = "array"

    def get(self, write: Callable[[Path], Mapping[str, Any]]) -> np.ndarray:
        """The array, made first where it is not there or damaged; in memory it is copy on write.

        Args:
            write: writes the `.npy` file of the path given, and says what to note beside it.

        Raises:
            OSError: the folder cannot be written.
        """
        found = self._opened()
        if found is not None:
            return found
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{self.name}.lock"):
            found = self._opened()  # another process may have made it meanwhile
            if found is None:
                self._make(write)
                found = self._opened()
        if found is None:
            raise OSError(f"{self.folder / self.name}: what was just written does not read back")
        return found

    def _opened(self) -> np.ndarray | None:
        """None where there is none or it is damaged."""
        place = self.folder / self.name
        path = place / f"{self.stem}.npy"
        try:
            description = json.loads((place / f"{self.stem}.json").read_text())
            # copy on write: torch wants memory that could be written to
            found: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
            if _checksum(path) == description["crc32"]:
                return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            logger.warning("%s: damaged (%s); it is made again", place, error)
            return None
        logger.warning("%s: the checksum does not match; it is made again", place)
        return None

    def _make(self, write: Callable[[Path], Mapping[str, Any]]) -> None:
        place = self.folder / self.name
        for left in self.folder.glob(f".{self.name}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        making = Path(tempfile.mkdtemp(prefix=f".{self.name}.", suffix=".tmp", dir=self.folder))
        try:
            path = making / f"{self.stem}.npy"
            noted = write(path)
            with (making / f"{self.stem}.json").open("w") as file:
                file.write(json.dumps({"crc32": _checksum(path), **noted}))
                flush(file)
            if place.exists():  # damaged, or it would have been opened
                place.replace(making / "damaged")
            making.chmod(0o755)  # mkdtemp's own is for one user only
            making.replace(place)
            shutil.rmtree(place / "damaged", ignore_errors=True)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise


def shared_array(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array of the user's cache; where that cannot be written, one of this process's own.

    Args:
        name: names everything that its content depends on, the version of its maker too.
        make: computes it.
    """
    made: list[np.ndarray] = []

    def write(path: Path) -> dict[str, Any]:
        made.append(make())
        with path.open("wb") as file:
            np.lib.format.write_array(file, np.ascontiguousarray(made[0]), allow_pickle=False)
            flush(file)
        return {}

    try:
        return Kept(cache_folder() / "data", name).get(write)
    except OSError as error:
        logger.warning("%s; every trial has its own copy of the data", error)
        return made[0] if made else make()


def flush(file: IO[Any]) -> None:
    """Have a file's bytes on the disk."""
    file.flush()
    os.fsync(file.fileno())


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc
