"""How well scores before training rank networks by what they reach after it.

Draws random configurations of a shipped search space, reduced to what two cores can train, scores
each in several ways and trains it. Writes one JSON file a task and seed into `--results`; what is
there is not trained again, only scores that it lacks are added. `python -m
tests.benchmarks.screening --data DIR --task digits --seed 0`; without `--task` it prints the tables
of all that lies there.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

from spaces import SearchSpec, load_search_space
from trainables.config import TrialConfig
from trainables.cost import parameter_count, total_macs
from trainables.launch import train_alone
from trainables.screening import Similarity, hamming, sparsity_aware, spike_diversity

SPACES = Path(__file__).parents[2] / "spaces"
RESULTS = Path(__file__).parent / "screening"
GROUP = 4  # candidates of which a screen keeps one
RESAMPLES = 500

# What is changed of the shipped spaces, and how many configurations are drawn.
TASKS: dict[str, tuple[int, tuple[str, ...]]] = {
    "digits": (16, ("trial.data.test_frac=0.5", "trial.train.batch_size=64")),
    "digits_dvs": (
        16,
        (
            "trial.train.epochs=6",
            "trial.train.batch_size=16",
            "trial.data.test_frac=0.5",
            "space.model.width.choice=[16, 32, 64]",
            "space.model.timesteps.choice=[4, 6, 8]",
        ),
    ),
    "cifar10": (
        16,
        (
            "trial.train.epochs=3",
            "trial.train.warmup_epochs=0",
            "trial.train.mixup=0.0",
            "trial.train.mixup_off_epoch=0",
            "trial.data.randaugment=none",
            "trial.data.val_frac=0.4",
            "trial.model.image_size=16",
            'trial.model.pooling="1100"',
            "space.model.timesteps.choice=[1, 2, 4]",
            "space.model.depth.int=[1, 2]",
            "space.model.width.choice=[16, 32, 64]",
            "space.model.block_size.choice=[1, 2, 4]",
            "space.train.lr.float=[2.0e-3, 8.0e-3]",
        ),
    ),
}


Score = Callable[[TrialConfig, int], float]
Figure = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


def mean(similarity: Similarity) -> Similarity:
    """A similarity a neuron and timestep, so that size does not count."""
    return lambda spikes_BM: similarity(spikes_BM) / spikes_BM.shape[1]


def by_spikes(similarity: Similarity) -> Score:
    return lambda config, seed: spike_diversity(config, seed, similarity)


SCORES: dict[str, Score] = {
    "Hamming, mean": by_spikes(mean(hamming)),
    "Hamming, sum": by_spikes(hamming),
    "sparsity-aware, mean": by_spikes(mean(sparsity_aware)),
    "sparsity-aware, mean, 4 seeds": lambda config, seed: float(
        np.mean([spike_diversity(config, 1000 * seed + k, mean(sparsity_aware)) for k in range(4)])
    ),
    "sparsity-aware, sum": by_spikes(sparsity_aware),
    "log parameters": lambda config, _: math.log(parameter_count(config.model)),
    "log MACs": lambda config, _: math.log(total_macs(config.model)),
}


def main() -> None:
    """Measure what is asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--task", choices=sorted(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.task:
        path = asked.results / f"{asked.task}-{asked.seed}.json"
        if not path.exists():
            rows = measured(task_space(asked.task, asked.data), asked.task, asked.seed)
            write(path, rows)
        write(path, rescored(task_space(asked.task, asked.data), json.loads(path.read_text())))
    for path in sorted(asked.results.glob("*.json")):
        print("\n".join(table(path.stem, json.loads(path.read_text()))))


def task_space(task: str, data: Path | None) -> SearchSpec:
    root = [] if data is None else [f"trial.data.root={json.dumps(str(data))}"]
    if task.startswith("digits"):
        root = []
    return load_search_space(SPACES / f"{task}.yaml", [*TASKS[task][1], *root])


def measured(spec: SearchSpec, task: str, seed: int) -> list[dict[str, Any]]:
    """Scores and results of random configurations."""
    rng = np.random.default_rng([seed, len(task)])
    rows: list[dict[str, Any]] = []
    for number in range(TASKS[task][0]):
        params = spec.search_space.sample(rng)
        config = spec.trial_config(params)
        scores = {name: score(config, number) for name, score in SCORES.items()}
        start = time.perf_counter()
        spike_diversity(config, number)
        score_s = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            *_, last = train_alone(config, Path(folder))
        trained_s = time.perf_counter() - start - score_s
        rows.append(
            {
                "params": params,
                "scores": scores,
                "val_top1": last["val_top1"],
                "energy_mj": last["energy_mj"],
                "score_s": round(score_s, 3),
                "trained_s": round(trained_s, 1),
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def rescored(spec: SearchSpec, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with the scores that this file has now."""
    for number, row in enumerate(rows):
        config = spec.trial_config(row["params"])
        known = row["scores"]
        row["scores"] = {
            k: known[k] if k in known else f(config, number) for k, f in SCORES.items()
        }
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown of one measurement; spreads are standard deviations over bootstrap samples."""
    reached = np.array([row["val_top1"] for row in rows])
    macs = np.array([row["scores"]["log MACs"] for row in rows])
    seconds = {key: np.median([row[key] for row in rows]) for key in ("score_s", "trained_s")}
    lines = [
        f"## {title}: {len(rows)} configurations, {reached.min():.1f} to {reached.max():.1f} %, "
        f"mean {reached.mean():.1f} %; a score takes {seconds['score_s']:.2f} s, training "
        f"{seconds['trained_s']:.0f} s (medians)",
        "",
        f"| score | Spearman | Kendall | Spearman beyond MACs | best of {GROUP}, points gained |",
        "|---|---|---|---|---|",
    ]
    for name in [*rows[0]["scores"], "perfect"]:
        scores = np.array([row["scores"].get(name, row["val_top1"]) for row in rows])
        figures = (spearman, kendall, beyond, gain)
        cells = [spread(figure, scores, reached, macs) for figure in figures]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def spearman(scores: np.ndarray, reached: np.ndarray, _: np.ndarray) -> float:
    return float(spearmanr(scores, reached).statistic)


def kendall(scores: np.ndarray, reached: np.ndarray, _: np.ndarray) -> float:
    return float(kendalltau(scores, reached).statistic)


def beyond(scores: np.ndarray, reached: np.ndarray, macs: np.ndarray) -> float:
    """Partial rank correlation: what a score tells of networks of the same size."""
    both, known, size = (
        float(spearmanr(*pair).statistic)
        for pair in ((scores, reached), (scores, macs), (reached, macs))
    )
    left = (1.0 - known**2) * (1.0 - size**2)
    return (both - known * size) / math.sqrt(left) if left > 1e-9 else math.nan


def gain(scores: np.ndarray, reached: np.ndarray, _: np.ndarray) -> float:
    """Mean accuracy of the best-scored of any few, above that of one drawn from them."""
    # Sorted by score, the one at place i is the best-scored of C(i, GROUP - 1) groups.
    order = reached[np.argsort(scores, kind="stable")]
    weights = np.array([math.comb(place, GROUP - 1) for place in range(len(order))], float)
    return float(weights @ order / weights.sum() - order.mean())


def spread(figure: Figure, *columns: np.ndarray) -> str:
    """A figure and its standard deviation over bootstrap samples."""
    value = figure(*columns)
    if math.isnan(value):
        return "-"
    rng = np.random.default_rng(0)
    num = len(columns[0])
    drawn = (rng.integers(num, size=num) for _ in range(RESAMPLES))
    usable = (d for d in drawn if all(len(set(column[d])) > 1 for column in columns))
    values = [figure(*(column[d] for column in columns)) for d in usable]
    return f"{value:.2f} ± {np.nanstd(values, ddof=1):.2f}"


if __name__ == "__main__":
    main()
