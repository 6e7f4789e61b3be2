"""What a search will take before it is paid for: trials, epochs, hours, by simulating it.

The search's own stopping rule decides over drawn learning curves; a trial's seconds are predicted
from its configuration. What the sampler learns is not simulated: points are drawn at random.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import numpy as np

from search.curves import Curve, Floats
from search.records import TrialRecord
from search.results import Mode
from search.rules import course_of, make_rule
from search.simulate import Conditions, Params, simulate
from search.stopping import Decision, promotion
from spaces.schema import Objective, SearchSpec
from trainables.config import TrialConfig
from trainables.prediction import Calibration, predict_epoch_s
from trainables.samples import images_here

# Evaluation of a sample takes this share of a training step's time for one: the forward pass.
EVALUATION = 0.35
START_S = 15.0  # Ray and the first workers
TRIAL_S = 0.1  # from a trial's last epoch to its worker's next first step
EPOCH_S = 0.05  # report, ledger, checkpoint
# A guess, from MACs: fused float32 kernels on a recent card. An earlier search tells better.
GPU_SPEEDUP = 60.0
ROUGH, GUESSED = math.log(2.0), math.log(3.0)
_POOL = 256
_RUNS = 24
_CONFIDENCE = 1.28  # standard deviations: 10 to 90 in a hundred
_SAID_BINS = 3


@dataclass(frozen=True)
class Interval:
    """A figure that is expected, and between what it falls eight times in ten."""

    low: float
    mid: float
    high: float

    def scaled(self, factor: float, off: float = 1.0) -> "Interval":
        """Multiplied by a factor that may be so many times smaller or larger."""
        return Interval(self.low * factor / off, self.mid * factor, self.high * factor * off)


@dataclass(frozen=True)
class Pace:
    """How well the seconds of an epoch are known.

    Attributes:
        factor: real seconds are the predicted ones times this.
        spread: standard deviation of its logarithm.
        source: where it is from, for people.
    """

    factor: float
    spread: float
    source: str


@dataclass(frozen=True)
class Setting:
    """How much a parameter decides of the time.

    Attributes:
        key: the parameter.
        dearest: its value, or range, whose trials take longest.
        ratio: their mean seconds against those of the quickest.
    """

    key: str
    dearest: str
    ratio: float


@dataclass(frozen=True)
class Plan:
    """What a search is expected to take.

    Attributes:
        workers: trials at once.
        trials: that are started.
        epochs: of all trials.
        full_epochs: of as many trials without early stopping.
        work_s: seconds of all trials together.
        wall_s: from the command to its end.
        pace: where seconds are from.
        settings: parameters by how much they decide, most first.
    """

    workers: int
    trials: Interval
    epochs: Interval
    full_epochs: float
    work_s: Interval
    wall_s: Interval
    pace: Pace
    settings: tuple[Setting, ...]


def make_plan(spec: SearchSpec, workers: int, pace: Pace, calibration: Calibration | None) -> Plan:
    """Simulate a search some times.

    Args:
        spec: the search.
        workers: trials that run at once.
        pace: how predicted seconds become real ones.
        calibration: what predicts them; None for the rough model.
    """
    rng = np.random.default_rng(spec.sampler.seed)
    pool = [spec.search_space.sample(rng) for _ in range(_POOL)]
    configs = [spec.trial_config(params) for params in pool]
    seconds = [pace.factor * epoch_s(config, calibration) for config in configs]
    epochs = [config.train.total_epochs for config in configs]
    runs = [_run(spec, pool, seconds, epochs, workers, seed) for seed in range(_RUNS)]
    trials, spent, work, wall = (np.array(column) for column in zip(*runs, strict=True))
    # Seconds that are off are off for all trials alike.
    off = math.exp(_CONFIDENCE * pace.spread)
    return Plan(
        workers=workers,
        trials=_interval(trials),
        epochs=_interval(spent),
        full_epochs=float(np.median(trials)) * fmean(epochs),
        work_s=_interval(work).scaled(1.0, off),
        wall_s=_interval(wall).scaled(1.0, off),
        pace=pace,
        settings=_settings(spec, pool, [s * n for s, n in zip(seconds, epochs, strict=True)]),
    )


def epoch_s(config: TrialConfig, calibration: Calibration | None) -> float:
    """Predicted seconds of an epoch, its evaluation and report included."""
    images = images_here(config.data)
    trained_s = predict_epoch_s(config, images, calibration)
    held = config.data.val_frac / (1.0 - config.data.val_frac)
    return trained_s * (1.0 + EVALUATION * held) + EPOCH_S


def pace_of(calibration: Calibration | None, *, on_gpu: bool) -> Pace:
    """How well seconds are known without an earlier search."""
    if on_gpu:
        return Pace(1.0 / GPU_SPEEDUP, GUESSED, "a guess for GPUs, good to a factor of three")
    if calibration is None:
        return Pace(1.0, ROUGH, "the rough model, good to a factor of two")
    # Errors of single networks average out over a search's.
    return Pace(1.0, calibration.time_error, "steps measured on this machine")


def learnt_pace(
    spec: SearchSpec, records: Sequence[TrialRecord], calibration: Calibration | None, name: str
) -> Pace | None:
    """What an earlier search says of predicted seconds; None when it has reported too little.

    Args:
        spec: the earlier search.
        records: its trials.
        calibration: what predicts.
        name: the search's.
    """
    ratios = []
    for record in records:
        taken = [epoch.metrics["epoch_s"] for epoch in record.epochs if "epoch_s" in epoch.metrics]
        if taken:
            predicted = epoch_s(spec.trial_config(dict(record.params)), calibration)
            ratios.append(math.log((median(taken) + EPOCH_S) / predicted))
    if len(ratios) < _SAID_BINS:
        return None
    spread = float(np.std(ratios, ddof=1) / math.sqrt(len(ratios)))
    return Pace(math.exp(fmean(ratios)), spread, f"the trials of {name}")


@dataclass(frozen=True)
class _Drawn:
    """Learning curves that are drawn: a trial's quality shows the better, the later the epoch."""

    metric: str
    mode: Mode
    num_epochs: int
    draw: Callable[[int], Curve]
    full_training_s: float = 1.0

    def curve(self, params: Params) -> Curve:
        """The curve of a drawn trial."""
        return self.draw(params["index"])

    def regret(self, value: float) -> float:
        """Nobody asks."""
        return -value


@dataclass
class _Scheduled:
    """The search's own stopping rule, over points of the pool."""

    rule: Any
    order: list[int]
    made: int = 0

    def propose(self, records: Sequence[TrialRecord]) -> Params | None:  # noqa: ARG002  # random
        """The next point, until the budget is used."""
        if self.made == len(self.order):
            return None
        self.made += 1
        return {"index": self.order[self.made - 1]}

    def decide(self, records: Sequence[TrialRecord], current: TrialRecord) -> Decision:
        """As the rule says."""
        decision: Decision = self.rule.decide(records, current)
        return decision

    def promotion(self, records: Sequence[TrialRecord], *, last: bool = False) -> int | None:
        """As the rule says, if it pauses."""
        return promotion(self.rule, records, last=last)

    def ended(self, record: TrialRecord) -> None:
        """Nothing."""


def _run(
    spec: SearchSpec,
    pool: Sequence[Params],
    seconds: Sequence[float],
    epochs: Sequence[int],
    workers: int,
    seed: int,
) -> tuple[float, float, float, float]:
    """Trials, epochs, seconds of work and of the clock of one simulated search."""
    rng = np.random.default_rng([spec.sampler.seed, seed])
    full = spec.base_config.train.total_epochs
    mode = spec.stopping_mode
    better = 1.0 if mode == "max" else -1.0
    time_over = np.arange(1, full + 1) / full

    def draw(index: int) -> Curve:
        quality, luck = rng.normal(size=2)
        values = 50.0 + better * (quality + (1.0 - time_over) * luck)
        # Trials of other lengths take as long in as many reports.
        per_report = seconds[index] * epochs[index] / full
        ends_s: Floats = TRIAL_S + per_report * np.arange(1.0, full + 1.0)
        return Curve(values, ends_s)

    course = course_of(spec)
    objective = Objective.model_validate({"metric": course.metric, "mode": course.mode})
    rule = make_rule(
        spec.stopping.name,
        replace(course, objectives=(objective,), constraints=()),
        spec.stopping.check_share,
    )
    order = rng.integers(len(pool), size=_trials(spec)).tolist()
    hours = spec.budget.hours
    budget_s = spec.budget.most_s
    drawn = _Drawn(course.metric, mode, full, draw)
    run = simulate(drawn, _Scheduled(rule, order), Conditions(workers, budget_s), seed)
    lengths = [(len(record.epochs), record.params["index"]) for record in run.records]
    spent = sum(n * epochs[index] / full for n, index in lengths)
    work = sum(n * seconds[index] * epochs[index] / full for n, index in lengths)
    ends = [record.ended_s for record in run.records if record.ended_s is not None]
    wall = max(ends, default=0.0) if hours is None else min(budget_s, max(ends, default=budget_s))
    return float(len(lengths)), float(spent), work, wall + START_S


def _trials(spec: SearchSpec) -> int:
    """As many as the budget allows, or the space has."""
    space = spec.search_space
    count = space.cardinality()
    if count > spec.budget.trials:
        return spec.budget.trials
    return sum(1 for _ in space.enumerate_valid(spec.budget.trials))


def _interval(values: Any) -> Interval:
    low, mid, high = np.quantile(values, [0.1, 0.5, 0.9]).tolist()
    return Interval(low, mid, high)


def _settings(
    spec: SearchSpec, pool: Sequence[Params], costs: Sequence[float]
) -> tuple[Setting, ...]:
    """Each parameter's dearest value against its cheapest, the most decisive first."""
    found = []
    for key, domain in spec.search_space.domains.items():
        pairs = [(p[key], cost) for p, cost in zip(pool, costs, strict=True) if key in p]
        groups: dict[str, list[float]] = {}
        if domain.size <= 12:  # values that can be told apart
            for value, cost in pairs:
                groups.setdefault(str(value), []).append(cost)
        else:
            ordered = sorted(pairs, key=lambda pair: float(pair[0]))
            for part in np.array_split(np.arange(len(ordered)), _SAID_BINS):
                some = [ordered[i] for i in part]
                if some:
                    name = f"{some[0][0]:.4g} to {some[-1][0]:.4g}"
                    groups.setdefault(name, []).extend(cost for _, cost in some)
        means = {name: fmean(group) for name, group in groups.items() if len(group) > 1}
        if len(means) > 1:
            dearest = max(means, key=means.__getitem__)
            found.append(Setting(key, dearest, means[dearest] / min(means.values())))
    return tuple(sorted(found, key=lambda setting: -setting.ratio))
