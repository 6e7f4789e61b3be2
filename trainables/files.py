"""Writing files so that a reader never sees half of one, and what checkpoints are called."""

import os
from pathlib import Path

SUFFIX = ".safetensors"
BEST = f"best{SUFFIX}"


def epoch_path(folder: Path, epoch: int) -> Path:
    """File of an epoch's checkpoint."""
    return folder / f"epoch-{epoch:04d}{SUFFIX}"


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name beside `path`, flush to the disk, then rename over it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
