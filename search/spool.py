"""A durable queue on disk: the driver appends events, `delivery.py` hands them on in order."""

import fcntl
import json
import logging
import os
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from trainables.errors import SpiketuneError
from trainables.files import write_atomically

_log = logging.getLogger(__name__)

_HEAD = b'{"crc":"'
_MIDDLE = b'","event":'
_CRC_AT = slice(len(_HEAD), len(_HEAD) + 8)
_PAYLOAD_AT = slice(len(_HEAD) + 8 + len(_MIDDLE), -2)
_CHUNK_EVENTS = 256
_CHUNK_BYTES = 4 << 20


class SpoolError(SpiketuneError):
    """The spool is held by another process or its folder cannot be used."""


@dataclass(frozen=True)
class Event:
    """One thing that happened; `seq` counts from 1, `time_s` is Unix seconds."""

    seq: int
    kind: str
    time_s: float
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Chunk:
    """Consecutive events to deliver together.

    Attributes:
        start: byte offset of the first line; `end` that after the last one.
        uncertain: some of it may have reached the store before, so ask the store first.
    """

    events: Sequence[Event]
    start: int
    end: int
    uncertain: bool


def encode(event: Event) -> bytes:
    """Write an event as one JSON line whose checksum covers the inner object's bytes."""
    inner = {"seq": event.seq, "kind": event.kind, "time_s": event.time_s, "body": event.body}
    payload = json.dumps(inner, separators=(",", ":"), default=str).encode()
    return b"%s%08x%s%s}\n" % (_HEAD, zlib.crc32(payload), _MIDDLE, payload)


def decode(line: bytes) -> Event | None:
    """Read one line back; None when it is torn or altered."""
    payload = line[_PAYLOAD_AT]
    if not line.endswith(b"}\n") or line[_CRC_AT] != b"%08x" % zlib.crc32(payload):
        return None
    try:
        inner = json.loads(payload)
        return Event(inner["seq"], inner["kind"], inner["time_s"], inner["body"])
    except (ValueError, KeyError, TypeError):
        return None


def write_checked(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file by a mapping with its checksum; a crash leaves the old or the new one.

    Raises:
        OSError: the disk is full or read-only; the old one is intact.
    """
    write_atomically(path, _checked(value))


def append_checked(path: Path, value: Mapping[str, Any]) -> None:
    """Add a mapping with its checksum to a file, durably; raises and keeps as `write_checked`."""
    with path.open("ab", buffering=0) as stream:
        # A line of its own, whatever an earlier attempt has left.
        _write_all(stream, b"\n" + _checked(value))


def read_all_checked(path: Path) -> list[dict[str, Any]]:
    """Read what `write_checked` wrote and `append_checked` added; empty ones were altered."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [_value(line) for line in lines] or [{}]


def read_checked(path: Path) -> dict[str, Any]:
    """Read what `write_checked` wrote; empty when it is missing or altered."""
    return read_all_checked(path)[0]


def _checked(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value)
    return b'{"crc": "%08x", "value": %s}' % (zlib.crc32(text.encode()), text.encode())


def _value(line: bytes) -> dict[str, Any]:
    try:
        whole = json.loads(line)
        text = json.dumps(whole["value"])
        return dict(whole["value"]) if whole["crc"] == f"{zlib.crc32(text.encode()):08x}" else {}
    except (ValueError, KeyError, TypeError):
        return {}


class Spool:
    """Append-only `events.jsonl` with a durable position of what was delivered (`acked.json`).

    One process holds a spool at a time. `append` may be called from one thread and `read`,
    `acknowledge` from another.

    Args:
        folder: where the files lie; made when missing.
        store: names the destination; events acknowledged by another one are delivered again.
        on_event: called with every intact event already in the file.

    Raises:
        SpoolError: another process holds the spool, or the folder cannot be used.
    """

    def __init__(
        self, folder: Path, store: str, on_event: Callable[[Event], object] | None = None
    ) -> None:
        self.path = folder / "events.jsonl"
        self.changed = threading.Condition()
        self._acked_path = folder / "acked.json"
        self._store = store
        self._lost = 0
        self._torn = False
        self._seq = 0
        self._end = 0
        self._lock_file = _hold(folder)
        try:
            self._acked = self._load_acked()
            self._pending = self._scan(on_event)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            self._lock_file.close()
            raise SpoolError(f"cannot use the tracking spool {self.path}: {error}") from error
        # A crash falls between sending and acknowledging at most one chunk; with the position
        # itself gone everything may have been sent.
        self._uncertain_until = self._acked + 1 if self._acked else self._end

    @property
    def pending(self) -> int:
        """Events not acknowledged yet."""
        return self._pending

    @property
    def acked(self) -> int:
        """Byte offset up to which events were delivered."""
        return self._acked

    @property
    def end(self) -> int:
        """Byte offset after the last event."""
        return self._end

    def append(self, kind: str, time_s: float, body: Mapping[str, Any]) -> bool:
        """Add an event durably; False (logged) when the disk refuses it.

        A refusal must not end a search: the ledger holds the same facts.
        """
        line = encode(Event(self._seq + 1, kind, time_s, body))
        try:
            if self._torn:
                self._cut_partial_line()
            self._torn = True
            _write_all(self._file, line)
            self._torn = False
        except OSError as error:
            self._lost += 1
            _log.error(
                "tracking: %d event(s) could not be kept in %s: %s; the search goes on and "
                "its ledger has them",
                self._lost,
                self.path,
                error,
            )
            return False
        with self.changed:
            self._seq += 1
            self._end += len(line)
            self._pending += 1
            self.changed.notify_all()
        return True

    def read(self) -> Chunk:
        """Return the next events to deliver; altered lines are left out and logged."""
        with self.changed:
            start, limit = self._acked, self._end
        events: list[Event] = []
        end = start
        with self.path.open("rb") as stream:
            stream.seek(start)
            while end < limit and len(events) < _CHUNK_EVENTS and end - start < _CHUNK_BYTES:
                line = stream.readline()
                if not line:
                    _log.error("tracking: %s was cut short at byte %d", self.path, end)
                    end = limit
                    break
                event = decode(line)
                if event is None:
                    _log.error(
                        "tracking: an altered line at byte %d of %s is left out", end, self.path
                    )
                else:
                    events.append(event)
                end += len(line)
        return Chunk(events, start, end, uncertain=start < self._uncertain_until)

    def acknowledge(self, chunk: Chunk) -> None:
        """Remember durably that a chunk is delivered."""
        write_checked(self._acked_path, {"offset": chunk.end, "store": self._store})
        with self.changed:
            self._acked = chunk.end
            # Counted from the end where possible: altered lines are no events.
            self._pending = self._pending - len(chunk.events) if chunk.end < self._end else 0
            self.changed.notify_all()

    def doubt(self, chunk: Chunk) -> None:
        """Mark a chunk as perhaps delivered: sending it ended without an answer."""
        self._uncertain_until = max(self._uncertain_until, chunk.end)

    def rewind(self) -> None:
        """Deliver everything again from the first event."""
        with self.changed:
            self._acked = 0
            self._uncertain_until = self._end
            self._pending = self._seq
            self.changed.notify_all()

    def close(self) -> None:
        """Release the spool for another process."""
        self._file.close()
        self._lock_file.close()

    def _load_acked(self) -> int:
        position = read_checked(self._acked_path)
        try:
            size = self.path.stat().st_size
        except OSError:
            return 0
        offset = int(position.get("offset", 0))
        return offset if position.get("store") == self._store and offset <= size else 0

    def _scan(self, on_event: Callable[[Event], object] | None) -> int:
        """Find the end of the last intact line, cut what follows it, count what is pending."""
        pending = position = 0
        if not self.path.exists():
            self._acked = 0
            return 0
        with self.path.open("r+b") as stream:
            for line in stream:
                event = decode(line)
                if event is not None:
                    pending += position >= self._acked
                    self._end = position + len(line)
                    self._seq = event.seq
                    if on_event is not None:
                        on_event(event)
                position += len(line)
            if position > self._end:
                _log.warning(
                    "tracking: cut an unfinished line of %d bytes off %s",
                    position - self._end,
                    self.path,
                )
                stream.truncate(self._end)
        self._acked = min(self._acked, self._end)
        return pending

    def _cut_partial_line(self) -> None:
        os.ftruncate(self._file.fileno(), self._end)


def _hold(folder: Path) -> BinaryIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("wb")
    except OSError as error:
        raise SpoolError(f"cannot use the tracking spool {folder}: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise SpoolError(
            f"one process at a time may hold the tracking spool {folder}, but another one has it; "
            "wait until that search or sync ends"
        ) from error
    return lock


def _write_all(stream: Any, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]
    os.fsync(stream.fileno())
