"""Trials that hang, raise and die: bounded attempts, each with its reason."""

from pathlib import Path

from fake_search import FakeSearch, with_store
from fake_trial import misbehave


def test_lost_workers_are_retried_and_failed_with_their_reasons(
    tmp_path: Path, cluster: str, empty_store: Path
) -> None:
    overrides = (
        "stopping={name: none, trial_timeout_s: 15}",
        "budget.trials=4",
        "tracking.required=false",
    )
    search = with_store(FakeSearch(tmp_path, cluster, overrides), empty_store)
    for number, what in enumerate((["exit"], ["hang"], ["raise", "raise", "exit"])):
        misbehave(search.runs, search.name, number, *what)
    search.run()
    assert "did not complete" not in search.log, "Tune's view of an attempt"
    records = search.records()
    assert [r.state for r in records] == ["finished", "finished", "failed", "finished"]
    reasons = [[a.reason for a in r.attempts] for r in records]
    assert reasons == [
        ["worker_lost", ""],
        ["hang", ""],
        ["error OSError", "error OSError", "worker_lost"],
        [""],
    ]
    assert records[2].reason == "worker_lost"
    assert all([e.epoch for e in r.epochs] == [1, 2, 3, 4] for r in records if r.state != "failed")
