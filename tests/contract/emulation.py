"""The CUDA kernels on a CPU: the same source, compiled by g++, launched by the same code."""

import ctypes
import hashlib
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from trainables.cache import cache_folder
from trainables.model.compiled import compiler
from trainables.model.launched import Launch, Module, Run

SHIM = Path(__file__).with_name("cuda_shim.h")
FLAGS = (
    "-std=c++17", "-O2", "-fPIC", "-shared", "-fno-strict-aliasing", "-Wall", "-Werror",
    "-Wno-unknown-pragmas", "-Wno-unused-function",
)  # fmt: skip
TYPES: dict[str, Any] = {"i": ctypes.c_int64, "d": ctypes.c_double, "p": ctypes.c_void_p}
PYTHON = {"i": int, "d": float, "p": int}


class EmulatedLoader:
    """Kernels whose threads run one after the other."""

    def load(self, module: Module) -> Run:
        """What launches on tensors of the CPU; arguments of another kind are refused."""
        library = built(module)

        def run(launch: Launch, arguments: tuple[int | float, ...], device: torch.device) -> None:
            assert device.type == "cpu"
            assert launch.block[0] * launch.block[1] <= 1024
            assert max(launch.grid[1], launch.block[1]) < 2**16
            kinds = library[f"kinds_{launch.name}"]
            kinds.restype = ctypes.c_char_p
            wanted = kinds().decode()
            assert len(wanted) == len(arguments), f"{launch.name} has {len(wanted)} arguments"
            for at, (kind, value) in enumerate(zip(wanted, arguments, strict=True)):
                assert type(value) is PYTHON[kind], f"{launch.name}: argument {at} is {value!r}"
            values = [TYPES[kind](x) for kind, x in zip(wanted, arguments, strict=True)]
            pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(x) for x in values))
            shape = (ctypes.c_uint * 4)(*launch.grid, *launch.block)
            library[f"launch_{launch.name}"](shape, pointers)

        return run


@cache
def built(module: Module) -> ctypes.CDLL:
    """A module's kernels as a library."""
    program = compiler()
    assert program is not None
    text = module.source()
    launchers = "\n".join(f"LAUNCHER({name})" for name in entries(text, module.steps))
    whole = f"{SHIM.read_text()}\n{text}\n{launchers}\n"
    options = (*FLAGS, *module.defines())
    key = hashlib.sha256("\0".join((program, *options, whole)).encode()).hexdigest()[:16]
    library = cache_folder() / f"emulated-{module.name}-{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            source, made = Path(scratch) / "kernels.cpp", Path(scratch) / library.name
            source.write_text(whole)
            subprocess.run([program, *options, str(source), "-o", str(made)], check=True)
            made.replace(library)
    return ctypes.CDLL(str(library))


def entries(text: str, steps: int) -> list[str]:
    """The names of a module's kernels, as macros make them."""
    widths = [1, 4 if steps <= 8 else 2] if steps <= 16 else [1]
    found: list[str] = []
    for name in re.findall(r"^extern \"C\" __global__ void (\w+)\(", text, re.MULTILINE):
        found.append(name)
    for name in re.findall(r"\b(\w+)_##V\(", text):
        found += [f"{name}_{width}" for width in widths]
    return found
