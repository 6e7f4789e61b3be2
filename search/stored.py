"""A search's checkpoints in a store, as its driver sees them.

They lie below `URL/NAME/SEARCH-ID/00042`: a search that is deleted and started again under its name
sees nothing of the one before.
"""

import logging
import queue
import threading
from dataclasses import dataclass
from pathlib import Path

from search.folder import SearchFolder
from search.pruning import remove_checkpoints
from search.records import TrialRecord, trial_name
from search.tracking_uri import environment_value
from spaces.schema import SearchSpec, checkpoint_place
from trainables.errors import CheckpointError, InputError, StoreError
from trainables.files import BEST
from trainables.remote import StoredFolder

logger = logging.getLogger(__name__)

KEY = "storage.checkpoints"


@dataclass(frozen=True)
class StoredFile:
    """A file in a store, for whoever is to fetch it later.

    Attributes:
        folder: where it lies.
        name: what it is called there.
    """

    folder: StoredFolder
    name: str


def checkpoint_url(spec: SearchSpec) -> str | None:
    """The URL of the store, if the checkpoints of a search are not in its folder.

    Raises:
        InputError: the environment variable is not set, or what it holds cannot be a store's URL.
    """
    place = spec.storage.checkpoints
    if place is None:
        return None
    url = environment_value(KEY, place, "the URL of a store")
    try:
        if url.startswith("env:"):
            raise ValueError("must be a store's URL")
        return checkpoint_place(url)
    except ValueError as error:
        raise InputError(f"{KEY}: what `{place}` names {error}") from None


def stored_folder(spec: SearchSpec, name: str, search_id: str) -> StoredFolder | None:
    """The store's folder of a search; None where checkpoints lie in the search's own.

    Raises:
        InputError: as `checkpoint_url`.
    """
    url = checkpoint_url(spec)
    return None if url is None else StoredFolder(url, f"{name}/{search_id}")


def check_store(spec: SearchSpec) -> None:
    """Write, read and delete a file where the checkpoints of a search are to go.

    Raises:
        InputError: that is not possible from here.
    """
    url = checkpoint_url(spec)
    if url is None:
        return
    try:
        StoredFolder(url, patience_s=0.0).probe()
    except StoreError as error:
        raise InputError(
            f"{KEY}: {error}; correct it, or the address and credentials that the environment "
            "holds (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, …)"
        ) from error


def clear_scratch(spec: SearchSpec, folder: SearchFolder) -> None:
    """Delete what Ray Train has left in the store of a search, if there is one."""
    from trainables.trial import SCRATCH

    search_id = (folder.manifest() or {}).get("search_id")
    store = stored_folder(spec, folder.name, str(search_id)) if search_id else None
    if store is not None:
        try:
            store.below(SCRATCH).clear()
        except StoreError as error:
            logger.warning("%s; what Ray Train has left stays there", error)


def fetched_best(store: StoredFolder, folder: SearchFolder, number: int) -> Path | None:
    """A trial's best checkpoint, copied into the search's folder unless that copy is the newest.

    None where the store does not have it.

    Raises:
        CheckpointError: the store fails.
    """
    path = folder.trial(number) / BEST
    try:
        store.below(trial_name(number)).get(BEST, path)
    except FileNotFoundError:
        path.unlink(missing_ok=True)
        return None
    except StoreError as error:
        raise CheckpointError(f"{path} must be fetched, but: {error}") from error
    return path


class Remover:
    """Deletes the checkpoints of trials that have lost.

    In a store that is done by a thread: it may take long to answer, and the search goes on. What it
    refuses is tried again when the search is resumed.

    Args:
        folder: of the search.
        store: its folder in the store; None where checkpoints lie in the search's own.
    """

    def __init__(self, folder: SearchFolder, store: StoredFolder | None) -> None:
        self._folder = folder
        self._store = store
        self._losers: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if store is not None:
            self._thread = threading.Thread(
                target=self._run, args=(store,), name="spiketune-remover", daemon=True
            )
            self._thread.start()

    def remove(self, record: TrialRecord) -> None:
        """Delete a trial's checkpoints, now or soon."""
        remove_checkpoints(self._folder.trial(record.number))
        if self._thread is not None:
            self._losers.put(record.number)

    def close(self, timeout_s: float) -> None:
        """Wait until what has lost is deleted, but no longer than that."""
        if self._thread is not None:
            self._losers.put(None)
            self._thread.join(timeout_s)

    def _run(self, store: StoredFolder) -> None:
        is_open = True
        while is_open:
            told = self._waiting()
            is_open = None not in told
            losers = {trial_name(number) for number in told if number is not None}
            try:
                # One look for all of them: after a resume these are all that ever lost.
                for name in sorted(losers.intersection(store.names()) if losers else ()):
                    store.below(name).clear()
            except StoreError as error:
                logger.warning("%s; what lost stays there until the search is resumed", error)

    def _waiting(self) -> list[int | None]:
        """Everything that waits, at least one."""
        told = [self._losers.get()]
        while not self._losers.empty():
            told.append(self._losers.get())
        return told
