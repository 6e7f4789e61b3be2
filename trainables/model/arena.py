"""Where torch's large CPU tensors lie: a range of addresses of their own instead of the heap.

A step's tensors come and go in the same sizes, between them stay small ones, and the C library's
heap grows to nearly twice what lives. First fit in a range of huge pages stays within a tenth of
it, and pages that are kept need no clearing.
"""

import ctypes
import logging
import os
import sys
from functools import cache
from pathlib import Path

import torch

from trainables.cache import cache_folder
from trainables.model.compiled import SOURCES, KernelError, build_library

log = logging.getLogger(__name__)

ARENA_VARIABLE = "SPIKETUNE_ARENA"
# Addresses cost nothing until they are used.
_ADDRESSES_PER_MEMORY = 4


def use_arena() -> bool:
    """Let torch's large CPU tensors lie in the arena from now on; whether they do.

    It stays for the process's life. `SPIKETUNE_ARENA=0` leaves torch's own allocator.
    """
    return _library() is not None


def trim_arena() -> None:
    """Give the system back what freed tensors held; the next ones wait for pages again."""
    if _library.cache_info().currsize and (library := _library()):
        library.arena_trim()


@cache
def _library() -> ctypes.CDLL | None:
    if sys.platform != "linux" or os.environ.get(ARENA_VARIABLE) == "0":
        return None
    torch_folder = Path(torch.__file__).parent
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    flags = ("-std=c++17", "-O2", "-fPIC", abi, "-isystem", str(torch_folder / "include"))
    link = ("-shared", f"-L{torch_folder / 'lib'}", "-lc10")
    try:
        sources = sorted((SOURCES / "torch").glob("*.cpp"))
        library = ctypes.CDLL(str(build_library(cache_folder(), "arena", sources, flags, link)))
    except (KernelError, OSError) as error:
        log.info("large tensors stay in the heap: %s", error)
        return None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = int(_ADDRESSES_PER_MEMORY * memory)
    if not library.arena_install(ctypes.c_size_t(size)):
        log.info("large tensors stay in the heap: no range of %d bytes of addresses", size)
        return None
    library.arena_trim.restype = None
    return library
