"""Trials that wait at rungs, with real Ray: workers are shared, checkpoints continued."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_search import FakeSearch, with_store
from fake_trial import digest, metrics_of
from promotions import EPOCHS, RUNGS, assert_promotions_followed
from test_search import assert_tracked_exactly

from search.records import TrialRecord

PAUSES = "stopping={name: asha_promotion, grace_epochs: 1, reduction_factor: 2, check_share: 0}"
# Each that goes on gets either worker: of so many some get the one they had.
NUM_TRIALS = 24
Notes = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, cluster: str, empty_store: Path
) -> tuple[FakeSearch, list[TrialRecord], Notes]:
    """A search that has come to its end, its ledger, what its trials noted."""
    overrides = (PAUSES, f"budget.trials={NUM_TRIALS}")
    search = FakeSearch(tmp_path_factory.mktemp("paused"), cluster, overrides)
    with_store(search, empty_store).run()
    return search, search.records(), search.notes()


def test_the_rule_was_followed_and_all_is_tracked(
    done: tuple[FakeSearch, list[TrialRecord], Notes],
) -> None:
    search, records, _ = done
    assert len(records) == NUM_TRIALS
    assert_promotions_followed(records)
    assert_tracked_exactly(search.uri, records, "chaos")


def test_every_epoch_runs_once_and_builds_on_the_one_before(
    done: tuple[FakeSearch, list[TrialRecord], Notes],
) -> None:
    _, records, notes = done
    for record in records:
        lines = notes[record.number]
        epochs = [line["epoch"] for line in lines if line["what"] == "epoch"]
        assert epochs == list(range(1, len(record.epochs) + 1))
        chain = json.dumps(dict(record.config), sort_keys=True)
        for epoch in record.epochs:
            chain = digest(chain)
            assert dict(epoch.metrics) == metrics_of(dict(record.config), epoch.epoch, chain)


def test_a_paused_trial_goes_on_from_its_checkpoint_on_a_worker_that_others_had(
    done: tuple[FakeSearch, list[TrialRecord], Notes],
) -> None:
    _, records, notes = done
    promoted = [r for r in records if r.attempt > 1]
    assert any(len(r.epochs) == EPOCHS for r in promoted)
    for record in promoted:
        assert [a.reason for a in record.attempts[:-1]] == ["paused"] * (record.attempt - 1)
        starts = [line for line in notes[record.number] if line["what"] == "start"]
        assert [line["attempt"] for line in starts] == list(range(1, record.attempt + 1))
        for line in starts[1:]:
            assert line["epoch"] == line["known"]
            assert line["epoch"] in RUNGS
    lines = sorted((x for trial in notes.values() for x in trial), key=lambda x: x["time_s"])
    pids = [line["pid"] for line in lines]
    assert len(set(pids)) <= 2, "as many processes as run at once, for all attempts"
    shared = [
        (number, pid)
        for number, trial in notes.items()
        for pid in {line["pid"] for line in trial}
        if _had_another_between(trial, pid, lines)
    ]
    assert shared, "while a trial waited another had its worker"


def _had_another_between(
    trial: list[dict[str, Any]], pid: int, lines: list[dict[str, Any]]
) -> bool:
    times = [line["time_s"] for line in trial if line["pid"] == pid]
    inside = (x for x in lines if times[0] < x["time_s"] < times[-1] and x["pid"] == pid)
    return any(line not in trial for line in inside)
