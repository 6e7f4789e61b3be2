"""The C++ kernels: compiled once a machine, kept in the user's cache, called through ctypes."""

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from trainables.cache import cache_folder

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "kernels"
# Compilers halve AVX-512's vectors unless told: whole ones made backward steps of LIF 11 % shorter.
WIDE_VECTORS = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
FLAGS = (
    "-std=c++17", "-O3", "-march=native", *WIDE_VECTORS, "-fopenmp", "-fno-math-errno",
    "-fno-trapping-math", "-fPIC",
)  # fmt: skip
# Without -fopenmp the linker leaves OpenMP's functions to be found in torch's own runtime: threads
# of a second one would wait for work on the cores that those of the first need.
LINK_FLAGS = ("-shared",)
NAMES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.uint8: "u8"}
_COMPILE_TIMEOUT_S = 300
_THREAD_VALUES = 32_768

Argument = torch.Tensor | int | float | None


class KernelError(Exception):
    """The kernels cannot be had on this machine; says why."""


def compiler() -> str | None:
    """The C++ compiler: CXX, or g++ or c++ of the path; None where there is none."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def build(folder: Path) -> Path:
    """Compile the kernels into a folder unless they are there, once for processes that ask at once.

    Raises:
        KernelError: there is no compiler, it fails, or the folder cannot be written.
    """
    return build_library(folder, "kernels", sorted(SOURCES.glob("*.cpp")), FLAGS, LINK_FLAGS)


def build_library(
    folder: Path,
    name: str,
    sources: Sequence[Path],
    flags: tuple[str, ...],
    link_flags: tuple[str, ...],
) -> Path:
    """Compile sources into a folder, as `build` does."""
    program = compiler()
    if program is None:
        raise KernelError("there is no C++ compiler (g++)")
    library = folder / f"{name}-{_key(program, sources, (*flags, *link_flags))}.so"
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if not library.exists():
                _compile(library, program, sources, flags, link_flags)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"the {name} cannot be compiled into {folder}: {error}") from error
    return library


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Where folders cannot be locked, each process compiles and the last one's equal file stays."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _compile(
    library: Path,
    program: str,
    sources: Sequence[Path],
    flags: tuple[str, ...],
    link_flags: tuple[str, ...],
) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        run = partial(_run, program, folder=Path(scratch))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            largest_first = sorted(sources, key=lambda source: -source.stat().st_size)
            tuple(pool.map(lambda source: run(*flags, "-c", str(source)), largest_first))
        made = Path(scratch) / library.name
        run(*(f"{source.stem}.o" for source in sources), *link_flags, "-o", str(made))
        made.replace(library)


def _run(program: str, *arguments: str, folder: Path) -> None:
    done = subprocess.run(
        [program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=_COMPILE_TIMEOUT_S,
    )
    if done.returncode:
        raise KernelError(f"{program} fails: {done.stderr.strip()[:400]}")


def available() -> bool:
    """Whether the kernels can be called; where not, says why in the log, once a process."""
    return _library() is not None


class Compiled:
    """Runs kernels by calling them, on torch's threads."""

    is_dense = False

    def num_partials(self, rows: int, channels: int) -> tuple[int, int]:  # noqa: ARG002
        """Sums come whole."""
        return 1, 1

    def call(self, name: str, dtype: torch.dtype, *arguments: Argument) -> None:
        """Call a kernel of a storage type with tensors, sizes and numbers."""
        size = max(x.numel() for x in arguments if isinstance(x, torch.Tensor))
        _function(name, dtype)(*(_passed(x) for x in arguments), _threads(size))


def spike_count(counts: torch.Tensor) -> int:
    """Sum of a dense tensor of bytes."""
    return _reduced("spike_count", counts)


def largest_count(counts: torch.Tensor) -> int:
    """The largest of a dense tensor of bytes."""
    return _reduced("largest_count", counts)


def _reduced(name: str, counts: torch.Tensor) -> int:
    function = _function(name, None)
    function.restype = ctypes.c_int64
    found: int = function(_passed(counts), _passed(counts.numel()), _threads(counts.numel()))
    return found


@cache
def has_pairs() -> bool:
    """Whether this processor multiplies pairs of 16-bit integers."""
    return bool(_library() is not None and _library().has_pairs())  # type: ignore[union-attr]


def _threads(size: int) -> ctypes.c_int:
    """Torch's threads, but each with enough values that waking it pays."""
    return ctypes.c_int(max(1, min(torch.get_num_threads(), size // _THREAD_VALUES)))


def _passed(x: Argument) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double:
    if isinstance(x, torch.Tensor):
        return ctypes.c_void_p(x.data_ptr())
    if isinstance(x, float):
        return ctypes.c_double(x)
    return ctypes.c_void_p(None) if x is None else ctypes.c_int64(x)


@cache
def _function(name: str, dtype: torch.dtype | None) -> Any:
    library = _library()
    if library is None:
        raise KernelError("the C++ kernels are not available")
    function = library[f"{name}_{NAMES[dtype]}" if dtype else name]
    function.restype = None
    return function


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(build(cache_folder())))
    except (KernelError, OSError, RuntimeError) as error:
        log.warning("neuron_backend cpp is not available, torch is used: %s", error)
        return None


def _key(program: str, sources: Sequence[Path], flags: tuple[str, ...]) -> str:
    parts = [program, *flags, torch.__version__, platform.machine(), _processor()]
    digest = hashlib.sha256("\0".join(parts).encode())
    for source in (*sources, *sorted(SOURCES.glob("*.h"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    # -march=native: a cache folder shared by several machines must not mix their libraries.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    kinds = ("flags", "Features", "model name", "vendor_id")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
