"""Asks the driver of a running search to end it in order, as Ctrl-C there does."""

import json
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from search.folder import SearchFolder
from search.lease import DEAD_AFTER_S, Holder
from trainables.errors import SpiketuneError
from trainables.files import write_atomically

ASKED = "asked_to_stop.json"
_LOOK_MS = 200


class StopError(SpiketuneError):
    """The driver cannot be asked from here, or has not ended in time."""


def end_driver(folder: SearchFolder, holder: Callable[[], Holder | None], timeout_s: float) -> bool:
    """Ask the driver that holds a search to end it, and wait until it has given it back.

    A driver takes a second signal for an order to end at once, so one that has been asked is only
    waited for.

    Args:
        folder: of the search.
        holder: who holds its lease, asked anew at each call.
        timeout_s: seconds to wait.

    Returns:
        False when no driver runs it.

    Raises:
        StopError: it runs elsewhere or as someone else, or still runs after that time.
    """
    found = holder()
    alive = found.alive if found is not None else False
    if found is None or alive is False:
        return False
    if alive is None:
        if not _beats(found, holder):
            return False
        raise StopError(
            f"a search must be stopped where it runs, but {folder.name!r} is run by {found}; run "
            f"`spiketune stop {folder.name}` there, or `spiketune jobs stop {folder.name} "
            "--address URL` where it was submitted as a job"
        )
    try:
        # A handle of that very process: its id alone might be another one's by the time we signal.
        process = os.pidfd_open(found.pid)
    except ProcessLookupError:
        return False
    try:
        if not found.alive:
            return False
        _ask(folder, found, process)
        _wait(folder, found, holder, process, timeout_s)
    finally:
        os.close(process)
    return True


def _ask(folder: SearchFolder, found: Holder, process: int) -> None:
    note = folder.path / ASKED
    mine = [found.host, found.pid, found.process, found.since_s]
    with suppress(OSError, ValueError):
        if json.loads(note.read_text()) == mine:
            return
    ignores = _ignores(found.pid, signal.SIGINT)
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM if ignores else signal.SIGINT)
    except ProcessLookupError:
        return
    except PermissionError:
        raise StopError(
            f"only the user who runs {found} may stop it; run `spiketune stop {folder.name}` as "
            "that user"
        ) from None
    write_atomically(note, json.dumps(mine).encode())


def _wait(
    folder: SearchFolder,
    found: Holder,
    holder: Callable[[], Holder | None],
    process: int,
    timeout_s: float,
) -> None:
    deadline = time.monotonic() + timeout_s
    end = select.poll()
    end.register(process, select.POLLIN)
    while (now := holder()) is not None and now.token == found.token:
        if end.poll(_LOOK_MS):
            break
        if time.monotonic() > deadline:
            raise StopError(
                f"{found} was asked to stop {folder.name!r}, but still records what runs after "
                f"{timeout_s:g} s; `spiketune stop {folder.name}` goes on waiting"
            )
    (folder.path / ASKED).unlink(missing_ok=True)


def _beats(found: Holder, holder: Callable[[], Holder | None]) -> bool:
    """Whether a driver that cannot be seen from here gives signs of life."""
    deadline = time.monotonic() + DEAD_AFTER_S
    while time.monotonic() < deadline:
        now = holder()
        if now is None:
            return False
        if (now.token, now.beat_s) != (found.token, found.beat_s):
            return True
        select.select([], [], [], _LOOK_MS / 1000)
    return False


def _ignores(pid: int, number: signal.Signals) -> bool:
    """Whether a process ignores a signal; unknown counts as no."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigIgn:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
