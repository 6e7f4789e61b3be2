"""The CUDA kernels without a GPU: they compile for several, and take what Python passes."""

import itertools
import re
from functools import cache
from typing import Any

import pytest
import torch
from emulation import EmulatedLoader
from torch.nn import functional as nnf

from trainables.config import ModelConfig
from trainables.model import build_model, compiled
from trainables.model.backends import Backed
from trainables.model.engines import ENGINES
from trainables.model.launched import BLOCK, KERNELS, STEPS, Launch, Launched, Module, Run
from trainables.model.selection import BACKENDS

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MODULES = [
    *(Module(name, dtype, 1) for name in ("norm", "pool") for dtype in FLOATS),
    *(Module("neuron", dtype, 4) for dtype in FLOATS),
    Module("pool", torch.uint8, 1),
]
DEEP = [Module("neuron", torch.float16, steps) for steps in STEPS if steps != 4]
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
BUILDS = [*itertools.product(MODULES, ARCHITECTURES), *itertools.product(DEEP, ("sm_90",))]


@cache
def ptx(module: Module, architecture: str) -> str:
    """A module as NVRTC compiles it; whatever it has to say is an error."""
    nvrtc = pytest.importorskip("cupy.cuda").nvrtc
    program = nvrtc.createProgram(module.source(), f"{module.name}.cu", [], [])
    options = ["--std=c++17", f"-arch={architecture}", *module.defines()]
    try:
        nvrtc.compileProgram(program, options)
    finally:
        log = nvrtc.getProgramLog(program)
    assert not log.strip("\x00\n "), log
    assert len(nvrtc.getCUBIN(program)) > 1000
    return str(nvrtc.getPTX(program))


def parameters(text: str) -> dict[str, str]:
    """Each entry's parameters: a letter each, `d` for a double, `i` for eight other bytes."""
    found = {}
    for name, inside in re.findall(r"\.entry (\w+)\((.*?)\)", text, re.DOTALL):
        kinds = re.findall(r"\.param \.(\w+)", inside)
        assert set(kinds) <= {"u64", "f64"}, f"{name}: {kinds}"
        found[name] = "".join("d" if kind == "f64" else "i" for kind in kinds)
    return found


def called(module: Module) -> str:
    return f"{module.name} {str(module.dtype).removeprefix('torch.')} T{module.steps}"


@pytest.mark.parametrize(
    ("module", "architecture"), BUILDS, ids=lambda x: x if isinstance(x, str) else called(x)
)
def test_kernels_compile_without_a_word(module: Module, architecture: str) -> None:
    entries = parameters(ptx(module, architecture))
    names = {name for name, kernel in KERNELS.items() if kernel.module == module.name}
    assert {re.sub(r"_\d$", "", entry) for entry in entries} == names
    widths = {int(entry[-1]) for entry in entries if not entry.startswith("finish")}
    assert widths == {1, min(4, STEPS[-1] // module.steps)}


class Recorder(EmulatedLoader):
    """Emulated kernels that remember how they were launched."""

    def __init__(self) -> None:
        self.seen: dict[tuple[Module, str], tuple[int | float, ...]] = {}

    def load(self, module: Module) -> Run:
        run = super().load(module)

        def remember(launch: Launch, arguments: tuple[int | float, ...], device: Any) -> None:
            self.seen[module, launch.name] = arguments
            run(launch, arguments, device)

        return remember


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    if compiled.compiler() is None:
        pytest.skip("no C++ compiler")
    recorder = Recorder()
    monkeypatch.setitem(ENGINES, "cpu", Launched(recorder))
    return recorder


def train(precision: torch.dtype | None, **fields: Any) -> None:
    """A step of a small network, and an evaluation."""
    torch.manual_seed(0)
    small = {"width": 32, "heads": 2, "depth": 1, "image_size": 8, "timesteps": 4, "block_size": 2}
    model = build_model(ModelConfig.model_validate(small | fields))
    for module in model.modules():
        if isinstance(module, Backed):
            module.backend = BACKENDS["cuda"]()
    x = torch.randn(2, 3, 8, 8)
    if fields.get("event_data"):
        x = torch.poisson(torch.ones(2, 4, 2, 8, 8))
    with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
        logits = model(x)
    nnf.cross_entropy(logits.float().mean(0), torch.arange(2)).backward()
    model.eval()(x)


def test_python_passes_what_the_kernels_take(recorder: Recorder) -> None:
    events = {"event_data": True, "in_channels": 2, "pooling": "1001", "neuron": "plif"}
    for precision in (None, torch.float16, torch.bfloat16):
        train(precision, pooling="0011", mlp_ratio=1)
        train(precision, **events)
    assert {re.sub(r"_\d$", "", name) for _, name in recorder.seen} == set(KERNELS)
    for (module, name), arguments in recorder.seen.items():
        entries = parameters(ptx(module, "sm_90"))
        passed = "".join("d" if isinstance(x, float) else "i" for x in arguments)
        assert entries[name] == passed, f"{name} of {called(module)}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, 0.3333, 3.1, 2.0**-11])
def test_halves_are_rounded_as_torch_does(
    dtype: torch.dtype, factor: float, recorder: Recorder
) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).view(-1, 8)
    x = every.where(every.isfinite(), torch.zeros_like(every))
    coefficients = torch.tensor([factor, 0.0, 0.0])[:, None].repeat(1, 8)
    out = torch.empty_like(x)
    ENGINES["cpu"].call("combine", dtype, len(x), 8, 8, x, x, coefficients, out)
    assert torch.equal(out, (x.float() * coefficients[0]).to(dtype))


def test_a_missing_argument_is_noticed(recorder: Recorder) -> None:
    x = torch.ones(4, 8)
    with pytest.raises(AssertionError, match="affine_4 has 9 arguments"):
        ENGINES["cpu"].call("affine", torch.float32, 4, 8, 8, x, x)


class Idle:
    """Loads nothing: for launches that are only looked at."""

    def load(self, module: Module) -> Run:  # noqa: ARG002
        return lambda _launch, _arguments, _device: None


@pytest.mark.parametrize("rows", [1, 7, 64, 5000, 10**7])
@pytest.mark.parametrize("channels", [0, 1, 3, 64, 512, 3072])
@pytest.mark.parametrize("steps", [4, 16, 40])
def test_grids_are_within_the_limits_of_gpus(steps: int, rows: int, channels: int) -> None:
    engine = Launched(Idle())
    parts, of_all = engine.num_partials(rows, channels)
    most = {4: 4, 16: 2, 40: 1}[steps]
    for pitch in {channels or 1, max(channels, 1) * 3}:
        _, launch, sizes = engine._plan("fire", torch.float32, True, rows, channels, pitch, steps)
        across, down = launch.grid
        width = int(launch.name[-1])
        assert launch.block[0] * launch.block[1] == BLOCK
        assert 1 <= down == parts <= 1024
        assert across * launch.block[0] * width >= sizes[1]
        assert sizes[0] * sizes[1] == rows * max(channels, 1)
        # a block of the narrowest kind has a sum of its own
        assert of_all == parts * -(-(channels or 4) // 32)
        assert across * parts <= of_all
        assert width == (1 if (channels or rows) % most else most)


def test_several_values_are_taken_at_once_only_where_all_are_aligned() -> None:
    engine = Launched(Idle())
    x = torch.empty(65 * 8)

    def width(first: int, channels: int, pitch: int, dtype: torch.dtype) -> str:
        engine._plans.clear()
        values = x.to(dtype)[first : first + 64 * 8].view(64, 8)
        out = torch.empty(64, 8, dtype=dtype)
        engine.call("affine", dtype, 64, channels, pitch, values, *[x] * 4, out)
        (plan,) = engine._plans.values()
        return plan.launch.name

    for dtype in FLOATS:
        assert width(0, 8, 8, dtype) == width(4, 8, 8, dtype) == "affine_4"
        assert width(1, 8, 8, dtype) == width(2, 8, 8, dtype) == "affine_1"
        assert width(0, 8, 10, dtype) == width(0, 6, 8, dtype) == "affine_1"
