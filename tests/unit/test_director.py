"""A search's decisions without Ray: the director, a real ledger, networks that are a formula."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import SPACE, made_search, made_spec

from search.director import WAIT, Assignment, Director
from search.folder import SearchFolder
from search.recorded import check_same, open_ledger
from search.records import TrialRecord
from search.retries import HANG, Loss
from search.study import Ledger
from search.tracking_events import EventWriter
from spaces import SearchSpec
from trainables.config import TrialConfig
from trainables.errors import InputError

LOST = Loss("worker_lost", charged=True)
NODE = Loss("node_lost", charged=False)
EPOCHS = 4
SEVEN = ("budget.trials=7",)


class Recorder(EventWriter):
    """Keeps the events that would go to MLflow."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def _append(self, kind: str, time_s: float, body: Mapping[str, Any]) -> bool:
        assert time_s > 0
        self.events.append((kind, body))
        return True


class Silent:
    def trial_changed(self, record: TrialRecord) -> None:
        """Nobody looks."""


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def direct(spec: SearchSpec, folder: SearchFolder, ledger: Ledger, clock: Clock) -> Director:
    tracker: Any = Recorder()
    return Director(spec, folder, ledger, tracker, Silent(), clock)


def result(assignment: Assignment, epoch: int) -> dict[str, Any]:
    width = assignment.config["trial"]["model"]["width"]
    rate = assignment.config["trial"]["train"]["lr"]
    return {
        "epoch": epoch,
        "val_top1": 50.0 + width / 4 - abs(rate - 0.01) * 100 + epoch,
        "energy_mj": width * assignment.config["trial"]["model"]["timesteps"] / 10,
        "train_loss": 1.0 / epoch,
        "layer_rates": json.dumps({"head_lif": 0.2}),
        "num_steps": epoch * 40,
        "done": epoch == EPOCHS,
    }


def write_checkpoints(assignment: Assignment, epoch: int) -> Path:
    folder = Path(assignment.config["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("best.safetensors", f"epoch-{epoch:04d}.safetensors"):
        (folder / name).write_bytes(b"x")
    return folder


def start(director: Director) -> Assignment:
    assignment = director.next_assignment()
    assert isinstance(assignment, Assignment), assignment
    return assignment


def run_serially(director: Director, most_reports: int = 10**6) -> int:
    """One trial at a time until the end or until so many epochs have been reported."""
    reports = 0
    while reports < most_reports:
        assignment = director.next_assignment()
        if assignment is None:
            break
        assert isinstance(assignment, Assignment)
        epoch = assignment.config["known_epochs"]
        stop = False
        while not stop and reports < most_reports:
            epoch += 1
            reports += 1
            write_checkpoints(assignment, epoch)
            stop = director.report(assignment.number, result(assignment, epoch))
    return reports


def history(ledger: Ledger) -> list[tuple[Any, ...]]:
    return [
        (dict(r.params), r.state, r.reason, [dict(e.metrics) for e in r.epochs])
        for r in ledger.records
    ]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[tuple[SearchSpec, SearchFolder, Ledger]]:
    spec, folder, ledger = made_search(tmp_path, *SEVEN)
    yield spec, folder, ledger
    ledger.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """What an uninterrupted search does."""
    spec, folder, ledger = made_search(tmp_path_factory.mktemp("whole"), *SEVEN)
    run_serially(direct(spec, folder, ledger, Clock()))
    ledger.close()
    assert {"finished", "stopped"} == {state for _, state, _, _ in history(ledger)}
    return history(ledger)


@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_interrupted_anywhere_a_search_does_the_same(
    whole: list[tuple[Any, ...]],
    tmp_path_factory: pytest.TempPathFactory,
    cuts: list[int],
) -> None:
    spec, folder, ledger = made_search(tmp_path_factory.mktemp("cut"), *SEVEN)
    for cut in [*cuts, 10**6]:
        run_serially(direct(spec, folder, ledger, Clock()), cut)
        ledger.close()
        spec, ledger = open_ledger(folder, write=True)
    ledger.close()
    assert history(ledger) == whole


def test_a_lost_worker_is_retried_later_and_the_third_time_failed(
    made: tuple[SearchSpec, SearchFolder, Ledger],
) -> None:
    clock = Clock()
    director = direct(*made, clock)
    first = start(director)
    director.report(0, result(first, 1), 1)
    for attempt, pause_s in ((1, 1.0), (2, 2.0)):
        director.lost(0, LOST, attempt)
        other = start(director)
        assert other.number != 0, "others go on meanwhile"
        clock.now_s += pause_s
        again = start(director)
        assert again.number == 0
        assert again.config["known_epochs"] == 1
        assert again.config["attempt"] == attempt + 1
    director.report(0, result(first, 2), 1)
    assert len(director.ledger.record(0).epochs) == 1, "an earlier attempt is not heard"
    director.lost(0, HANG, 3)
    record = director.ledger.record(0)
    assert (record.state, record.reason) == ("failed", "hang")
    assert [a.reason for a in record.attempts] == ["worker_lost", "worker_lost", "hang"]


@pytest.mark.parametrize(
    ("overrides", "states"),
    [
        (("stopping.out_of_memory=accumulate",), ["failed", "finished"]),
        (("stopping.out_of_memory=accumulate", "trial.train.batch_size=3"), ["failed", "failed"]),
        ((), ["failed", "failed"]),
    ],
    ids=["allowed", "too small", "not allowed"],
)
def test_what_does_not_fit_is_tried_once_in_smaller_parts(
    tmp_path: Path, overrides: tuple[str, ...], states: list[str]
) -> None:
    spec, folder, ledger = made_search(tmp_path, *overrides, "stopping.name=none")
    director = direct(spec, folder, ledger, Clock())
    full: dict[str, Any] = {"failure": "out_of_memory", "message": "CUDA out of memory"}
    for number, fits in ((0, False), (1, True)):
        first = start(director)
        assert first.number == number
        assert first.config["trial"]["train"]["accumulate"] == 1
        assert director.report(number, full, 1)
        if "finished" in states:
            again = start(director)
            assert (again.number, again.config["attempt"]) == (number, 2)
            assert again.config["trial"]["train"]["accumulate"] == 2
            for epoch in range(1, EPOCHS + 1):
                assert director.report(number, result(again, epoch) if fits else full, 2) == (
                    not fits or epoch == EPOCHS
                )
                if not fits:
                    break
    assert [r.state for r in ledger.records] == states
    records = ledger.records
    ledger.close()
    if "finished" in states:
        assert records[1].config["train"]["accumulate"] == 2
        assert records[1].config_hash == TrialConfig(**records[1].config).config_hash()
        assert [a.reason for a in records[1].attempts] == ["out_of_memory", ""]
        assert not any(a.charged for a in records[1].attempts)
    again_opened = open_ledger(folder)[1]
    again_opened.close()
    assert again_opened.records == records


def test_an_epoch_that_fitted_is_no_reason_for_smaller_parts(tmp_path: Path) -> None:
    allowed = "stopping.out_of_memory=accumulate"
    spec, folder, ledger = made_search(tmp_path, allowed, "stopping.name=none")
    director = direct(spec, folder, ledger, Clock())
    assignment = start(director)
    assert not director.report(0, result(assignment, 1), 1)
    assert director.report(0, {"failure": "out_of_memory", "message": ""}, 1)
    assert ledger.record(0).reason == "out_of_memory"
    ledger.close()


def test_a_lost_machine_is_not_charged(made: tuple[SearchSpec, SearchFolder, Ledger]) -> None:
    clock = Clock()
    director = direct(*made, clock)
    start(director)
    for attempt in range(1, 6):
        director.lost(0, NODE, attempt)
        clock.now_s += 100.0
        assert start(director).number == 0
    assert director.ledger.record(0).state == "running"


def test_a_search_waits_for_what_may_be_lost(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path, "budget.trials=1")
    clock = Clock()
    director = direct(spec, folder, ledger, clock)
    only = start(director)
    assert director.next_assignment() == WAIT
    director.lost(0, LOST, 1)
    assert director.next_assignment() == WAIT
    clock.now_s = 1.0
    assert start(director).number == 0
    for epoch in range(1, EPOCHS + 1):
        director.report(0, result(only, epoch), 2)
    assert director.next_assignment() is None
    ledger.close()


def test_an_epoch_that_is_known_is_not_decided_again(
    made: tuple[SearchSpec, SearchFolder, Ledger],
) -> None:
    spec, folder, ledger = made
    director = direct(spec, folder, ledger, Clock())
    first = start(director)
    for epoch in (1, 2):  # alone at its rung it goes on
        assert not director.report(0, result(first, epoch))
    second = start(director)
    better = result(second, 2) | {"val_top1": 99.0}
    director.report(1, result(second, 1) | {"val_top1": 99.0})
    director.report(1, better)
    assert not director.report(0, result(first, 2)), "now it would be stopped at that rung"


def test_a_missing_epoch_costs_an_attempt_and_leaves_no_gap(
    made: tuple[SearchSpec, SearchFolder, Ledger],
) -> None:
    director = direct(*made, Clock())
    first = start(director)
    assert director.report(0, result(first, 2))
    record = director.ledger.record(0)
    assert (record.state, record.epochs) == ("running", ())
    assert record.attempts[0].reason == "missing_epoch"


def test_losers_files_go_and_the_fronts_stay(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path, *SEVEN)
    run_serially(direct(spec, folder, ledger, Clock()))
    from search.results import pareto

    front = {r.number for r in pareto(ledger.records, spec.objectives)}
    for record in ledger.records:
        kept = record.state == "finished" or record.number in front
        assert folder.trial(record.number).exists() == kept, record
    assert any(not folder.trial(r.number).exists() for r in ledger.records)
    ledger.close()


def test_a_new_trial_starts_in_an_empty_folder(
    made: tuple[SearchSpec, SearchFolder, Ledger],
) -> None:
    spec, folder, ledger = made
    left = folder.trial(0) / "epoch-0003.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of a trial that the ledger has lost")
    start(direct(spec, folder, ledger, Clock()))
    assert not left.exists()


def test_hours_of_earlier_drivers_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, folder, ledger = made_search(tmp_path, "budget.hours=2")
    monkeypatch.setattr(Ledger, "used_s", lambda _self, _now_s: 1.5 * 3600)
    clock = Clock()
    director = direct(spec, folder, ledger, clock)
    first = start(director)
    assert not director.report(0, result(first, 1))
    clock.now_s = 0.5 * 3600
    assert director.report(0, result(first, 2))
    assert ledger.record(0).reason == "budget"
    assert director.next_assignment() is None
    ledger.close()


def test_a_ledger_that_cannot_be_written_ends_the_search(
    made: tuple[SearchSpec, SearchFolder, Ledger],
) -> None:
    director = direct(*made, Clock())
    first = start(director)
    with director.ledger._engine.connect() as connection:
        connection.exec_driver_sql("drop table trial_user_attributes")
        connection.commit()
    assert director.report(0, result(first, 1))
    assert director.ending
    assert "could not be written" in str(director.failure)
    assert director.next_assignment() is None


def test_another_specification_is_refused_naming_what_differs(tmp_path: Path) -> None:
    old, new = made_spec(tmp_path), made_spec(tmp_path, "budget.trials=5")
    check_same(old, made_spec(tmp_path, text=SPACE + "# a comment\n"), "made")
    with pytest.raises(InputError, match=r"budget\.trials: 12, not 5"):
        check_same(old, new, "made")
