"""The ledger: what it keeps, what it refuses, and that any Optuna tool reads the same."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from search import study
from search.lease import LeaseLostError
from search.loading import load
from search.study import Ledger, LedgerError
from spaces.schema import Objective
from trainables.errors import InputError

OBJECTIVES = (
    Objective(metric="val_top1", mode="max"),
    Objective(metric="energy_mj", mode="min"),
)
DISTRIBUTIONS = {
    "model.width": CategoricalDistribution([16, 32]),
    "train.lr": FloatDistribution(1e-4, 1e-2, log=True),
}


def add(ledger: Ledger, width: int = 16, lr: float = 1e-3) -> int:
    params = {"model.width": width, "train.lr": lr}
    return ledger.add(params, DISTRIBUTIONS, {"model": {"width": width}}, f"{width:016x}").number


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    ledger = Ledger.create(url, "s", OBJECTIVES, {"seed": 3})
    yield ledger
    ledger.close()


def test_everything_is_there_after_reopening(url: str, ledger: Ledger) -> None:
    number = add(ledger)
    ledger.report(number, 1, {"val_top1": 50.0, "energy_mj": 2.0}, {"head_lif": 0.25})
    ledger.report(number, 2, {"val_top1": 60.123456789012345, "energy_mj": 1.5}, {"head_lif": 0.5})
    ledger.retry(number)
    ledger.finish(number, "stopped", "asha@2")
    add(ledger, 32)
    before = ledger.records
    ledger.close()
    again = Ledger.open(url, "s", OBJECTIVES)
    assert again.records == before
    assert again.facts["seed"] == 3
    assert again.search_id == ledger.search_id
    first = again.record(0)
    assert (first.state, first.reason, first.attempt) == ("stopped", "asha@2", 2)
    assert [e.metrics["val_top1"] for e in first.epochs] == [50.0, 60.123456789012345]
    assert first.extra["layer_rates"] == {"head_lif": 0.5}
    assert again.record(1).state == "running"


def test_where_a_trial_was_spared_and_trained_is_remembered_with_the_epoch(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    ledger = Ledger.create(url, "s", OBJECTIVES, {})
    number = add(ledger)
    ledger.report(number, 1, {"val_top1": 1.0, "energy_mj": 1.0}, spared="asha@1")
    ledger.report(number, 2, {"val_top1": 2.0, "energy_mj": 1.0}, host="gpu-7")
    known = ledger.record(number)
    ledger.close()
    again = Ledger.open(url, "s", OBJECTIVES).record(number)
    assert again == known
    assert again.spared == known.epochs[0]
    assert known.epochs[0].spared == "asha@1"
    assert known.epochs[1].spared == ""
    assert [e.host for e in known.epochs] == ["", "gpu-7"]
    assert known.hosts == ["gpu-7"]


def test_optuna_reads_the_same_values_and_best_trials(url: str, ledger: Ledger) -> None:
    for width, top1, energy in ((16, 80.0, 1.0), (32, 90.0, 2.0), (16, 70.0, 3.0)):
        number = add(ledger, width)
        ledger.report(number, 1, {"val_top1": top1, "energy_mj": energy})
        ledger.finish(number, "finished", "completed")
    study = optuna.load_study(storage=url, study_name="s")
    assert [t.number for t in study.best_trials] == [0, 1]
    assert study.trials[1].values == [90.0, 2.0]
    assert study.trials[1].params["model.width"] == 32
    assert study.metric_names == ["val_top1", "energy_mj"]


def test_an_epoch_counts_once_and_the_first_report_wins(ledger: Ledger) -> None:
    number = add(ledger)
    assert ledger.report(number, 1, {"val_top1": 1.0, "energy_mj": 1.0})
    assert not ledger.report(number, 1, {"val_top1": 2.0, "energy_mj": 1.0})
    assert ledger.record(number).last["val_top1"] == 1.0


def test_an_end_is_decided_once(ledger: Ledger) -> None:
    number = add(ledger)
    ledger.report(number, 1, {"val_top1": 1.0, "energy_mj": 1.0})
    first = ledger.finish(number, "finished", "completed")
    assert ledger.finish(number, "failed", "late") == first


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_objective_is_a_failure_in_both_books(
    url: str, ledger: Ledger, value: float
) -> None:
    number = add(ledger)
    ledger.report(number, 1, {"val_top1": value, "energy_mj": 1.0})
    record = ledger.finish(number, "finished", "completed")
    assert record.state == "failed"
    assert not record.counts
    study = optuna.load_study(storage=url, study_name="s")
    assert study.trials[0].state == optuna.trial.TrialState.FAIL
    again = Ledger.open(url, "s", OBJECTIVES).record(number)
    assert math.isnan(again.last["val_top1"]) == math.isnan(value)


def test_a_broken_outcome_constraint_is_infeasible_in_both_books(url: str, ledger: Ledger) -> None:
    for broken in (0.5, -0.5):
        number = add(ledger)
        ledger.report(number, 1, {"val_top1": 90.0 + broken, "energy_mj": 1.0})
        ledger.finish(number, "finished", "completed", {"energy_mj <= 1": broken})
    assert [r.counts for r in ledger.records] == [False, True]
    study = optuna.load_study(storage=url, study_name="s")
    assert [t.number for t in study.best_trials] == [1]


def test_names_are_taken_once(url: str, ledger: Ledger) -> None:
    with pytest.raises(InputError, match="exists already"):
        Ledger.create(url, "s", OBJECTIVES, {})


def test_a_missing_ledger_is_not_started_anew(tmp_path: Path, url: str, ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="no such ledger"):
        Ledger.open(f"sqlite:///{tmp_path / 'other.db'}", "s", OBJECTIVES)
    assert not (tmp_path / "other.db").exists()
    with pytest.raises(LedgerError, match="no search named 'other'"):
        Ledger.open(url, "other", OBJECTIVES)


def test_a_reader_cannot_write(url: str, ledger: Ledger) -> None:
    with pytest.raises(LeaseLostError, match="only the driver that holds"):
        add(Ledger.open(url, "s", OBJECTIVES))
    add(ledger)


def test_another_program_that_adds_a_trial_is_noticed(url: str, ledger: Ledger) -> None:
    optuna.load_study(storage=url, study_name="s").ask()
    with pytest.raises(LedgerError, match="another program"):
        add(ledger)


def test_a_ledger_that_nobody_has_changed_is_not_read_again_when_it_is_taken(
    url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []

    def counted(*given: Any) -> Any:
        reads.append(1)
        return load(*given)

    monkeypatch.setattr(study, "load", counted)
    add(ledger)
    ledger.close()
    again = Ledger.open(url, "s")
    again.take()
    assert len(reads) == 1
    again.close()

    late = Ledger.open(url, "s")
    other = Ledger.open(url, "s", write=True)
    number = add(other, 32)
    other.close()
    before = len(reads)
    late.take()
    assert len(reads) == before + 1
    assert late.record(number).params["model.width"] == 32
    late.close()
