"""Training steps and evaluation of each neuron backend of the CPU against plain torch.

A measurement is a process of its own, backends in turn, so that peak memory is its own and load
from elsewhere meets all. `python -m tests.benchmarks.steps [CASE]... [--precision P] [--pairs N]`.
With `--reference FOLDER` the other side is, in float32, what the papers' code is on a CPU: the same
layers on the neurons of SpikingJelly 0.0.0.0.12, which `uv pip install --no-deps --target FOLDER
spikingjelly==0.0.0.0.12` puts there, a static image repeated for every timestep, torch's AdamW.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch
    from torch import nn

EVENTS = {"event_data": True, "in_channels": 2, "image_size": 64, "width": 128}
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "2-128": ({"width": 128}, 16),
    "2-256": ({"width": 256}, 64),
    "2-512": ({"width": 512}, 16),
    "events T10": (EVENTS | {"timesteps": 10, "block_size": 5}, 4),
    "events T16": (EVENTS | {"timesteps": 16, "block_size": 4}, 4),
}
SMALL = ("2-128",)
PLAIN, FAST = "torch", "cpp"
REFERENCE = "reference"
WARM_STEPS, STEPS = 1, 2


def main(arguments: list[str] | None = None) -> None:
    """Print the medians of paired ratios with their spread."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=list(SMALL), choices=[*CASES, *SMALL])
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--reference", type=Path)
    chosen = parser.parse_args(arguments)
    plain = (PLAIN, chosen.precision)
    if chosen.reference is not None:
        plain = (f"{REFERENCE} {chosen.reference}", "float32")
    for case in chosen.cases:
        pairs = [
            (in_process(case, *plain), in_process(case, FAST, chosen.precision))
            for _ in range(chosen.pairs)
        ]
        show(f"{case} {chosen.precision} {FAST} against {plain[0].split()[0]} {plain[1]}", pairs)


Figures = dict[str, float]


def show(title: str, runs: list[tuple[Figures, Figures]]) -> None:
    print(f"{title}, load {os.getloadavg()[0]:.1f}")
    for key, unit in (
        ("step_cpu_s", "s"), ("step_wall_s", "s"), ("eval_cpu_s", "s"), ("eval_wall_s", "s"),
        ("peak_mib", "MiB"),
    ):  # fmt: skip
        pairs = [(a[key], b[key]) for a, b in runs]
        ratios = sorted(a / b for a, b in pairs)
        before, after = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(
            f"  {key:12} {before:8.2f} {unit} -> {after:8.2f} {unit}: "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )
    share = statistics.median(run["floor_s"] / run["step_wall_s"] for _, run in runs)
    print(
        f"  roofline     {100 * share:.0f} % (plain dense products at the measured peak, currents "
        "at the measured bandwidth; above 100 % where spikes or Winograd's points save products)"
    )


def in_process(case: str, backend: str, precision: str) -> Figures:
    """Measure in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.steps", "--", case, backend, precision]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(case: str, backend: str, precision: str) -> Figures:
    """Seconds of a step and of an evaluation, and the peak above the process before them."""
    import torch

    from tests.benchmarks.gpu import current_values, floor_ms
    from trainables.config import ModelConfig, TrainConfig
    from trainables.memory import peak_memory_mib, resident_mib
    from trainables.model import build_model
    from trainables.model.selection import use_backend
    from trainables.optimization import Optimization
    from trainables.parallel import ALONE
    from trainables.scoring import autocast

    fields, batch = CASES[case]
    config = ModelConfig.model_validate(fields)
    device = torch.device("cpu")
    torch.manual_seed(0)
    model = build_model(config)
    x = torch.randn(batch, config.in_channels, config.image_size, config.image_size)
    if config.event_data:
        shape = (batch, config.timesteps, *x.shape[1:])
        x = torch.poisson(torch.full(shape, 0.2))
    y = torch.randint(0, config.num_classes, (batch,))
    step: Callable[[], object]
    if backend.startswith(REFERENCE):
        forward, step = reference_steps(model, backend.split()[1], x, y, config.timesteps)
        train = TrainConfig()
    else:
        train = TrainConfig.model_validate({"neuron_backend": backend, "precision": precision})
        assert use_backend(model, train, device) == backend
        optimization = Optimization(model, train, device, ALONE)
        forward, step = partial(model, x), partial(optimization.step, x, y, 1.0)
    before_mib = resident_mib("VmRSS")
    assert before_mib is not None

    @torch.no_grad()
    def evaluate() -> None:
        with autocast(device, train.precision):
            forward()

    step_cpu_s, step_wall_s = timed(step)
    peak_mib = peak_memory_mib(device) - before_mib
    model.eval()
    eval_cpu_s, eval_wall_s = timed(evaluate)
    values = current_values(model, evaluate)
    # Half-precision products are computed in float32 here, so its peak is the processor's.
    floor_s = 1e-3 * floor_ms(config, batch, values, torch.float32, device)
    return {
        "step_cpu_s": step_cpu_s, "step_wall_s": step_wall_s, "eval_cpu_s": eval_cpu_s,
        "eval_wall_s": eval_wall_s, "peak_mib": peak_mib, "floor_s": floor_s,
    }  # fmt: skip


def reference_steps(
    model: "nn.Module", folder: str, x: "torch.Tensor", y: "torch.Tensor", timesteps: int
) -> tuple[Callable[[], "torch.Tensor"], Callable[[], None]]:
    """A pass and a step as the papers' code makes them, with its neurons."""
    import spikingjelly
    import torch
    from torch.nn import functional as nnf

    from trainables.model.neurons import SpikingNeuron

    spikingjelly.__path__.append(str(Path(folder) / "spikingjelly"))
    from spikingjelly.clock_driven import functional, neuron

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name.endswith("lif"):
                threshold = float(cast(SpikingNeuron, child).v_threshold)
                node = neuron.MultiStepLIFNode(
                    tau=2.0, v_threshold=threshold, detach_reset=True, backend="torch"
                )
                setattr(module, name, node)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.06)

    def forward() -> torch.Tensor:
        functional.reset_net(model)
        frames = x if x.dim() == 5 else x.unsqueeze(1).repeat(1, timesteps, 1, 1, 1)
        logits: torch.Tensor = model(frames)
        return logits

    def step() -> None:
        optimizer.zero_grad()
        nnf.cross_entropy(forward().mean(0), y).backward()
        optimizer.step()

    return forward, step


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Median CPU and wall seconds, after the first runs."""
    cpu: list[float] = []
    wall: list[float] = []
    for _ in range(WARM_STEPS + STEPS):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        work()
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        wall.append(time.perf_counter() - start)
    return statistics.median(cpu[WARM_STEPS:]), statistics.median(wall[WARM_STEPS:])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--"]:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main()
