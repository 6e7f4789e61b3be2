"""A disk of a few MiB that fills up, empties and turns read-only on demand."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BLOCK = 4096
BALLAST = "ballast"


class SmallDisk:
    """A tmpfs that is mounted; root only.

    Args:
        path: where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def free_bytes(self) -> int:
        stat = os.statvfs(self.path)
        return stat.f_bavail * stat.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Fill it but for some blocks."""
        target = max(0, self.free_bytes // BLOCK - leave)
        with (self.path / BALLAST).open("ab", buffering=0) as file, suppress(OSError):
            for _ in range(target):
                file.write(bytes(BLOCK))

    def empty(self) -> None:
        (self.path / BALLAST).unlink(missing_ok=True)

    def turn(self, way: str) -> None:
        """`ro` or `rw`."""
        subprocess.run(["mount", "-o", f"remount,{way}", str(self.path)], check=True)


@contextmanager
def mounted(path: Path, mebibytes: int) -> Iterator[SmallDisk | None]:
    """A small disk; None where mounting is not permitted."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "spiketune", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        yield None
        return
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
