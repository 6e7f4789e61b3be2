"""How much memory a process has taken, on its device or of the machine."""

import resource
import sys
from pathlib import Path

import torch

from trainables.footprint import CUDA_CONTEXT_MIB

MIB = 2**20
# Said by what is no torch.OutOfMemoryError: the CPU's allocator, and CUDA outside torch's own.
_NO_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def resident_mib(name: str) -> float | None:
    """Resident memory of this process, MiB; None where the system does not tell.

    Args:
        name: `VmRSS`, what it is now, or `VmHWM`, its peak.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return float(status.split(f"{name}:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return None


def reset_peak_memory(device: torch.device) -> bool:
    """Let the peak begin anew, for a process that is used again; whether that was possible."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if sys.platform != "linux":
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the resident set
    except OSError:
        return False
    return True


def peak_memory_mib(device: torch.device) -> float:
    """Peak since the reset: of the device's memory, or of this process's where it is a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    peak = resident_mib("VmHWM")
    if peak is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def allocator_share(share: float, card_mib: float) -> float:
    """The share of a card that torch may allocate of a process's share: its context needs some."""
    return max(share - CUDA_CONTEXT_MIB / card_mib, 0.01)


def device_memory_mib() -> float:
    """What the card that this process sees has; 0 where there is none."""
    if not torch.cuda.is_available():
        return 0.0
    return float(torch.cuda.get_device_properties(0).total_memory) / MIB


def limit_device_memory(share: float) -> None:
    """Keep this process to its share of a card, so that it fails itself and not its neighbours."""
    card_mib = device_memory_mib() if 0.0 < share < 1.0 else 0.0
    if card_mib:
        torch.cuda.set_per_process_memory_fraction(allocator_share(share, card_mib), 0)
