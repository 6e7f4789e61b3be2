"""What a training process takes of its machine, as MLflow's pages show it."""

import resource
import time
from pathlib import Path

_PAGE_MIB = resource.getpagesize() / 2**20
_STATM = Path("/proc/self/statm")


class UsageMeter:
    """Measures this process between two readings."""

    def __init__(self) -> None:
        """Begin."""
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """CPU (% of one, since the last reading) and memory (MiB), and the GPU's if it is used.

        `system/` is where MLflow looks for system metrics.
        """
        import torch  # the driver reads this file too

        wall_s, cpu_s = time.perf_counter(), time.process_time()
        share = (cpu_s - self._cpu_s) / max(wall_s - self._wall_s, 1e-9)
        self._wall_s, self._cpu_s = wall_s, cpu_s
        usage = {"system/cpu_pct": 100.0 * share}
        if _STATM.is_file():
            usage["system/memory_mib"] = int(_STATM.read_text().split()[1]) * _PAGE_MIB
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            free, total = torch.cuda.mem_get_info()
            usage["system/gpu_memory_mib"] = (total - free) / 2**20
            usage |= _gpu_share()
        return usage


def _gpu_share() -> dict[str, float]:
    import torch

    try:
        return {"system/gpu_pct": float(torch.cuda.utilization())}
    except (ModuleNotFoundError, RuntimeError):  # NVIDIA's bindings are missing or refuse
        return {}
