"""The tracker against real stores: MLflow's SQLite store and an MLflow server."""

import json
import logging
import shutil
import signal
import socket
import sqlite3
import time
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import DEADLINE_S, MlflowServer, free_port, wait_until
from records import record

from search.records import TrialRecord, TrialState
from search.syncing import sync
from search.tracking import (
    Tracker,
    TrackerConfig,
    TrackingError,
    default_uri,
    resolve_uri,
    ui_command,
)
from trainables.errors import InputError

METRICS = ("val_top1", "energy_mj", "train_loss")


@pytest.fixture
def config(tmp_path: Path, empty_store: Path) -> TrackerConfig:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return TrackerConfig(default_uri(tmp_path), "statten", "tiny", "id-1", tmp_path / "tiny/spool")


@dataclass
class Rows:
    """What the database holds, read without MLflow."""

    database: Path

    def __call__(self, query: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.database, timeout=20) as connection:
            rows = connection.execute(query).fetchall()
        connection.close()
        return rows

    def runs(self, search: str = "id-1") -> dict[str, tuple[str, int, int | None]]:
        rows = self(
            "select r.name, r.status, r.start_time, r.end_time from runs r join tags t on "
            "t.run_uuid = r.run_uuid where t.key = 'spiketune.search_id' and "
            f"t.value = '{search}'"
        )
        assert len({row[0] for row in rows}) == len(rows), "a run was made twice"
        return {str(name): (status, start, end) for name, status, start, end in rows}

    def run_id(self, name: str) -> str:
        return str(self(f"select run_uuid from runs where name = '{name}'")[0][0])

    def tags(self, name: str) -> dict[str, str]:
        return dict(
            self(
                "select t.key, t.value from tags t join runs r on r.run_uuid = t.run_uuid "
                f"where r.name = '{name}'"
            )
        )

    def params(self) -> dict[str, str]:
        return dict(self("select key, value from params"))

    def points(self) -> list[tuple[object, ...]]:
        return self(
            "select r.name, m.key, m.step, m.timestamp, m.value from metrics m "
            "join runs r on r.run_uuid = m.run_uuid order by 1, 2, 3, 4"
        )


def epoch_metrics(number: int, epoch: int) -> dict[str, float]:
    return {name: number + epoch / 3 + i for i, name in enumerate(METRICS)}


def trial(
    number: int,
    params: dict[str, Any] | None = None,
    state: TrialState = "running",
    reason: str = "",
    ended_s: float | None = None,
) -> TrialRecord:
    return replace(
        record(number, [], state=state, params=params),
        config={"model": {"depth": 2}},
        config_hash="ab",
        reason=reason,
        ended_s=ended_s,
    )


def report(tracker: Tracker, numbers: range, epochs: int = 3) -> None:
    tracker.search_started({"budget.trials": 4}, {"spiketune.version": "0"}, {"search.yaml": "a"})
    for number in numbers:
        tracker.trial_started(trial(number, {"train.lr": 1e-4, "model.depth": 2}))
        for epoch in range(1, epochs + 1):
            tracker.trial_epoch(number, epoch, epoch_metrics(number, epoch), 1000.0 + epoch)


def expected_points(numbers: range, epochs: int = 3) -> list[tuple[object, ...]]:
    return sorted(
        (f"{number:05d}", key, epoch, 1000_000 + 1000 * epoch, value)
        for number in numbers
        for epoch in range(1, epochs + 1)
        for key, value in epoch_metrics(number, epoch).items()
    )


def test_runs_parameters_metrics_and_states(
    config: TrackerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "999")
    rates = tmp_path / "rates.json"
    rates.write_text("{}")
    tracker, rows = Tracker(config), Rows(tmp_path / "mlflow.db")
    tracker.start()
    report(tracker, range(3))
    tracker.trial_epoch(0, 3, epoch_metrics(0, 99), 2000.0)
    tracker.trial_epoch(2, 4, {"val_top1": float("nan"), "energy_mj": 1.0}, 1004.0)
    finished = trial(0, {}, "finished", "completed", 1010.0)
    tracker.trial_ended(finished, {"firing/rates.json": rates})
    stopped = trial(1, {}, "stopped", "asha", 1011.0)
    tracker.trial_ended(stopped, {"gone.json": tmp_path / "gone.json"})
    tracker.trial_ended(trial(2, {}, "failed", "nan_loss http://me:canary@host/x", 1012.0))
    tracker.search_ended("FINISHED", {"hypervolume": 2.5}, {"report.html": "<p>"}, 1020.0)
    assert tracker.close(DEADLINE_S)

    runs = rows.runs()
    assert {name: (run[0], run[2]) for name, run in runs.items()} == {
        "tiny": ("FINISHED", 1020_000),
        "00000": ("FINISHED", 1010_000),
        "00001": ("FINISHED", 1011_000),
        "00002": ("FAILED", 1012_000),
    }
    assert runs["00001"][1] == 1000_000
    assert [p for p in rows.points() if p[0] in ("00000", "00001")] == expected_points(range(2))
    assert ("00002", "energy_mj", 4, 1004_000, 1.0) in rows.points()
    assert rows.tags("00002")["spiketune.nonfinite"] == "epoch 4: val_top1"
    tags = rows.tags("00001")
    assert tags["mlflow.parentRunId"] == rows.run_id("tiny")
    assert (tags["spiketune.state"], tags["spiketune.reason"]) == ("stopped", "asha")
    assert tags["spiketune.config_hash"] == "ab"
    params = rows.params()
    assert params == {"train.lr": "0.0001", "model.depth": "2", "budget.trials": "4"}
    artifacts = tmp_path / "mlartifacts" / rows.run_id("00000") / "artifacts"
    assert (artifacts / "firing/rates.json").read_text() == "{}"
    assert json.loads((artifacts / "config.json").read_text()) == {"model": {"depth": 2}}
    assert tracker.rejected == 1, "the missing artifact, and nothing else"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"canary" in path.read_bytes()]


@pytest.mark.parametrize("lost", ["acked.json", "acked.json runs.json"])
def test_a_crash_between_sending_and_acknowledging_changes_nothing(
    config: TrackerConfig, tmp_path: Path, lost: str
) -> None:
    tracker, rows = Tracker(config), Rows(tmp_path / "mlflow.db")
    tracker.start()
    report(tracker, range(2))
    assert tracker.close(DEADLINE_S)
    for name in lost.split():
        (config.spool_dir / name).unlink()
    assert sync(config, DEADLINE_S) == 0
    assert rows.points() == expected_points(range(2))
    assert sorted(rows.runs()) == ["00000", "00001", "tiny"]


def test_a_resumed_driver_may_report_everything_again(
    config: TrackerConfig, tmp_path: Path
) -> None:
    rows = Rows(tmp_path / "mlflow.db")
    first = Tracker(config)
    first.start()
    report(first, range(2), epochs=2)
    first.search_ended("KILLED", {}, {}, 1500.0)
    assert first.close(DEADLINE_S)
    assert {run[0] for run in rows.runs().values()} == {"KILLED"}

    with (config.spool_dir / "events.jsonl").open("ab") as spool:
        spool.write(b'{"crc":"00000000","event":{"seq"')
    made = rows.run_id("00000")
    second = Tracker(config)
    second.start()
    report(second, range(2), epochs=3)
    second.trial_reopened(0, 2, 1600.0)
    assert second.flush(DEADLINE_S)
    assert {name: run[0] for name, run in rows.runs().items()} == {
        "tiny": "RUNNING",
        "00000": "RUNNING",
        "00001": "KILLED",
    }
    assert rows.tags("00000")["spiketune.attempt"] == "2"
    assert rows.points() == expected_points(range(2))
    assert rows.run_id("00000") == made
    assert second.close(DEADLINE_S)


def test_what_no_event_tells_is_caught_up_from_the_ledger(
    config: TrackerConfig, tmp_path: Path
) -> None:
    """As after a driver that was killed between the ledger's change and the event."""
    told = replace(record(0, [1.0, 2.0], state="finished"), ended_s=1010.0)
    half = replace(record(1, [1.0, 2.0, 3.0], state="stopped"), ended_s=1011.0, reason="asha@3")
    untold = replace(record(2, [5.0], state="failed"), ended_s=1012.0)
    again = replace(record(3, [7.0], state="finished"), ended_s=1013.0)
    first = Tracker(config)
    first.start()
    first.catch_up([told], lambda _: {})
    first.trial_started(half)
    first.trial_epoch(1, 1, half.epochs[0].metrics, half.epochs[0].time_s)
    first.catch_up([again], lambda _: {})
    first.trial_reopened(3, 2, 1012.5)
    assert first.close(DEADLINE_S)

    everything = [told, half, untold, again]
    spool = config.spool_dir / "events.jsonl"
    assert sync(config, DEADLINE_S, everything) == 0
    size = spool.stat().st_size
    assert sync(config, DEADLINE_S, everything) == 0
    assert spool.stat().st_size == size, "told twice"
    rows = Rows(tmp_path / "mlflow.db")
    assert {name: (run[0], run[2]) for name, run in rows.runs().items()} == {
        "tiny": ("RUNNING", None),
        "00000": ("FINISHED", 1010_000),
        "00001": ("FINISHED", 1011_000),
        "00002": ("FAILED", 1012_000),
        "00003": ("FINISHED", 1013_000),
    }
    assert rows.tags("00001")["spiketune.reason"] == "asha@3"
    top1 = [point for point in rows.points() if point[1] == "val_top1"]
    assert [(name, step, value) for name, _, step, _, value in top1] == [
        (trial.name, epoch.epoch, epoch.metrics["val_top1"])
        for trial in everything
        for epoch in trial.epochs
    ]


def test_a_refused_value_does_not_hold_up_the_others(
    config: TrackerConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker, rows = Tracker(config), Rows(tmp_path / "mlflow.db")
    tracker.start()
    tracker.trial_started(trial(0, {"a": 1, "b": 1}))
    tracker.trial_started(trial(0, {"a": 2, "b": 1, "c": "x" * 9000}))
    tracker.trial_epoch(0, 1, {"bad\nname": 1.0, "val_top1": 2.0}, 1.0)
    assert tracker.close(DEADLINE_S)
    params = rows.params()
    assert (params["a"], params["b"], len(params["c"])) == ("1", "1", 6000)
    assert [point[1:3] for point in rows.points()] == [("val_top1", 1)]
    assert tracker.rejected == 2
    assert caplog.text.count("for good") == 2


@pytest.mark.parametrize("how", ["another database", "run gone"])
def test_a_store_that_has_not_got_the_search_gets_it_all_again(
    config: TrackerConfig, tmp_path: Path, empty_store: Path, how: str
) -> None:
    tracker = Tracker(config)
    tracker.start()
    report(tracker, range(1))
    assert tracker.close(DEADLINE_S)
    rows = Rows(tmp_path / "mlflow.db")
    if how == "another database":
        rows = Rows(tmp_path / "new.db")
        shutil.copy(empty_store, rows.database)
        config = replace(config, uri=f"sqlite:///{rows.database}")
    else:
        rows("delete from metrics")
        rows("update tags set value = 'gone' where key = 'spiketune.search_id'")
    assert sync(config, DEADLINE_S) == 0
    assert rows.points() == expected_points(range(1))
    assert sorted(rows.runs()) == ["00000", "tiny"]


def test_a_server_that_hangs_and_then_dies_gets_everything_once(
    mlflow_server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    config = TrackerConfig(
        mlflow_server.uri, "statten", "remote", "id-1", tmp_path / "remote/spool"
    )
    tracker, rows = Tracker(config), Rows(mlflow_server.database)
    tracker.start()
    report(tracker, range(1))
    assert tracker.flush(DEADLINE_S)

    mlflow_server.signal(signal.SIGSTOP)
    report(tracker, range(1, 3))
    wait_until(lambda: "does not take events" in caplog.text)
    assert tracker.pending > 0
    # What it had received it applies now, after its answer was given up: the uncertain case.
    mlflow_server.signal(signal.SIGCONT)
    assert tracker.flush(DEADLINE_S)
    assert rows.points() == expected_points(range(3))

    mlflow_server.kill()
    report(tracker, range(3, 5))
    assert not tracker.flush(0.2)
    tracker.search_ended("FINISHED", {}, {"report.html": "<p>"}, 3000.0)
    assert not tracker.close(1.0)
    with pytest.raises(TrackingError, match=str(mlflow_server.port)):
        Tracker(config).start()
    mlflow_server.start()
    assert sync(config, DEADLINE_S) == 0
    assert rows.points() == expected_points(range(5))
    assert sorted(rows.runs()) == [*(f"{n:05d}" for n in range(5)), "remote"]
    assert rows.runs()["remote"][0] == "FINISHED"
    assert caplog.text.count("does not take events") == 2, "one warning an outage"
    stored = (mlflow_server.database.parent / "mlartifacts").rglob("*")
    assert {"report.html", "search.yaml", "config.json"} <= {path.name for path in stored}


def test_the_pages_show_what_the_embedded_store_has_and_only_to_this_machine(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    uri = f"sqlite:///{mlflow_server.database}"
    tracker = Tracker(TrackerConfig(uri, "embedded", "local", "id-2", tmp_path / "spool"))
    tracker.start()
    tracker.search_started({}, {}, {"search.yaml": "name: tiny"})
    assert tracker.close(DEADLINE_S)
    run_id = Rows(mlflow_server.database).run_id("local")
    address = f"{mlflow_server.uri}/get-artifact?path=search.yaml&run_uuid={run_id}"
    with urllib.request.urlopen(address, timeout=20) as answer:
        assert answer.read() == b"name: tiny"
    evil = urllib.request.Request(
        f"{mlflow_server.uri}/ajax-api/2.0/mlflow/experiments/search",
        headers={"Host": "10.evil.com"},
    )
    with pytest.raises(OSError, match="403") as refused:
        urllib.request.urlopen(evil, timeout=20)
    refused.value.close()  # type: ignore[attr-defined]


def test_a_required_store_that_is_away_is_a_clear_error_in_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        address = f"http://me:canary@127.0.0.1:{silent.getsockname()[1]}"
        config = TrackerConfig(address, "statten", "tiny", "id-1", tmp_path / "spool")
        started = time.monotonic()
        with pytest.raises(TrackingError, match=r"http://\*\*\*@127\.0\.0\.1") as error:
            Tracker(config).start()
        assert time.monotonic() - started < 5.0
    assert "canary" not in str(error.value)
    assert "tracking.required" in str(error.value)


def test_a_store_that_is_not_required_gets_the_events_later(
    config: TrackerConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = replace(config, uri=f"http://127.0.0.1:{free_port()}", required=False)
    tracker = Tracker(away)
    tracker.start()
    report(tracker, range(1))
    assert not tracker.close(0.2)
    assert tracker.pending == 5
    assert "must answer" in caplog.text
    assert sync(config, DEADLINE_S) == 0
    assert Rows(tmp_path / "mlflow.db").points() == expected_points(range(1))


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert resolve_uri("http://host:5000", tmp_path) == "http://host:5000"
    monkeypatch.setenv("SOMEWHERE", "postgresql://u:p@host/db")
    assert resolve_uri("env:SOMEWHERE", tmp_path) == "postgresql://u:p@host/db"
    monkeypatch.delenv("SOMEWHERE")
    with pytest.raises(InputError, match="SOMEWHERE is not set"):
        resolve_uri("env:SOMEWHERE", tmp_path)
    assert not [word for word in ui_command("postgresql://u:p@host/db", 5000) if "u:p" in word]
    with pytest.raises(InputError, match=r"open http://\*\*\*@host"):
        ui_command("http://u:p@host", 5000)
