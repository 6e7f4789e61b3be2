"""Integrates recordings to frames once and keeps them, safely among parallel trials.

A cache is a folder `frames/T16-128x128-<fingerprint>/` beside the recordings, holding `frames.npy`
`[N,T,2,H,W]` and `frames.json` with its checksum. Its name covers the recordings' names and sizes,
so that other recordings make another cache.

Shapes: N samples, T timesteps, H W sensor.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch.nn import functional as nnf

from trainables.data.event_files import Events, check_in_view
from trainables.data.kept import Kept, flush
from trainables.errors import InputError

FORMAT = 1  # part of the fingerprint: raise it when the same recordings give other frames
MAX_COUNT = np.iinfo(np.int16).max
CHUNK_RECORDINGS = 32

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cut:
    """One sample of a recording: its class, and from when to when (None: all of it)."""

    label: int
    start_us: int | None = None
    end_us: int | None = None


@dataclass(frozen=True)
class Recording:
    """A file and the samples in it."""

    path: Path
    cuts: tuple[Cut, ...]
    is_test: bool


@dataclass(frozen=True)
class Integration:
    """How recordings become frames.

    Attributes:
        read: the reader of one file.
        timesteps: frames a sample, each with the same number of events.
        sensor: height and width of the camera.
        stored: height and width that are kept; other than the sensor's, the nearest pixel's count.
    """

    read: Callable[[Path], Events]
    timesteps: int
    sensor: tuple[int, int]
    stored: tuple[int, int]


def open_frames(
    base: Path,
    recordings: Sequence[Recording],
    how: Integration,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Frames of all samples, made first where they are not there, mapped from the file.

    Args:
        base: the data set's folder.
        recordings: its files in order.
        how: timesteps and sizes.
        progress: called with recordings done and in all.

    Returns:
        Counts `[N,T,2,H,W]`, uint8 or int16.

    Raises:
        InputError: a recording is damaged, or the folder cannot be written.
    """
    folder = base / "frames"
    kept = Kept(folder, _name(base, recordings, how), "frames")
    try:
        found = kept.get(lambda path: _write(path, recordings, how, progress))
    except PermissionError as error:
        raise InputError(
            f"{folder}: must be writable once, to keep the frames that are made of the recordings "
            f"({error.strerror}); copy or link `extract` into a folder of your own"
        ) from error
    return torch.from_numpy(found)


def _name(base: Path, recordings: Sequence[Recording], how: Integration) -> str:
    digest = hashlib.sha256(f"{FORMAT}".encode())
    for recording in recordings:
        size = recording.path.stat().st_size
        digest.update(f"\0{recording.path.relative_to(base)}\0{size}\0{recording.cuts}".encode())
    height, width = how.stored
    return f"T{how.timesteps}-{height}x{width}-{digest.hexdigest()[:12]}"


def _write(
    path: Path, recordings: Sequence[Recording], how: Integration, progress: Progress | None
) -> dict[str, Any]:
    num_samples = sum(len(recording.cuts) for recording in recordings)
    shape = (num_samples, how.timesteps, 2, *how.stored)
    wide = path.with_name("wide.npy")
    largest = 0
    # Written, not mapped: a full disk is then an error, not a signal.
    with wide.open("wb") as file:
        _write_header(file, shape, np.dtype(np.int16))
        for frames in _integrated(recordings, how, progress):
            largest = max(largest, int(frames.max(initial=0)))
            file.write(frames.tobytes())
        flush(file)
    if largest <= np.iinfo(np.uint8).max:
        _narrow(wide, path, shape)
        wide.unlink()
    else:
        wide.replace(path)
    return {"shape": shape, "largest": largest}


def _write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _narrow(wide: Path, narrow: Path, shape: tuple[int, ...]) -> None:
    frames = np.load(wide, mmap_mode="r")
    with narrow.open("wb") as file:
        _write_header(file, shape, np.dtype(np.uint8))
        for start in range(0, len(frames), CHUNK_RECORDINGS):
            file.write(frames[start : start + CHUNK_RECORDINGS].astype(np.uint8).tobytes())
        flush(file)


def _integrated(
    recordings: Sequence[Recording], how: Integration, progress: Progress | None
) -> Iterator[np.ndarray]:
    """Frames of one recording after the other, `[cuts,T,2,H,W]`."""
    done = 0
    with ThreadPoolExecutor(thread_name_prefix="integrate") as pool:
        # In chunks, so that what is finished but not yet written stays bounded.
        for start in range(0, len(recordings), CHUNK_RECORDINGS):
            chunk = recordings[start : start + CHUNK_RECORDINGS]
            for frames in pool.map(lambda recording: _integrate(recording, how), chunk):
                yield frames
                done += 1
                if progress is not None:
                    progress(done, len(recordings))


def _integrate(recording: Recording, how: Integration) -> np.ndarray:
    from spikingjelly.datasets.utils import integrate_events_by_fixed_frames_number

    events = how.read(recording.path)
    check_in_view(recording.path, events, *how.sensor)
    samples = []
    for cut in recording.cuts:
        inside = _between(events, cut)
        frames = integrate_events_by_fixed_frames_number(
            inside, "number", how.timesteps, *how.sensor
        )
        samples.append(_stored(np.minimum(frames, MAX_COUNT), how))
    return np.stack(samples)


def _between(events: Events, cut: Cut) -> Events:
    if cut.start_us is None or cut.end_us is None:
        return events
    inside = (events["t"] >= cut.start_us) & (events["t"] < cut.end_us)
    return {key: values[inside] for key, values in events.items()}


def _stored(frames: np.ndarray, how: Integration) -> np.ndarray:
    if how.stored != how.sensor:
        resized = nnf.interpolate(torch.from_numpy(frames), size=how.stored, mode="nearest")
        frames = resized.numpy()
    return frames.astype(np.int16)
