"""How much memory a process has taken, on its device or of the machine."""

import resource
import sys
from pathlib import Path

import torch

MIB = 2**20


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
