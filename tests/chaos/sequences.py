"""Seeded searches that go wrong in every way a report can, each with its naive account."""

import json
import math
import random
import shutil
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from oracle import NaiveTrial, Oracle, Rules

from search.director import Assignment, Director
from search.folder import SearchFolder
from search.recorded import create_ledger, open_ledger
from search.rules import is_checked
from search.study import Ledger
from search.tracking import Tracker
from search.tracking_events import EventWriter
from spaces import SearchSpec, load_search_space

RULES = 16
OTHERS = [("energy_mj", "min"), ("val_loss", "min"), ("sops_g", "min"), ("val_top5", "max")]
FIRST = [("val_top1", "max"), ("val_loss", "min"), ("firing_rate", "min"), ("firing_rate", "max")]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Recorder(EventWriter):
    """Keeps what MLflow would be told."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[int, dict[str, Any]] = {}

    def _append(self, kind: str, time_s: float, body: Mapping[str, Any]) -> bool:
        assert time_s > 0
        empty = {"metrics": {}, "tags": {}, "params": {}, "status": "RUNNING", "steps": []}
        run = self.runs.setdefault(body["trial"], empty)
        run["params"] |= body.get("params", {})
        run["tags"] |= body.get("tags", {})
        run["status"] = body.get("status", run["status"])
        if kind == "epoch":
            run["metrics"] |= body["metrics"]
            run["steps"].append(body["epoch"])
            if body["nonfinite"]:
                said = f"epoch {body['epoch']}: {', '.join(body['nonfinite'])}"
                run["tags"]["spiketune.nonfinite"] = said
        return True


class Silent:
    def trial_changed(self, record: object) -> None:
        """Nobody looks."""


def rules(seed: int) -> Rules:
    rng = random.Random(f"rules {seed}")
    first = rng.choice(FIRST)
    others = [o for o in OTHERS if o[0] != first[0]]
    objectives = [first, *rng.sample(others, rng.choice((0, 0, 1, 1, 2)))]
    constraint = rng.choice((None, None, ("energy_mj", 1.0), ("firing_rate", 0.5)))
    # What halving does with several objectives is the rule's own affair.
    stopping = rng.choice(("asha", "none")) if len(objectives) == 1 else "none"
    check_share = rng.choice((0.0, 0.4))
    return Rules(objectives, stopping, rng.randint(1, 4), constraint, check_share=check_share)


@lru_cache(maxsize=RULES)
def template(home: Path, seed: int) -> tuple[SearchSpec, Path]:
    """A search that has just been created, to copy: making one is most of a sequence's time."""
    runs = home / f"template-{seed}"
    runs.mkdir(parents=True)
    path = runs / "made.yaml"
    path.write_text(rules(seed).yaml())
    spec = load_search_space(path)
    create_ledger(spec, SearchFolder(runs, "made"), path.read_text()).close()
    return spec, runs


class Sequence:
    """One search driven through a real director and ledger, and through the oracle.

    Args:
        home: a folder for templates and this search, on a fast disk.
        seed: everything about it.
        tracker: told as MLflow would be; a recorder unless given.
    """

    def __init__(self, home: Path, seed: int, tracker: Tracker | None = None) -> None:
        self.rng = random.Random(seed)
        kind = self.rng.randrange(RULES)
        self.rules = rules(kind)
        self.spec, source = template(home, kind)
        self.runs = home / f"runs-{seed}"
        shutil.copytree(source, self.runs)
        self.folder = SearchFolder(self.runs, "made")
        self.oracle = Oracle(self.rules, partial(is_checked, 4, share=self.rules.check_share))
        self.recorder = Recorder()
        self.wrong: list[str] = []
        self._tracker: Any = tracker or self.recorder
        self._clock = Clock()
        self._attempts: dict[int, int] = {}
        self.ledger = Ledger.open(f"sqlite:///{self.folder.database}", "made", write=True)
        self._direct()

    def run(self) -> Ledger:
        """Drive it to an end, interrupted now and then."""
        for _ in range(self.rng.randint(5, 24)):
            chance = self.rng.random()
            if chance < 0.15 or not self._running():
                self._start()
            elif chance < 0.17:
                self._interrupt()
            else:
                self._report()
        return self.ledger

    def close(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.runs)

    def _direct(self) -> None:
        self._director = Director(
            self.spec, self.folder, self.ledger, self._tracker, Silent(), self._clock
        )

    def _interrupt(self) -> None:
        self.ledger.close()
        self.spec, self.ledger = open_ledger(self.folder, write=True)
        self._direct()
        states = {trial.number: trial.state for trial in self.oracle.trials}
        self._attempts = {n: a for n, a in self._attempts.items() if states[n] != "running"}

    def _start(self) -> None:
        self._clock.now_s += 1000.0  # every pause before a retry is over
        assignment = self._director.next_assignment()
        if not isinstance(assignment, Assignment):
            self.wrong.append(f"no trial to start: {assignment}")
            return
        number = assignment.number
        if number == len(self.oracle.trials):
            self.oracle.trials.append(NaiveTrial(number))
        known = len(self.oracle.trials[number].epochs)
        if assignment.config["known_epochs"] != known:
            self.wrong.append(f"trial {number} goes on after {assignment.config['known_epochs']}")
        self._attempts[number] = assignment.config["attempt"]

    def _report(self) -> None:
        late = self.rng.random() < 0.05
        number = self.rng.choice(list(self._attempts) if late else self._running())
        trial = self.oracle.trials[number]
        epoch = len(trial.epochs) + 1
        kind = self.rng.random()
        if kind < 0.05:
            epoch += self.rng.randint(1, 3)
        elif kind < 0.13 and epoch > 1:
            epoch = self.rng.randint(1, epoch - 1)
        rates = self._rates()
        result = self._metrics(epoch)
        if kind > 0.98:
            result = {"failure": "bad_data", "message": "made", "done": True}
            rates = None
        given = dict(result)
        if rates is not None:
            given["layer_rates"] = json.dumps({f"l{i}": r for i, r in enumerate(rates)})
        stop = self._director.report(number, given, self._attempts[number])
        if stop != self.oracle.report(number, result, rates):
            self.wrong.append(f"trial {number}, epoch {epoch}: the report was answered {stop}")
        if stop and trial.state == "running":
            del self._attempts[number]  # lost: it starts again

    def _running(self) -> list[int]:
        return [n for n in self._attempts if self.oracle.trials[n].state == "running"]

    def _metrics(self, epoch: int) -> dict[str, Any]:
        names = {"val_top1", "val_loss", "train_loss", "energy_mj", "val_top5", "sops_g"}
        result: dict[str, Any] = {name: self._value(name) for name in sorted(names)}
        result["firing_rate"] = self._value("firing_rate")
        for name in list(result):
            if self.rng.random() < 0.01:
                del result[name]
        steps = self.rng.choice((40, 120))
        done = epoch >= self.rules.epochs
        return {**result, "epoch": epoch, "num_steps": steps, "done": done, "note": "not a metric"}

    def _value(self, name: str) -> float:
        if self.rng.random() < 0.015:
            # The first objective's good infinity is left to the stopping rule's own tests.
            good = [mode for metric, mode in self.rules.objectives[:1] if metric == name]
            infinities = {"max": [-math.inf], "min": [math.inf]}
            both = [math.inf, -math.inf]
            return self.rng.choice([math.nan, *(infinities[good[0]] if good else both)])
        if name == "firing_rate":
            return self.rng.choice((0.0, 0.0, 0.25, 0.5, 0.75))
        scale = self.rng.choice((1.0, 1.0, 0.1, 1e-300))
        return self.rng.choice((-1.0, 0.0, 0.5, 1.0, 1.5, 2.0)) * scale

    def _rates(self) -> list[float] | None:
        dead = self.rng.random() < 0.04
        alive = (None, [0.1, 0.3], [0.0, 0.2])
        return self.rng.choice(([0.0, 0.0], [1.0, 0.9995]) if dead else alive)
