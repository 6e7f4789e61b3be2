"""Predicted peak memory of training and evaluation against measured, each in a process of its own.

`python -m tests.benchmarks.memory [--seed N] [--each N] [--macs LEAST MOST] [--save FILE]` draws
configurations of three kinds of data, measures each on the CPU and prints how far
`trainables/footprint.py` is off; `--of FILE` prints that of what was measured before. Its constants
were fitted to seeds 3000 and 3002, 40 and 20 of each kind, and to 8 large ones of each of seed 3001
(`--macs 6e10 3e11`).
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from trainables.config import TrialConfig, grid_size
from trainables.cost import total_macs
from trainables.footprint import predicted_memory

# What a network and a batch may be for a kind of data.
KINDS: dict[str, dict[str, Any]] = {
    "digits": {
        "image_size": (8, 16), "in_channels": 1, "width": (16, 32, 64, 96, 128, 192),
        "timesteps": (1, 2, 4, 6, 8), "batch": (16, 32, 64, 128), "eval": (64, 256), "event": False,
    },
    "cifar": {
        "image_size": (32,), "in_channels": 3, "width": (32, 64, 96, 128, 192, 256),
        "timesteps": (1, 2, 4, 6), "batch": (8, 16, 32, 64), "eval": (32, 64, 256), "event": False,
    },
    "events": {
        "image_size": (32, 64), "in_channels": 2, "width": (32, 64, 96, 128, 192),
        "timesteps": (2, 4, 5, 8, 10, 16), "batch": (2, 4, 8, 16), "eval": (4, 8, 32),
        "event": True,
    },
}  # fmt: skip
POOLINGS = ("0011", "1111", "0111", "1100")
MOST_MACS = 5e10  # of a measurement: seconds on one core
MOST_TOKENS = 2**19
PEAKS = ("first_mib", "eval_mib", "again_mib")
# What a worker has imported before its trial; processes are forked with it.
IMPORTED = ("numpy", "trainables.footprint", "trainables.loop", "trainables.scoring")


def drawn(
    kind: str, seed: int, least_macs: float = 0.0, most_macs: float = MOST_MACS
) -> Iterator[TrialConfig]:
    """Random configurations without end, each small enough to take seconds."""
    rng = np.random.default_rng([seed, *kind.encode()])
    of = KINDS[kind]

    def pick(values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    while True:
        timesteps = pick(of["timesteps"])
        backbone = "sdt" if rng.random() < 0.85 else "spikformer"
        attention = pick(("statten", "statten", "sdt", "ssa") if backbone == "sdt" else ("ssa",))
        blocks = [size for size in (1, 2, 4, 5) if timesteps % size == 0]
        model = {
            "timesteps": timesteps, "depth": pick((1, 1, 2, 3)), "width": pick(of["width"]),
            "heads": pick((1, 2, 4, 8)), "block_size": pick(blocks), "attention": attention,
            "mlp_ratio": pick((1, 2, 4, 4)), "pooling": pick(POOLINGS),
            "image_size": pick(of["image_size"]), "in_channels": of["in_channels"],
            "event_data": of["event"], "neuron": pick(("lif", "lif", "plif")),
            "backbone": backbone,
        }  # fmt: skip
        train = {
            "batch_size": pick(of["batch"]), "eval_batch_size": pick(of["eval"]),
            "precision": pick(("float32", "bf16")), "neuron_backend": pick(("torch", "cpp")),
            "recompute": bool(rng.random() < 0.15), "accumulate": pick((1, 1, 1, 2)),
            "ema_decay": pick((0.0, 0.0, 0.0, 0.999)), "device": "cpu",
            "optimizer": "adamw",
        }  # fmt: skip
        data = {"name": "digits_dvs" if of["event"] else "digits"}
        config = TrialConfig.model_validate({"model": model, "train": train, "data": data})
        frames = timesteps * max(train["batch_size"], train["eval_batch_size"])
        tokens = frames * grid_size(config.model) ** 2
        macs = total_macs(config.model)
        work = macs * (6 * train["batch_size"] + 2 * train["eval_batch_size"])
        slow = 6.0 if train["precision"] == "bf16" and train["neuron_backend"] == "torch" else 1.0
        if least_macs <= work * slow <= most_macs and tokens <= MOST_TOKENS:
            yield config


def measure(config: TrialConfig) -> dict[str, float]:
    """Peaks of training and evaluation above the process before the network, MiB."""
    import torch

    import trainables.loop  # noqa: F401  # as a trial's worker has it
    from trainables.memory import peak_memory_mib, reset_peak_memory, resident_mib
    from trainables.model import build_model
    from trainables.model.recompute import set_recompute
    from trainables.model.selection import use_backend
    from trainables.optimization import Optimization
    from trainables.parallel import ALONE
    from trainables.scoring import Scorer

    torch.set_num_threads(1)
    device = torch.device("cpu")
    model, train = config.model, config.train
    torch.manual_seed(0)
    before = resident_mib("RssAnon")
    assert before is not None
    # Pages of libraries are the machine's, not the trial's, and a forked process maps them anew.
    peaks: list[float] = []

    def note() -> None:
        mapped = resident_mib("RssFile")
        assert mapped is not None
        peaks.append(peak_memory_mib(device) - mapped - before)
        assert reset_peak_memory(device)

    assert reset_peak_memory(device)
    network = build_model(model)
    use_backend(network, train, device)
    set_recompute(network, recompute=train.recompute)
    optimization = Optimization(network, train, device, ALONE)

    def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (size, model.in_channels, model.image_size, model.image_size)
        labels = torch.randint(0, model.num_classes, (size,))
        if not model.event_data:
            return torch.rand(shape), labels
        return torch.poisson(torch.full((size, model.timesteps, *shape[1:]), 0.2)), labels

    def step() -> None:
        network.train()
        optimization.step(*batch(train.batch_size), 1.0)
        note()

    step()
    with Scorer(optimization.evaluated, config.energy, train.precision) as scorer:
        for _ in range(2):
            scorer.add(*batch(train.eval_batch_size))
    note()
    step()
    return dict(zip(PEAKS, peaks, strict=True))


def _measured(tree: dict[str, Any]) -> dict[str, Any]:
    config = TrialConfig.model_validate(tree)
    return {"config": tree, **measure(config)}


def measured(configs: list[TrialConfig], processes: int) -> Iterator[dict[str, Any]]:
    """Measure each in a process that has imported all and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    trees = [config.model_dump(mode="json") for config in configs]
    with context.Pool(processes, maxtasksperchild=1) as pool:
        yield from pool.imap(_measured, trees, chunksize=1)


def off(found: dict[str, Any]) -> tuple[float, float, float]:
    """Measured MiB, and the likely and the safe prediction against it."""
    config = TrialConfig.model_validate(found["config"])
    peak_mib = max(found[name] for name in PEAKS)
    predicted = predicted_memory(config, "cpu")
    return peak_mib, predicted.likely_mib / peak_mib, predicted.safe_mib / peak_mib


def show(kind: str, results: list[dict[str, Any]]) -> None:
    """Print a line of a kind's errors."""
    peaks, likely, safe = (np.array(column) for column in zip(*map(off, results), strict=True))
    errors = np.abs(likely - 1.0)
    in_band = int(((likely >= 0.9) & (likely <= 1.25)).sum())
    print(
        f"{kind:8} {len(peaks)} of {peaks.min():.0f} to {peaks.max():.0f} MiB: likely off by "
        f"{100 * np.median(errors):.0f} % (median), {100 * np.quantile(errors, 0.9):.0f} % (nine "
        f"tenths), {100 * (likely.min() - 1):+.0f} to {100 * (likely.max() - 1):+.0f} %, within "
        f"25 %: {int((errors <= 0.25).sum())}, -10 to +25 %: {in_band}; safe {safe.min():.2f} to "
        f"{safe.max():.2f} times, median {np.median(safe):.2f}",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, or read what was measured, and print errors by kind of data."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=30)
    parser.add_argument("--macs", type=float, nargs=2, default=(0.0, MOST_MACS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--of", type=Path)
    chosen = parser.parse_args(arguments)
    results: list[dict[str, Any]] = []
    if chosen.of is not None:
        results = [json.loads(line) for line in chosen.of.read_text().splitlines()]
    else:
        draws = {kind: drawn(kind, chosen.seed, *chosen.macs) for kind in KINDS}
        drawn_of = {kind: list(islice(some, chosen.each)) for kind, some in draws.items()}
        kinds = [kind for kind, configs in drawn_of.items() for _ in configs]
        configs = [config for some in drawn_of.values() for config in some]
        for kind, found in zip(kinds, measured(configs, chosen.processes), strict=True):
            results.append({"kind": kind, **found})
    if chosen.save is not None:
        chosen.save.write_text("".join(json.dumps(found) + "\n" for found in results))
    for kind in KINDS:
        some = [found for found in results if found["kind"] == kind]
        if some:
            show(kind, some)
    show("all", results)


if __name__ == "__main__":
    main()
