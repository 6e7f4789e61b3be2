"""Reads recordings of event cameras in the containers their publishers use.

Every reader returns events in the file's order as arrays `t` (µs), `x`, `y`, `p` (1 = ON), which is
what SpikingJelly's integration takes.
"""

import struct
from pathlib import Path

import numpy as np

from trainables.errors import InputError

Events = dict[str, np.ndarray]

ATIS_EVENT_BYTES = 5
AEDAT2_EVENT_BYTES = 8
AEDAT3_HEADER_BYTES = 28
AEDAT3_END = b"#!END-HEADER\r\n"
POLARITY_EVENT = 1
DVS128_LAST = 127


def read_atis(path: Path) -> Events:
    """Events of an ATIS `.bin` file (N-MNIST, N-Caltech101): 40 bits an event.

    Raises:
        InputError: the file is empty or ends within an event.
    """
    from spikingjelly.datasets.utils import load_ATIS_bin

    _check_length(path, path.stat().st_size, ATIS_EVENT_BYTES)
    return dict(load_ATIS_bin(path))


def read_aedat2(path: Path) -> Events:
    """Events of an AEDAT 2.0 file of a DVS128 (CIFAR10-DVS): big-endian address and time.

    The axes are turned as in SpikingJelly, so that frames are those of published results.

    Raises:
        InputError: the file is empty or ends within an event.
    """
    data = path.read_bytes()
    start = 0
    while data[start : start + 1] == b"#":
        start = data.find(b"\n", start) + 1 or len(data)
    _check_length(path, len(data) - start, AEDAT2_EVENT_BYTES)
    words = np.frombuffer(data, dtype=">u4", offset=start)
    address, time = words[0::2].astype(np.int64), words[1::2].astype(np.int64)
    column, row = (address & 0xFE) >> 1, (address & 0x7F00) >> 8
    return {
        "t": time,
        "x": DVS128_LAST - row,
        "y": DVS128_LAST - column,
        "p": 1 - (address & 1),
    }


def read_aedat3(path: Path) -> Events:
    """Events of an AEDAT 3.1 file (DVS128 Gesture): packets, of which polarity packets count.

    Same events as SpikingJelly's `load_aedat_v3`, read a packet at a time instead of an event.

    Raises:
        InputError: the file has no events or ends within a packet.
    """
    data = path.read_bytes()
    end = data.find(AEDAT3_END)
    if end < 0:
        raise InputError(f"{path}: must be AEDAT 3 with an end of header; fetch it again")
    position = end + len(AEDAT3_END)
    addresses, times = [], []
    while position < len(data):
        if position + AEDAT3_HEADER_BYTES > len(data):
            raise _cut_off(path)
        kind, _, size, _, overflow, capacity = struct.unpack_from("<HHIIII", data, position)
        position += AEDAT3_HEADER_BYTES
        if size < AEDAT2_EVENT_BYTES or size % 4 or position + size * capacity > len(data):
            raise _cut_off(path)
        if kind == POLARITY_EVENT:
            words = np.frombuffer(data, "<u4", size // 4 * capacity, position)
            rows = words.reshape(capacity, size // 4)
            addresses.append(rows[:, 0])
            times.append(rows[:, 1].astype(np.int64) | (overflow << 31))
        position += size * capacity
    if not addresses:
        raise InputError(f"{path}: must hold events, but has none; fetch it again")
    address = np.concatenate(addresses).astype(np.int64)
    return {
        "t": np.concatenate(times),
        "x": (address >> 17) & 0x7FFF,
        "y": (address >> 2) & 0x7FFF,
        "p": (address >> 1) & 1,
    }


def check_in_view(path: Path, events: Events, height: int, width: int) -> None:
    """Refuse events outside the sensor, which only a damaged file has.

    Raises:
        InputError: an event lies outside.
    """
    if events["x"].size == 0:
        return
    right, bottom = int(events["x"].max()), int(events["y"].max())
    left, top = int(events["x"].min()), int(events["y"].min())
    if right >= width or bottom >= height or left < 0 or top < 0:
        raise InputError(
            f"{path}: events must lie within {height}x{width} pixels, but one is at "
            f"x={right if right >= width else left}, y={bottom if bottom >= height else top}; "
            "fetch it again"
        )


def _check_length(path: Path, num_bytes: int, event_bytes: int) -> None:
    if num_bytes <= 0 or num_bytes % event_bytes:
        raise InputError(
            f"{path}: must hold whole events of {event_bytes} bytes, but has {num_bytes} bytes of "
            "them; fetch it again"
        )


def _cut_off(path: Path) -> InputError:
    return InputError(f"{path}: ends within a packet of events; fetch it again")
