"""`make bench-gpu`: training steps of the CUDA backend against plain torch's and SpikingJelly's.

`torch` runs SpikingJelly's neurons on torch's own operations, `spikingjelly` on the kernels that
it picks for the GPU (its own CUDA code or Triton), `cuda` is our backend. A measurement is a
process of its own, backends in turn, so that peak memory is its own and a GPU that clocks down
meets all. Prints Markdown. `python -m tests.benchmarks.gpu [CASE]... [--pairs N] [--packed N]...`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from spaces.reading import recipe
from trainables.config import ModelConfig, TrainConfig, TrialConfig
from trainables.cost import total_macs
from trainables.memory import peak_memory_mib, reset_peak_memory
from trainables.model import build_model
from trainables.model.backends import Synapses
from trainables.model.selection import use_backend
from trainables.optimization import Optimization
from trainables.parallel import ALONE
from trainables.scoring import autocast

# A recipe and its batch on this GPU.
CASES: dict[str, tuple[str, int]] = {
    "CIFAR 2-512, batch 64": ("cifar10_2_512", 64),
    "CIFAR 2-512, batch 256": ("cifar10_2_512", 256),
    "DVS 2-256 T16 64x64, batch 16": ("cifar10_dvs_t16", 16),
    "DVS 2-256 T16 128x128, batch 16": ("dvs_gesture_t16", 16),
    "ImageNet 8-512, batch 32": ("imagenet_8_512", 32),
    "ImageNet 8-768, batch 32": ("imagenet_8_768", 32),
}
PACKED = "CIFAR 2-512, batch 64"
OURS = "cuda"
# How SpikingJelly is told, when it is imported, which kernels to take.
CHOICES = ("SJ_LIF_CUDA_IMPLEMENTATION", "SJ_PLIF_CUDA_IMPLEMENTATION")
BACKENDS = {"torch": "torch", "spikingjelly": "auto", OURS: "auto"}
WARM_STEPS, STEPS = 5, 20
PACKED_S = 10.0
MIB, DTYPES = 2**20, {"fp16": torch.float16, "bf16": torch.bfloat16, "float32": torch.float32}
# How often a training step must at least read or write a value of a layer's currents, with batch
# norm and neuron in one pass: 3 times forward (convolution, moments, neuron) and 8 backward.
_PASSES = 11


class Figures(NamedTuple):
    """What a process measured.

    Attributes:
        step_ms: median time of a training step.
        peak_mib: of the device's memory.
        floor_ms: of the step's products at the GPU's matmul peak and of its currents at the GPU's
            bandwidth, one after the other.
    """

    step_ms: float
    peak_mib: float
    floor_ms: float


def main(arguments: list[str] | None = None) -> int:
    """Print tables of medians of paired ratios with their spread; 2 without a GPU."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], default=[])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--packed", type=int, nargs="*", default=[1, 2, 4])
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench-gpu needs a CUDA device, and torch sees none", file=sys.stderr)
        return 2
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n"
    )
    print(HEADER)
    for case in chosen.cases or CASES:
        for precision in dict.fromkeys((recipe(CASES[case][0]).train.precision, "float32")):
            found: dict[str, list[Figures]] = {name: [] for name in BACKENDS}
            for _ in range(chosen.pairs):
                for backend in BACKENDS:
                    found[backend].append(in_process(case, backend, precision))
            print("\n".join(rows(case, precision, found)), flush=True)
    if chosen.packed:
        packed(chosen.packed)
    return 0


COLUMNS = (
    "case", "precision", "backend", "step, ms", "peak, MiB", "`cuda` is faster by",
    "and takes memory", "of the roofline",
)  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def rows(case: str, precision: str, found: dict[str, list[Figures]]) -> list[str]:
    """A line a backend: medians, and how much faster ours is in pairs (least to most)."""
    lines = []
    for backend, theirs in found.items():
        step_ms = statistics.median(x.step_ms for x in theirs)
        peak_mib = statistics.median(x.peak_mib for x in theirs)
        share = statistics.median(x.floor_ms / x.step_ms for x in theirs)
        faster = memory = ""
        if backend != OURS:
            pairs = list(zip(theirs, found[OURS], strict=True))
            ratios = sorted(a.step_ms / b.step_ms for a, b in pairs)
            faster = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            memory = f"{statistics.median(b.peak_mib / a.peak_mib for a, b in pairs):.2f}"
        lines.append(
            f"| {case} | {precision} | {backend} | {step_ms:.2f} | {peak_mib:.0f} | {faster} "
            f"| {memory} | {share:.0%} |"
        )
    return lines


def in_process(case: str, backend: str, precision: str) -> Figures:
    """Measure in a fresh process."""
    with start("step", case, backend, precision) as process:
        out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{case}, {backend}, {precision}: the measuring process failed")
    return Figures(**json.loads(out.splitlines()[-1]))


def start(*words: str) -> subprocess.Popen[str]:
    """A process of this module that measures; the third word is its backend."""
    environment = os.environ | dict.fromkeys(CHOICES, BACKENDS[words[2]])
    return subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.gpu", "--", *words],
        cwd=Path(__file__).parents[2], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def packed(counts: list[int]) -> None:
    """Print the throughput of several processes on one GPU against one's."""
    print(f"\n{PACKED}: samples a second of several trials on one GPU, and against one trial\n")
    print("| backend | precision | trials | samples/s | against one |\n|---|---|---|---|---|")
    for precision in ("fp16", "float32"):
        for backend in BACKENDS:
            alone = 0.0
            for count in counts:
                total = together(count, backend, precision)
                alone = alone or total / count
                print(
                    f"| {backend} | {precision} | {count} | {total:.0f} | {total / alone:.2f} |",
                    flush=True,
                )


def together(count: int, backend: str, precision: str) -> float:
    """Samples a second of so many processes that train at the same time."""
    running = [start("throughput", PACKED, backend, precision) for _ in range(count)]
    for process in running:  # each says when it is warm
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outs = [process.stdin for process in running]
    for out in outs:
        assert out is not None
        out.write("go\n")
        out.flush()
    rates = [float(process.communicate()[0].splitlines()[-1]) for process in running]
    return sum(rates)


class Trial:
    """A network that trains on one random batch, on a device."""

    def __init__(
        self, config: TrialConfig, batch: int, backend: str, precision: str, device: torch.device
    ) -> None:
        """Build it; `backend` is a name of ours or `spikingjelly`."""
        model = config.model
        name = "torch" if backend == "spikingjelly" else backend
        self.train = TrainConfig.model_validate({"neuron_backend": name, "precision": precision})
        self.device = device
        torch.manual_seed(0)
        self.model = build_model(model).to(device).train()
        found = use_backend(self.model, self.train, device)
        if found != name:
            raise RuntimeError(f"backend {name} cannot run here")
        self.optimization = Optimization(self.model, self.train, device, ALONE)
        shape = (model.in_channels, model.image_size, model.image_size)
        self.x = torch.randn(batch, *shape, device=device)
        if model.event_data:
            mean = torch.full((batch, model.timesteps, *shape), 0.2, device=device)
            self.x = torch.poisson(mean)
        self.y = torch.randint(0, model.num_classes, (batch,), device=device)

    def step(self) -> None:
        """Train a step."""
        self.optimization.step(self.x, self.y, 1.0)

    def forward(self) -> None:
        """Pass the batch through the network."""
        with autocast(self.device, self.train.precision):
            self.model(self.x)

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@torch.no_grad()
def current_values(model: nn.Module, run: Callable[[], object]) -> int:
    """How many currents there are in all layers when `run` passes a batch through them."""
    sizes: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _m, _x, out: sizes.append(out.numel()))
        for module in model.modules()
        if isinstance(module, (Synapses, nn.Linear))
    ]
    run()
    for hook in hooks:
        hook.remove()
    return sum(sizes)


def measure(
    config: TrialConfig, batch: int, backend: str, precision: str, device: torch.device
) -> Figures:
    """Time, memory and least time of a training step."""
    trial = Trial(config, batch, backend, precision, device)
    for _ in range(WARM_STEPS):
        trial.step()
    trial.wait()
    reset_peak_memory(device)
    times_ms = [timed_ms(trial.step, trial.wait) for _ in range(STEPS)]
    peak_mib = peak_memory_mib(device)
    values = current_values(trial.model, trial.forward)
    del trial
    dtype = DTYPES[precision]
    floor = floor_ms(config.model, batch, values, dtype, device)
    return Figures(statistics.median(times_ms), peak_mib, floor)


def floor_ms(
    model: ModelConfig, batch: int, values: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Of a training step: its dense products at the peak, its currents at the bandwidth.

    Args:
        model: the network.
        batch: samples.
        values: of all layers' currents.
        dtype: of products and currents.
        device: whose peak and bandwidth are measured.
    """
    flops_ms, bytes_ms = peaks(dtype, device)
    products = 6 * batch * total_macs(model)  # forward and both gradients, 2 operations each
    return products * flops_ms + _PASSES * values * dtype.itemsize * bytes_ms


def timed_ms(work: Callable[[], object], wait: Callable[[], None]) -> float:
    """Wall time from call to completion."""
    begin = time.perf_counter()
    work()
    wait()
    return 1e3 * (time.perf_counter() - begin)


def peaks(dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """Milliseconds of an operation of a large product, and of a byte of a large copy; measured."""
    is_gpu = device.type == "cuda"
    size, length = (8192, 2**28) if is_gpu else (1024, 2**25)  # a CPU's caches hold 2^25 floats not
    wait = torch.cuda.synchronize if is_gpu else lambda: None
    torch.backends.cuda.matmul.allow_tf32 = True  # as convolutions in float32 may by default
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    source = torch.zeros(length, device=device)
    target = torch.empty_like(source)
    product_ms = min(timed_ms(lambda: torch.mm(a, b), wait) for _ in range(10))
    copy_ms = min(timed_ms(lambda: target.copy_(source), wait) for _ in range(10))
    return product_ms / (2 * size**3), copy_ms / (2 * source.nbytes)


def throughput(case: str, backend: str, precision: str) -> float:
    """Samples a second, from when the parent process says so."""
    name, batch = CASES[case]
    trial = Trial(recipe(name), batch, backend, precision, torch.device("cuda"))
    for _ in range(WARM_STEPS):
        trial.step()
    trial.wait()
    print("ready", flush=True)
    sys.stdin.readline()
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < PACKED_S:
        trial.step()
        trial.wait()
        steps += 1
    return steps * batch / (time.perf_counter() - begin)


def work(task: str, case: str, backend: str, precision: str) -> Any:
    """What a measuring process prints."""
    if task == "throughput":
        return throughput(case, backend, precision)
    name, batch = CASES[case]
    return json.dumps(
        measure(recipe(name), batch, backend, precision, torch.device("cuda"))._asdict()
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--"]:
        print(work(*sys.argv[2:]))
    else:
        sys.exit(main())
