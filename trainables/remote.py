"""Checkpoints in a store that all machines reach: an object store, HDFS, or a path they all see.

A trial trains in a folder of its machine and copies each epoch's checkpoint before that is
reported. An object appears as a whole or not at all; elsewhere files get their name last.
Addresses and credentials come from the environment, as Ray's own storage paths do.
"""

import fcntl
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trainables.errors import CheckpointError, StoreError
from trainables.files import BEST, SUFFIX, epoch_path

if TYPE_CHECKING:
    from trainables.config import TrialConfig
    from trainables.parallel import World

T = TypeVar("T")

logger = logging.getLogger(__name__)

PATIENCE_VARIABLE = "SPIKETUNE_STORE_PATIENCE_S"
PATIENCE_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0
CHUNK_BYTES = 32 * 2**20
# Where an upload that breaks off leaves nothing; what is moved there is copied.
OBJECT_STORES = ("s3", "gcs")
HELD = ".held"


class StoredFolder:
    """A folder of files in a store.

    Args:
        url: of the store: `s3://…`, `gs://…`, `hdfs://…`, `file:///…` or an absolute path.
        path: of the folder below it.
        patience_s: how long to go on trying while the store fails, 0 for one attempt; a minute, or
            SPIKETUNE_STORE_PATIENCE_S, unless given.
    """

    def __init__(self, url: str, path: str = "", patience_s: float | None = None) -> None:
        usual_s = float(os.environ.get(PATIENCE_VARIABLE, PATIENCE_S))
        self.url = url
        self.path = path
        self.patience_s = usual_s if patience_s is None else patience_s

    def __str__(self) -> str:
        """The folder's URL, without the store's options."""
        return "/".join(filter(None, [self.url.partition("?")[0].rstrip("/"), self.path]))

    def below(self, name: str) -> "StoredFolder":
        """A folder in this one."""
        path = "/".join(filter(None, [self.path, name]))
        return StoredFolder(self.url, path, self.patience_s)

    @property
    def address(self) -> dict[str, str]:
        """What makes this folder elsewhere."""
        return {"url": self.url, "path": self.path}

    def names(self) -> list[str]:
        """What lies in the folder; nothing where there is none."""
        from pyarrow.fs import FileSelector

        def listed() -> list[str]:
            selector = FileSelector(self.place, allow_not_found=True)
            return [info.base_name for info in self.system.get_file_info(selector)]

        return self._persist(listed)

    def put(self, file: Path) -> None:
        """Copy a file into the folder, under its own name.

        Raises:
            StoreError: the store fails for longer than the patience.
        """
        self._persist(lambda: self._put(file))

    def get(self, name: str, target: Path) -> None:
        """Copy a file out of the folder, unless the target is that copy already.

        Raises:
            FileNotFoundError: there is no such file.
            StoreError: the store fails for longer than the patience.
        """
        self._persist(lambda: self._get(f"{self.place}/{name}", target))

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with suppress(FileNotFoundError):
            self._persist(lambda: self.system.delete_file(f"{self.place}/{name}"))

    def clear(self) -> None:
        """Delete the folder with all that is in it, if it is there."""
        with suppress(FileNotFoundError):
            self._persist(lambda: self.system.delete_dir(self.place))

    def probe(self) -> None:
        """Find out whether files can be written, read and deleted here.

        Raises:
            StoreError: they cannot.
        """
        with tempfile.TemporaryDirectory() as scratch:
            probe = Path(scratch) / f"spiketune-probe-{socket.gethostname()}-{os.getpid()}"
            probe.write_bytes(b"probe")
            copy = probe.with_suffix(".copy")
            self.put(probe)
            try:
                self.get(probe.name, copy)
            except FileNotFoundError as error:
                raise StoreError(f"{self} must give back what it takes, but: {error}") from error
            finally:
                self.remove(probe.name)

    @cached_property
    def _found(self) -> tuple[Any, str]:
        from pyarrow.fs import FileSystem

        url = self.url
        if url.startswith("gs://") and "retry_limit_seconds=" not in url:
            # Its client would go on for a quarter of an hour by itself.
            url += f"{'&' if '?' in url else '?'}retry_limit_seconds={max(5.0, self.patience_s):g}"
        system, root = FileSystem.from_uri(url)
        return system, root.rstrip("/")

    @property
    def system(self) -> Any:
        """The store as pyarrow's file system."""
        return self._found[0]

    @property
    def place(self) -> str:
        """The folder's path in `system`."""
        return "/".join(filter(None, [self._found[1], self.path]))

    @property
    def _is_object_store(self) -> bool:
        return self.system.type_name in OBJECT_STORES

    def _put(self, file: Path) -> None:
        is_object = self._is_object_store
        target = f"{self.place}/{file.name}"
        written = target if is_object else f"{self.place}/.{file.name}.{os.getpid()}.tmp"
        if not is_object:
            self.system.create_dir(self.place, recursive=True)
        with file.open("rb") as source, self.system.open_output_stream(written) as stream:
            shutil.copyfileobj(source, stream, CHUNK_BYTES)
        if not is_object:
            self.system.move(written, target)

    def _check_root(self) -> None:
        from pyarrow.fs import FileType

        # Where a share is not mounted nothing seems to be missing, and what is written stays here.
        root = self._found[1]
        if self.system.get_file_info(root).type != FileType.Directory:
            raise OSError(f"{root} must be a folder that is there on every machine")

    def _get(self, source: str, target: Path) -> None:
        info = self.system.get_file_info(source)
        if not info.is_file:
            raise FileNotFoundError(f"{self}/{info.base_name}: no such file")
        if target.is_file():
            stat = target.stat()
            if (stat.st_size, stat.st_mtime_ns) == (info.size, info.mtime_ns):
                return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with self.system.open_input_stream(source) as stream, partial.open("wb") as file:
                shutil.copyfileobj(stream, file, CHUNK_BYTES)
            if info.mtime_ns is not None:
                os.utime(partial, ns=(info.mtime_ns, info.mtime_ns))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _persist(self, action: Callable[[], T]) -> T:
        """Do something again, with growing pauses, until the store lets it be done."""
        deadline, pause_s = time.monotonic() + self.patience_s, FIRST_PAUSE_S
        while True:
            try:
                if not self._is_object_store:
                    self._check_root()
                return action()
            except FileNotFoundError:
                raise
            except (OSError, ValueError, NotImplementedError) as error:
                reason = str(error).strip().partition("\n")[0]
                # An option or a kind of store that pyarrow does not know is no outage.
                is_outage = isinstance(error, OSError)
                if not is_outage or time.monotonic() + pause_s > deadline:
                    raise StoreError(f"{self} must be usable, but: {reason}") from error
            logger.warning("%s: %s; again in %g s", self, reason, pause_s)
            time.sleep(pause_s)
            pause_s = min(2.0 * pause_s, LONGEST_PAUSE_S)


class Workspace:
    """A trial's folder on this machine, as a copy of the one in the store.

    Args:
        store: the trial's folder in the store.
        folder: the one here, empty.
    """

    def __init__(self, store: StoredFolder, folder: Path) -> None:
        self.folder = folder
        self._store = store
        self._there: set[str] = set()
        self._copied: dict[str, tuple[int, int]] = {}

    def fetch(self, newest: int, *, is_owner: bool = True) -> None:
        """Bring the newest checkpoint that verifies, and the best one.

        Args:
            newest: the last epoch that may be continued; files of later ones are of epochs that
                the ledger has lost, or of another trial.
            is_owner: whether to delete those; only one of a trial's processes may.
        """
        names = set(self._store.names())
        last = epoch_path(self.folder, newest).name
        dropped = {name for name in names if _is_epoch(name) and name > last}
        if dropped or not newest:
            dropped |= names & {BEST}
        for name in dropped if is_owner else ():
            self._store.remove(name)
        self._there = names - dropped
        for name in sorted(filter(_is_epoch, self._there), reverse=True):
            if self._fetch(name) and self._verifies(name):
                break
        if is_owner and BEST in self._there:
            self._fetch(BEST)

    def publish(self) -> None:
        """Copy what is new into the store, then delete there what is gone here.

        The best one goes first: were the worker lost between the two, the epoch would be done again
        and not be better than it.
        """
        here = {path.name: _stamp(path) for path in self.folder.glob(f"*{SUFFIX}")}
        new = [name for name in sorted(here) if self._copied.get(name) != here[name]]
        for name in new:
            self._store.put(self.folder / name)
            self._copied[name] = here[name]
            self._there.add(name)
        for name in sorted(self._there - here.keys()) if new else ():
            self._store.remove(name)
            self._there.discard(name)

    def _fetch(self, name: str) -> bool:
        try:
            self._store.get(name, self.folder / name)
        except FileNotFoundError:
            return False
        self._copied[name] = _stamp(self.folder / name)
        return True

    def _verifies(self, name: str) -> bool:
        from trainables import checkpoint as checkpoints

        try:
            checkpoints.load(self.folder / name)
        except CheckpointError as error:
            logger.warning("%s: %s; the epoch before is tried", self._store, error)
            (self.folder / name).unlink()
            del self._copied[name]
            return False
        return True


def train_stored(
    config: "TrialConfig", store: StoredFolder, newest: int, world: "World"
) -> Generator[dict[str, Any], None, None]:
    """Train as `train_alone` does, with the checkpoints in a store.

    Args:
        config: the network and how it is trained.
        store: the trial's folder.
        newest: the last epoch that may be continued.
        world: the processes that train it; rank 0 writes the checkpoints.

    Yields:
        What `train_alone` does, each epoch after it is in the store.

    Raises:
        StoreError: the store fails for long.
    """
    from trainables.launch import train_alone

    with working_folder() as folder:
        workspace = Workspace(store, folder)
        workspace.fetch(newest, is_owner=world.rank == 0)
        for epoch in train_alone(config, folder, world):
            if world.rank == 0:
                workspace.publish()
            if not epoch["done"]:
                yield epoch
    yield epoch  # a worker may wait for long before it is given another trial


@contextmanager
def working_folder() -> Iterator[Path]:
    """A folder on this machine that is gone afterwards; what killed processes left goes first."""
    home = working_home()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if home.stat().st_uid != os.getuid():
        raise OSError(f"{home} must belong to the user who trains here")
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _sweep(home)
        folder = Path(tempfile.mkdtemp(dir=home))
        held = (folder / HELD).open("w")
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        held.close()


def sweep() -> None:
    """Delete the working folders of processes of this machine that are no more."""
    home = working_home()
    if home.is_dir():
        with (home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _sweep(home)


def working_home() -> Path:
    """Where this machine's working folders are."""
    name = f"spiketune-{socket.gethostname()}-{os.getuid()}"
    return Path(tempfile.gettempdir()) / name


def _sweep(home: Path) -> None:
    for held in home.glob(f"*/{HELD}"):
        with suppress(OSError), held.open("w") as stream:
            # Held by whoever works there for as long as it lives.
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(held.parent, ignore_errors=True)


def _is_epoch(name: str) -> bool:
    return name.startswith("epoch-") and name.endswith(SUFFIX)


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns
