"""A search whose trials wait at rungs: the director, a real ledger, networks that are a formula."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import made_search
from promotions import assert_promotions_followed
from sqlalchemy import text
from test_director import (
    EPOCHS,
    LOST,
    Clock,
    Recorder,
    Silent,
    history,
    result,
    run_serially,
    start,
    write_checkpoints,
)

from search.database import LedgerError, writing
from search.director import WAIT, Assignment, Director
from search.folder import SearchFolder
from search.recorded import open_ledger
from search.records import Attempt
from search.results import best
from search.retries import Loss, backoff_s, used_up
from search.study import Ledger
from spaces import SearchSpec

PAUSES = ("stopping.name=asha_promotion", "stopping.grace_epochs=1", "stopping.check_share=0")
FIVE = (*PAUSES, "budget.trials=5")
Made = tuple[SearchSpec, SearchFolder, Ledger]


def direct(made: Made, clock: Clock | None = None) -> tuple[Director, Recorder]:
    spec, folder, ledger = made
    recorder: Any = Recorder()
    return Director(spec, folder, ledger, recorder, Silent(), clock or Clock()), recorder


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    spec, folder, ledger = made_search(tmp_path, *FIVE)
    yield spec, folder, ledger
    ledger.close()


def epoch_of(director: Director, assignment: Assignment, epoch: int, top1: float) -> bool:
    write_checkpoints(assignment, epoch)
    measured = result(assignment, epoch) | {"val_top1": top1}
    return director.report(assignment.number, measured, assignment.config["attempt"])


def to_first_rung(director: Director, *top1: float) -> list[Assignment]:
    """One trial after the other to its first rung."""
    found = []
    for value in top1:
        found.append(start(director))
        assert epoch_of(director, found[-1], 1, value), "its worker is free"
    return found


def reopened(made: Made) -> Made:
    _, folder, ledger = made
    ledger.close()
    spec, again = open_ledger(folder, write=True)
    return spec, folder, again


def test_a_trial_waits_and_goes_on_when_it_is_due(made: Made) -> None:
    director, recorder = direct(made)
    first = start(director)
    assert epoch_of(director, first, 1, 50.0)
    record = director.ledger.record(0)
    assert (record.state, record.reason, record.ended_s) == ("paused", "asha@1", None)
    assert (record.attempts[0].reason, record.attempts[0].charged) == ("paused", False)
    second = start(director)
    assert second.number == 1, "there is nothing to promote: a new trial"
    assert epoch_of(director, second, 1, 40.0)
    again = start(director)
    assert (again.number, again.config["attempt"], again.config["known_epochs"]) == (0, 2, 1)
    record = director.ledger.record(0)
    assert (record.state, record.reason) == ("running", "")
    assert not epoch_of(director, again, 1, 50.0), "its checkpoint's epoch is known"
    assert epoch_of(director, again, 2, 50.0), "it waits at the next rung"
    assert [e.epoch for e in director.ledger.record(0).epochs] == [1, 2]
    states = [
        body["tags"]["spiketune.state"]
        for kind, body in recorder.events
        if body["trial"] == 0 and kind.startswith("trial_")
    ]
    assert states == ["running", "paused", "running", "paused"]
    statuses = [body["status"] for _, body in recorder.events if "status" in body]
    assert statuses == ["SCHEDULED", "SCHEDULED", "RUNNING", "SCHEDULED"]


def test_an_attempt_that_waits_is_neither_heard_nor_lost(made: Made) -> None:
    director, _ = direct(made)
    first, _ = to_first_rung(director, 50.0, 40.0)
    assert director.report(0, result(first, 2), 1)
    director.lost(0, LOST, 1)
    record = director.ledger.record(0)
    assert (record.state, len(record.epochs), len(record.attempts)) == ("paused", 1, 1)


def test_a_better_one_keeps_its_worker(made: Made) -> None:
    director, _ = direct(made)
    to_first_rung(director, 50.0)
    second = start(director)
    assert not epoch_of(director, second, 1, 60.0)
    assert director.ledger.record(1).attempt == 1


def test_pauses_cost_no_retry_and_no_waiting_time() -> None:
    lost = Attempt(0.0, 0, "worker_lost", 1.0, charged=True)
    paused = Attempt(0.0, 0, "paused", 1.0)
    assert backoff_s([paused, paused, lost]) == backoff_s([lost]) == 1.0
    assert not used_up([paused] * 60 + [lost], 2)
    assert used_up([paused, lost, lost, lost], 2)


def test_what_waits_keeps_its_checkpoints_also_under_the_next_driver(made: Made) -> None:
    director, _ = direct(made)
    trials = to_first_rung(director, 50.0, 40.0)
    made = reopened(made)
    director, _ = direct(made)
    for trial in trials:
        assert sorted(p.name for p in Path(trial.config["folder"]).iterdir()) == [
            "best.safetensors",
            "epoch-0001.safetensors",
        ]
    run_serially(director)
    stopped = [r for r in director.ledger.records if r.state == "stopped"]
    front = best(director.ledger.records, made[0].objectives)
    assert front is not None
    assert any(not made[1].trial(r.number).exists() for r in stopped)
    made[2].close()


def test_after_a_restart_what_waited_waits_and_what_went_on_goes_on(made: Made) -> None:
    to_first_rung(direct(made)[0], 50.0)
    made = reopened(made)
    (second,) = to_first_rung(direct(made)[0], 40.0)
    assert second.number == 1, "the first still waits"
    before = made[2].records
    made = reopened(made)
    assert made[2].records == before
    assert [r.state for r in before] == ["paused", "paused"]
    director, recorder = direct(made)
    again = start(director)
    assert again.number == 0
    made = reopened(made)  # killed before its worker did anything
    director, _ = direct(made)
    interrupted = start(director)
    assert (interrupted.number, interrupted.config["attempt"]) == (0, 3)
    reasons = [a.reason for a in made[2].record(0).attempts]
    assert reasons == ["paused", "interrupted", ""]
    assert not any(a.charged for a in made[2].record(0).attempts)
    assert {kind for kind, body in recorder.events if body["trial"] == 1} >= {"trial_pause"}
    made[2].close()


def test_at_the_end_what_waits_is_stopped_and_something_was_trained_in_full(made: Made) -> None:
    director, _ = direct(made)
    run_serially(director)
    records = director.ledger.records
    assert len(records) == 5
    assert {r.state for r in records} == {"finished", "stopped"}
    assert_promotions_followed(records)


def test_few_trials_too_end_with_one_that_was_trained_in_full(tmp_path: Path) -> None:
    made = made_search(tmp_path, *PAUSES, "budget.trials=2", "stopping.reduction_factor=3")
    director, _ = direct(made)
    run_serially(director)
    assert sorted(r.state for r in made[2].records) == ["finished", "stopped"]
    assert best(made[2].records, made[0].objectives) in made[2].records
    made[2].close()


def test_a_search_waits_for_a_trial_that_may_make_another_due(tmp_path: Path) -> None:
    made = made_search(tmp_path, *PAUSES, "budget.trials=2")
    director, _ = direct(made)
    first, second = start(director), start(director)
    assert epoch_of(director, first, 1, 50.0)
    assert director.next_assignment() == WAIT
    assert made[2].record(0).state == "paused"
    assert epoch_of(director, second, 1, 40.0)
    assert start(director).number == 0
    made[2].close()


def test_lost_after_its_promotion_it_starts_again_at_its_rung(made: Made) -> None:
    clock = Clock()
    director, _ = direct(made, clock)
    to_first_rung(director, 50.0, 40.0)
    assert start(director).number == 0
    director.lost(0, LOST, 2)
    clock.now_s = 1.0
    again = start(director)
    assert (again.number, again.config["known_epochs"], again.config["attempt"]) == (0, 1, 3)
    assert [a.charged for a in director.ledger.record(0).attempts] == [False, True, False]


def test_when_the_hours_are_over_nothing_waits_any_more(tmp_path: Path) -> None:
    made = made_search(tmp_path, *PAUSES, "budget.hours=1", "budget.trials=9")
    clock = Clock()
    director, _ = direct(made, clock)
    to_first_rung(director, 50.0, 40.0)
    running = start(director), start(director)
    assert [r.number for r in running] == [0, 2]
    assert epoch_of(director, running[1], 1, 30.0)
    last = start(director)
    assert last.number == 3
    assert epoch_of(director, last, 1, 35.0), "the second of four is due now, which is not this one"
    clock.now_s = 3600.0
    assert director.next_assignment() == WAIT
    assert epoch_of(director, running[0], 2, 50.0)
    assert director.next_assignment() is None
    ends = [(r.state, r.reason) for r in made[2].records]
    assert ends == [("stopped", r) for r in ("budget", "budget", "asha@1", "asha@1")]
    made[2].close()


def test_after_the_hours_no_trial_goes_on_to_have_one_trained_in_full(tmp_path: Path) -> None:
    made = made_search(tmp_path, *PAUSES, "budget.hours=1")
    clock = Clock()
    director, _ = direct(made, clock)
    to_first_rung(director, 50.0)
    clock.now_s = 3600.0
    assert director.next_assignment() is None
    assert [(r.state, r.reason) for r in made[2].records] == [("stopped", "asha@1")]
    made[2].close()


def test_a_dead_network_ends_at_a_rung_too(made: Made) -> None:
    director, _ = direct(made)
    first = start(director)
    dead = result(first, 1) | {"layer_rates": json.dumps({"a": 0.0}), "num_steps": 100}
    assert director.report(0, dead, 1)
    second = start(director)
    assert director.report(1, result(second, 1) | {"train_loss": math.nan}, 1)
    ends = [(r.state, r.reason) for r in director.ledger.records]
    assert ends == [("failed", "silent_network"), ("failed", "nan_train_loss")]


@pytest.mark.parametrize(("energies", "leader"), [((0.5, 2.0), 0), ((2.0, 3.0), None)])
def test_what_breaks_a_constraint_is_not_the_best_while_it_waits(
    tmp_path: Path, energies: tuple[float, float], leader: int | None
) -> None:
    made = made_search(tmp_path, *PAUSES, "constraints=['energy_mj <= 1']")
    director, _ = direct(made)
    for energy in energies:
        trial = start(director)
        measured = result(trial, 1) | {"energy_mj": energy, "val_top1": 50.0 + energy}
        assert director.report(trial.number, measured, 1)
    kept = made[2].records
    assert [(r.state, r.feasible) for r in kept] == [("paused", e <= 1) for e in energies]
    top = best(kept, made[0].objectives)
    assert (None if top is None else top.number) == leader
    made = reopened(made)
    assert made[2].records == kept
    director, _ = direct(made)
    assert start(director).number == 0, "which breaks it less"
    kept = made[2].records
    made = reopened(made)
    assert made[2].records == kept
    made[2].close()


def test_a_share_of_what_would_wait_runs_on(tmp_path: Path) -> None:
    shared = (*PAUSES[:2], "stopping.check_share=0.5", "budget.trials=8")
    made = made_search(tmp_path, *shared)
    director, _ = direct(made)
    run_serially(director)
    checked = [r for r in made[2].records if r.spared is not None]
    assert checked
    for record in checked:
        assert (record.state, len(record.epochs)) == ("finished", EPOCHS)
        assert record.spared is not None
        assert record.spared.spared == f"paused@{record.spared.epoch}"
    assert_promotions_followed(made[2].records)
    made[2].close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """What an uninterrupted search does."""
    made = made_search(tmp_path_factory.mktemp("whole"), *PAUSES, "budget.trials=7")
    run_serially(direct(made)[0])
    made[2].close()
    return history(made[2])


@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_interrupted_anywhere_a_search_does_the_same(
    whole: list[tuple[Any, ...]],
    tmp_path_factory: pytest.TempPathFactory,
    cuts: list[int],
) -> None:
    made = made_search(tmp_path_factory.mktemp("cut"), *PAUSES, "budget.trials=7")
    for cut in [*cuts, 10**6]:
        run_serially(direct(made)[0], cut)
        made = reopened(made)
    made[2].close()
    assert history(made[2]) == whole


def test_a_pause_that_was_altered_is_refused(made: Made) -> None:
    director, _ = direct(made)
    to_first_rung(director, 50.0)
    change = text(
        "update trial_user_attributes set value_json = replace(value_json, 'true', 'false') "
        "where key = 'paused'"
    )
    with writing(made[2]._engine) as session:
        session.execute(change)
    with pytest.raises(LedgerError, match="'paused' of trial 0 was altered"):
        open_ledger(made[1])


def test_a_lost_machine_while_all_wait_is_nobodys(made: Made) -> None:
    director, _ = direct(made)
    to_first_rung(director, 50.0, 40.0)
    director.lost(1, Loss("node_lost", charged=False), 1)
    assert director.ledger.record(1).attempts[0].reason == "paused"
