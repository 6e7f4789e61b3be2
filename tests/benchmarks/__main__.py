"""`make bench`: what a trial, a proposal, an event and a ledger cost on this machine."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from search.propose import make_proposer
from search.records import EpochRecord, TrialRecord
from spaces import SearchSpec, load_search_space
from tests.benchmarks import ledger_scale, steps, tracking_outage, trial_overhead
from trainables.config import ModelConfig
from trainables.model import build_model

REPEATS = 7
DIGITS = Path(__file__).parents[2] / "spaces" / "digits.yaml"


def main() -> None:
    """Print every figure with its spread."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, one thread")
    training_steps()
    steps.main([])
    trial_overhead.main()
    proposals()
    tracking_outage.main()
    ledger_scale.main()


def training_steps() -> None:
    """Training step of a mode against STAtten's, paired: same input, alternating order."""
    x, y = torch.randn(32, 1, 16, 16), torch.randint(0, 10, (32,))
    steps = {mode: training_step(mode, x, y) for mode in ("statten", "sdt", "ssa")}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {mode: [] for mode in steps}
    for _ in range(REPEATS):
        for mode, step in steps.items():
            start = time.perf_counter()
            step()
            times[mode].append(time.perf_counter() - start)
    for mode, taken in times.items():
        ratios = [a / b for a, b in zip(taken, times["statten"], strict=True)]
        print(
            f"step {mode:8} {1e3 * statistics.median(taken):7.1f} ms, "
            f"{statistics.median(ratios):.2f} (± {statistics.pstdev(ratios):.2f}) of statten"
        )


def training_step(mode: str, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """A step of a network of width 64 at 4 timesteps."""
    config = ModelConfig.model_validate(
        {"attention": mode, "width": 64, "depth": 1, "image_size": 16, "in_channels": 1}
        | {"pooling": "1100", "timesteps": 4, "block_size": 2}
    )
    model = build_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(model(x).mean(0), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def proposals() -> None:
    """A proposal of each sampler after so many finished trials, one more before each."""
    spec = load_search_space(DIGITS, ("space.train.lr.float=[1.0e-4, 1.0e-1]",))
    for name, sizes in (
        ("random", (20, 1000, 10_000)),
        ("gp", (20, 200, 1000, 10_000)),
        ("tpe", (20, 200)),
    ):
        chosen = spec.model_copy(update={"sampler": spec.sampler.model_copy(update={"name": name})})
        figures = []
        for num_trials in sizes:
            proposer = make_proposer(chosen, (1, 3))
            records = [finished(number, chosen) for number in range(num_trials)]
            proposer.propose(records)  # reads them all, once a search
            taken = []
            for _ in range(REPEATS):
                records.append(finished(len(records), chosen))
                start = time.perf_counter()
                proposer.propose(records)
                taken.append(time.perf_counter() - start)
            figures.append(f"{1e3 * statistics.median(taken):.1f} ms after {num_trials:,} trials")
        print(f"proposal {name:8} {', '.join(figures)}")


def finished(number: int, spec: SearchSpec) -> TrialRecord:
    """A third of the trials go on at each rung."""
    params = spec.search_space.sample(seeded(number))
    last = 8 if number % 9 == 0 else 3 if number % 3 == 0 else 1
    epochs = tuple(EpochRecord(e, metrics(number), 0.0) for e in range(1, last + 1))
    return TrialRecord(number, params, {}, "", "finished", "", 1, epochs, 0.0, 1.0)


def metrics(number: int) -> dict[str, float]:
    return {"val_top1": 50.0 + number % 17, "energy_mj": 1e-3 * (1 + number % 5)}


def seeded(number: int) -> np.random.Generator:
    return np.random.default_rng(number)


if __name__ == "__main__":
    main()
