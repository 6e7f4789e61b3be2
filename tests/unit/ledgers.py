"""Searches made by hand, without Ray: a folder, its ledger, and what happened in it."""

from pathlib import Path

from search.folder import SearchFolder
from search.propose import distributions
from search.recorded import create_ledger
from search.records import Outcome, TrialState
from search.study import Ledger
from spaces import SearchSpec, load_search_space

SPACE = """
name: made
recipe: digits
trial: {train.epochs: 4}
objectives:
  - {metric: val_top1, mode: max}
  - {metric: energy_mj, mode: min}
space:
  model.timesteps: {choice: [1, 2, 4]}
  model.width: {choice: [16, 24, 32]}
  train.lr: {float: [2.0e-3, 2.0e-2], log: true}
sampler: {name: tpe, seed: 4}
stopping: {name: asha, grace_epochs: 2, reduction_factor: 2}
budget: {trials: 12}
"""


def made_spec(folder: Path, *overrides: str, text: str = SPACE) -> SearchSpec:
    path = folder / "made.yaml"
    path.write_text(text)
    return load_search_space(path, overrides)


def made_search(runs: Path, *overrides: str) -> tuple[SearchSpec, SearchFolder, Ledger]:
    runs.mkdir(exist_ok=True)
    spec, folder = made_spec(runs, *overrides), SearchFolder(runs, "made")
    return spec, folder, create_ledger(spec, folder, SPACE)


def add_trial(
    spec: SearchSpec, ledger: Ledger, width: int, epochs: int, end: TrialState = "running"
) -> int:
    params = {"model.timesteps": 2, "model.width": width, "train.lr": 0.004 + 0.001 * width / 32}
    config = spec.trial_config(params)
    number = ledger.add(
        params,
        distributions(spec.search_space, params),
        config.model_dump(mode="json"),
        config.config_hash(),
    ).number
    for epoch in range(1, epochs + 1):
        last = epoch == epochs and end not in ("running", "failed")
        ledger.report(
            number,
            epoch,
            {"val_top1": 50.0 + width + epoch / 3, "energy_mj": width / 7, "train_loss": 1 / epoch},
            {"head_lif": 0.25},
            Outcome(end, f"{end}@{epoch}", {"energy_mj <= 9": -1.0}) if last else None,
        )
    if end == "failed":
        ledger.finish(number, "failed", "nan_loss")
    return number


def fill(spec: SearchSpec, ledger: Ledger) -> None:
    add_trial(spec, ledger, 16, 4, "finished")
    add_trial(spec, ledger, 24, 2, "stopped")
    add_trial(spec, ledger, 32, 1, "failed")
    running = add_trial(spec, ledger, 32, 3)
    ledger.interrupt(running, "worker_lost", charged=True)
    ledger.retry(running)
