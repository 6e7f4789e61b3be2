"""A naive account of what a search must record, written without the product's own rules.

Nothing here is imported from `search` or `spaces`: each rule is said again, the slow and plain way.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Metrics = dict[str, float]
REPORTED = (
    "train_loss", "val_loss", "val_top1", "val_top5", "energy_mj", "sops_g", "firing_rate",
    "params_m", "images_per_s", "peak_memory_mib", "epoch_s",
)  # fmt: skip
SETTLED_STEPS = 100
LATEST = 8  # four rounds of two trials


@dataclass
class Rules:
    """What a search was asked for."""

    objectives: list[tuple[str, str]]
    stopping: str
    epochs: int
    constraint: tuple[str, float] | None = None
    max_retries: int = 2
    check_share: float = 0.0

    def yaml(self) -> str:
        listed = "".join(f"\n  - {{metric: {m}, mode: {way}}}" for m, way in self.objectives)
        lines = [
            "name: made",
            "recipe: digits",
            f"trial: {{train.epochs: {self.epochs}, train.cooldown_epochs: 0}}",
            f"objectives:{listed}",
            "space:",
            "  model.width: {choice: [16, 24, 32]}",
            "  train.lr: {float: [2.0e-3, 2.0e-2], log: true}",
            "sampler: {name: random, seed: 4}",
            f"stopping: {{name: {self.stopping}, grace_epochs: 1, reduction_factor: 2, "
            f"check_share: {self.check_share}}}",
            "budget: {trials: 50}",
        ]
        if self.constraint:
            lines.append(f"constraints: ['{self.constraint[0]} <= {self.constraint[1]}']")
        return "\n".join(lines) + "\n"


@dataclass
class NaiveTrial:
    """What is known of one trial."""

    number: int
    state: str = "running"
    reason: str = ""
    feasible: bool = True
    epochs: list[Metrics] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    charged: int = 0
    spared_at: int | None = None


class Oracle:
    """Follows one search, report by report.

    Args:
        rules: what was asked for.
        is_checked: whether a trial, by its number, would run on if it were to be stopped.
    """

    def __init__(self, rules: Rules, is_checked: Callable[[int], bool]) -> None:
        self.rules = rules
        self.is_checked = is_checked
        self.trials: list[NaiveTrial] = []

    def report(self, number: int, result: dict[str, Any], rates: list[float] | None) -> bool:
        """Whether the trial must end."""
        trial = self.trials[number]
        if trial.state != "running":
            return True
        if "failure" in result:
            self._end(trial, "failed", result["failure"])
            return True
        epoch = result["epoch"]
        if epoch <= len(trial.epochs):
            if result["done"]:
                self._end(trial, "finished", "completed")
            return bool(result["done"])
        if epoch > len(trial.epochs) + 1:
            trial.charged += 1
            if trial.charged > self.rules.max_retries:
                self._end(trial, "failed", "missing_epoch")
            return True
        trial.epochs.append({k: float(v) for k, v in result.items() if k in REPORTED})
        if rates is not None:
            trial.rates = rates
        self._decide(trial, result)
        return trial.state != "running"

    def values(self, trial: NaiveTrial) -> list[float] | None:
        """What Optuna must show: the last epoch's, where the trial ended well."""
        if trial.state not in ("finished", "stopped"):
            return None
        return [trial.epochs[-1][metric] for metric, _ in self.rules.objectives]

    def counting(self) -> list[NaiveTrial]:
        return [t for t in self.trials if self.values(t) is not None and t.feasible]

    def pareto(self) -> set[int]:
        members = self.counting()
        return {t.number for t in members if not any(self._dominates(o, t) for o in members)}

    def ranking(self) -> list[int]:
        """Numbers, best first, by selection."""
        left, order = self.counting(), []
        while left:
            top = left[0]
            for other in left[1:]:
                if self._before(other, top):
                    top = other
            order.append(top.number)
            left.remove(top)
        return order

    def latest(self, trial: NaiveTrial) -> Metrics:
        """What MLflow must show: each metric's last finite value."""
        shown: Metrics = {}
        for metrics in trial.epochs:
            shown |= {k: v for k, v in metrics.items() if math.isfinite(v)}
        return shown

    def nonfinite(self, trial: NaiveTrial) -> str | None:
        """What MLflow must say of values it cannot hold."""
        said = None
        for epoch, metrics in enumerate(trial.epochs, start=1):
            bad = sorted(k for k, v in metrics.items() if not math.isfinite(v))
            if bad:
                said = f"epoch {epoch}: {', '.join(bad)}"
        return said

    def _decide(self, trial: NaiveTrial, result: dict[str, Any]) -> None:
        reason = self._unhealthy(trial, result["num_steps"])
        if reason:
            self._end(trial, "failed", reason)
        elif result["done"]:
            self._end(trial, "finished", "completed")
        elif self._loses(trial) and self.is_checked(trial.number):
            trial.spared_at = result["epoch"]
        elif self._loses(trial):
            self._end(trial, "stopped", f"asha@{result['epoch']}")

    def _end(self, trial: NaiveTrial, state: str, reason: str) -> None:
        last = trial.epochs[-1] if trial.epochs else {}
        values = [last.get(metric, math.nan) for metric, _ in self.rules.objectives]
        if state != "failed" and not all(math.isfinite(v) for v in values):
            state, reason = "failed", f"missing_objective ({reason})"
        trial.state, trial.reason = state, reason
        if self.rules.constraint and last:
            metric, most = self.rules.constraint
            value = last.get(metric, math.nan)
            trial.feasible = math.isfinite(value) and value <= most

    def _unhealthy(self, trial: NaiveTrial, num_steps: int) -> str:
        last, metric = trial.epochs[-1], self.rules.objectives[0][0]
        for name in (metric, "train_loss", "val_loss"):
            if not math.isfinite(last.get(name, 0.0)):
                return f"nan_{name}"
        if metric not in last:
            return f"missing_{metric}"
        fired = any(epoch.get("firing_rate", 0.0) > 0.0 for epoch in trial.epochs)
        if trial.rates and (fired or num_steps >= SETTLED_STEPS):
            if all(rate == 0.0 for rate in trial.rates):
                return "silent_network"
            if all(rate >= 0.999 for rate in trial.rates):
                return "saturated_network"
        return ""

    def _loses(self, trial: NaiveTrial) -> bool:
        epoch = len(trial.epochs)
        if self.rules.stopping != "asha" or epoch not in (1, 2, 4, 8) or epoch >= self.rules.epochs:
            return False
        if trial.spared_at is not None:
            return False
        reached = [
            t
            for t in self.trials
            if len(t.epochs) >= epoch and (t.spared_at is None or t.spared_at >= epoch)
        ]
        latest = [t for t in reached if t.number <= trial.number][-LATEST:]
        return any(self._behind(trial, group, epoch) for group in (reached, latest))

    def _behind(self, trial: NaiveTrial, group: list[NaiveTrial], epoch: int) -> bool:
        ahead = [t for t in group if t is not trial and self._ahead(t, trial, epoch)]
        return len(ahead) >= max(1, len(group) // 2)

    def _ahead(self, other: NaiveTrial, trial: NaiveTrial, epoch: int) -> bool:
        broken = self._broken(other.epochs[epoch - 1]), self._broken(trial.epochs[epoch - 1])
        if broken[0] != broken[1]:
            return broken[0] < broken[1]
        metric, mode = self.rules.objectives[0]
        mine = trial.epochs[epoch - 1][metric]
        theirs = other.epochs[epoch - 1].get(metric, math.nan)
        if not math.isfinite(theirs):
            return False
        if theirs == mine:
            return other.number < trial.number
        return theirs > mine if mode == "max" else theirs < mine

    def _broken(self, metrics: Metrics) -> float:
        """By how much the outcome constraint is."""
        if self.rules.constraint is None:
            return 0.0
        metric, most = self.rules.constraint
        value = metrics.get(metric, math.nan)
        return max(0.0, value - most) if math.isfinite(value) else math.inf

    def _dominates(self, one: NaiveTrial, two: NaiveTrial) -> bool:
        first, second = self.values(one) or [], self.values(two) or []
        no_worse = better = 0
        for (_, mode), a, b in zip(self.rules.objectives, first, second, strict=True):
            no_worse += a == b or (a > b) == (mode == "max")
            better += a != b and (a > b) == (mode == "max")
        return no_worse == len(first) and better > 0

    def _before(self, one: NaiveTrial, two: NaiveTrial) -> bool:
        first, second = self.values(one) or [], self.values(two) or []
        for (_, mode), a, b in zip(self.rules.objectives, first, second, strict=True):
            if a != b:
                return (a > b) == (mode == "max")
        return one.number < two.number
