"""The CUDA kernels: how they are launched, and CuPy, which compiles and caches them for a GPU.

Launches are on torch's current stream and wait for nothing. Grids depend on shapes alone, so that
sums have the same bits in every run.
"""

import logging
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "kernels"
HEADER = "device.cuh"
# How a storage type is stored, and in what is computed.
STORAGE: Mapping[torch.dtype, tuple[str, str]] = {
    torch.float32: ("float", "float"),
    torch.float64: ("double", "double"),
    torch.float16: ("Half", "float"),
    torch.bfloat16: ("Bf16", "float"),
    torch.uint8: ("u8", "float"),
}
# Constants of kernels/device.cuh.
BLOCK, FINISH = 256, 32
# Values that a thread takes at once, where tensors are aligned and few timesteps leave registers.
WIDTH = 4
# Timesteps that a backward keeps in registers; longer sequences go through them in parts.
STEPS = (1, 2, 4, 8, 16, 32)
# Blocks of a sweep: enough to fill a large GPU once, few enough that their sums are quickly added.
_BLOCKS = 1024
# Rows that a thread walks through at least, where it has sums to make.
_ROWS = 2


class Kernel(NamedTuple):
    """Where a kernel lies and which of its arguments a launch depends on.

    Attributes:
        module: its file in `kernels/`.
        sizes: where rows and channels are, how far apart rows lie, and the number of timesteps.
        finishes: whether it adds up partial sums, else it sweeps rows of currents.
    """

    module: str
    sizes: tuple[int, ...] = (0, 1)
    finishes: bool = False


KERNELS: Mapping[str, Kernel] = {
    "fire": Kernel("neuron", (0, 1, 2, 5)),
    "fire_backward": Kernel("neuron", (0, 1, 2, 5)),
    "moments": Kernel("norm", (0, 1, 2)),
    "gradient_moments": Kernel("norm", (0, 1, 2)),
    "affine": Kernel("norm", (0, 1, 2)),
    "combine": Kernel("norm", (0, 1, 2)),
    "finish_statistics": Kernel("norm", finishes=True),
    "finish_gradient": Kernel("norm", finishes=True),
    "finish_rate": Kernel("norm", finishes=True),
    "pool": Kernel("pool"),
    "pool_backward": Kernel("pool"),
}


class Module(NamedTuple):
    """A file of kernels for a storage type and, where they depend on it, a number of timesteps."""

    name: str
    dtype: torch.dtype
    steps: int

    def source(self) -> str:
        """Its text with the header in place: what is cached is told by the text."""
        text = (SOURCES / f"{self.name}.cu").read_text()
        return text.replace(f'#include "{HEADER}"\n', (SOURCES / HEADER).read_text())

    def defines(self) -> tuple[str, ...]:
        """The compiler's options that make it."""
        storage, wide = STORAGE[self.dtype]
        return f"-DSTORAGE={storage}", f"-DWIDE={wide}", f"-DSTEPS={self.steps}"


class Launch(NamedTuple):
    """A kernel's name in its module, and its grid and block of (x, y)."""

    name: str
    grid: tuple[int, int]
    block: tuple[int, int]


Run = Callable[[Launch, tuple[int | float, ...], torch.device], None]


class Plan(NamedTuple):
    """What runs a call, its launch, and the sizes as the kernel is to see them."""

    run: Run
    launch: Launch
    sizes: tuple[int, ...]


class Loader(Protocol):
    """Makes the kernels of a module callable."""

    def load(self, module: Module) -> Run:
        """What runs a launch with arguments (tensors by their address) on a device."""


class Launched:
    """Runs kernels by launching grids of threads."""

    is_dense = True

    def __init__(self, loader: Loader) -> None:
        """Launch what a loader makes."""
        self._loader = loader
        self._runs: dict[Module, Run] = {}
        # every call has its own numbers, and planning one takes longer than launching it
        self._plans: dict[tuple[object, ...], Plan] = {}

    def num_partials(self, rows: int, channels: int) -> tuple[int, int]:
        """A part for each row of blocks; and, for sums of all channels, for each block."""
        if channels == 0:
            rows, channels = rows // WIDTH, WIDTH
        height = BLOCK // _lanes(channels, WIDTH)
        wanted = -(-rows // (height * _ROWS))
        parts = max(1, min(wanted, _BLOCKS // -(-channels // (FINISH * WIDTH))))
        return parts, parts * -(-channels // FINISH)

    def call(
        self, name: str, dtype: torch.dtype, *arguments: torch.Tensor | int | float | None
    ) -> None:
        """Launch a kernel of a storage type with tensors, sizes and numbers."""
        passed: list[int | float] = []
        is_aligned, device = True, None
        for x in arguments:
            if isinstance(x, torch.Tensor):
                at = x.data_ptr()
                is_aligned = is_aligned and at % (WIDTH * x.element_size()) == 0
                device = device or x.device
                passed.append(at)
            else:
                passed.append(0 if x is None else x)
        key = (name, dtype, is_aligned, *(passed[at] for at in KERNELS[name].sizes))
        plan = self._plans.get(key)
        if plan is None:
            sizes = (int(passed[at]) for at in KERNELS[name].sizes)
            plan = self._plans[key] = self._plan(name, dtype, is_aligned, *sizes)
        passed[: len(plan.sizes)] = plan.sizes
        plan.run(plan.launch, tuple(passed), device or torch.device("cpu"))

    def _plan(
        self,
        name: str,
        dtype: torch.dtype,
        is_aligned: bool,  # noqa: FBT001  # passed by position, a key of what is kept
        rows: int,
        channels: int,
        pitch: int = 0,
        steps: int = 1,
    ) -> Plan:
        kernel = KERNELS[name]
        module = Module(kernel.module, dtype, next((n for n in STEPS if n >= steps), STEPS[-1]))
        run = self._runs.get(module)
        if run is None:
            run = self._runs[module] = self._loader.load(module)
        if kernel.finishes:
            grid = (-(-channels // FINISH), 1)
            return Plan(run, Launch(name, grid, (FINISH, FINISH)), (rows, channels))
        parts, _ = self.num_partials(rows, channels)
        has_pitch = len(kernel.sizes) > 2
        pitch = pitch if has_pitch and channels else channels
        width = min(WIDTH, STEPS[-1] // module.steps)
        if not is_aligned or (channels or rows) % width or pitch % width:
            width = 1
        if channels == 0:  # single values: as rows that a thread takes at once
            rows, channels, pitch = rows // width, width, width
        lanes = _lanes(channels, width)
        grid = (-(-channels // (lanes * width)), parts)
        launch = Launch(f"{name}_{width}", grid, (lanes, BLOCK // lanes))
        return Plan(run, launch, (rows, channels, pitch) if has_pitch else (rows, channels))


def _lanes(channels: int, width: int) -> int:
    """Threads of a block that lie along channels: a power of 2, up to 32."""
    lanes = -(-channels // width)
    return min(FINISH, 1 << (lanes - 1).bit_length())


class CupyLoader:
    """Kernels that CuPy compiles for the GPU at hand, and caches on disk."""

    def load(self, module: Module) -> Run:
        """What launches on torch's current stream of a device."""
        import cupy  # an optional extra, and slow to import

        compiled = cupy.RawModule(
            code=module.source(), options=("--std=c++17", *module.defines()), backend="nvrtc"
        )
        functions: dict[str, Any] = {}

        def run(launch: Launch, arguments: tuple[int | float, ...], device: torch.device) -> None:
            with torch.cuda.device(device), _stream(torch.cuda.current_stream(device)):
                function = functions.get(launch.name)
                if function is None:
                    function = functions[launch.name] = compiled.get_function(launch.name)
                function(launch.grid, launch.block, arguments)

        return run

    def failure(self, device: torch.device) -> str | None:
        """Why kernels cannot run on a device; None where they can."""
        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
        try:
            import cupy
            from cupy.cuda.compiler import CompileException
        except (ImportError, OSError, RuntimeError) as error:
            return f"CuPy cannot be imported ({_line(error)}); the extra `cuda` installs it"
        try:
            with torch.cuda.device(device):
                for name in sorted({kernel.module for kernel in KERNELS.values()}):
                    module = Module(name, torch.float32, 4)
                    code, options = module.source(), ("--std=c++17", *module.defines())
                    cupy.RawModule(code=code, options=options, backend="nvrtc").compile()
        except (CompileException, OSError, RuntimeError) as error:
            return f"the kernels cannot be compiled: {_line(error)}"
        return None


@cache
def available(device: torch.device) -> bool:
    """Whether the kernels run on a CUDA device; where not, says why in the log, once a process."""
    reason = CupyLoader().failure(device)
    if reason is not None:
        log.warning("neuron_backend cuda is not available, torch is used: %s", reason)
    return reason is None


_streams: dict[tuple[int, int], Any] = {}


def _stream(stream: torch.cuda.Stream) -> Any:
    import cupy

    key = (stream.device_index, stream.cuda_stream)
    found = _streams.get(key)
    if found is None:
        found = _streams[key] = cupy.cuda.Stream.from_external(stream)
    return found


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
