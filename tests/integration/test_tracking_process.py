"""Tracking from a process of its own: the same in MLflow, whichever process is killed."""

import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow_server import DEADLINE_S, wait_until
from processes import descendants
from test_tracking import Rows, expected_points, report, trial
from tiny_search import environment

from search.spool import Chunk
from search.tracking import Tracker, TrackerConfig, TrackingError, default_uri
from search.tracking_process import writer_process

DRIVER = """
import logging, sys, threading
from pathlib import Path
from search.tracking import Tracker, TrackerConfig, default_uri
from search.tracking_process import writer_process

logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stdout)
folder = Path(sys.argv[1])
uri = sys.argv[2] if sys.argv[2:] else default_uri(folder)
config = TrackerConfig(uri, "statten", "tiny", "id-1", folder / "tiny/spool")
with writer_process() as writer:
    tracker = Tracker(config, writer.open)
    tracker.start()
    tracker.search_started({}, {}, {})
    assert tracker.flush(300.0)
    assert "mlflow" not in sys.modules
    print("sent", flush=True)
    threading.Event().wait()
"""


@pytest.fixture
def config(tmp_path: Path, empty_store: Path) -> TrackerConfig:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return TrackerConfig(default_uri(tmp_path), "statten", "tiny", "id-1", tmp_path / "tiny/spool")


@contextmanager
def tracked(config: TrackerConfig) -> Iterator[Tracker]:
    """A tracker that has begun, with a process of its own."""
    with writer_process() as writer:
        tracker = Tracker(config, writer.open)
        tracker.start()
        yield tracker


def test_a_process_of_its_own_writes_what_this_one_would(
    config: TrackerConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = Rows(tmp_path / "mlflow.db")
    with tracked(config) as tracker:
        report(tracker, range(2))
        tracker.trial_started(trial(0, {"model.depth": 3}))  # the first value stays
        tracker.search_ended("FINISHED", {}, {}, 1500.0)
        assert tracker.close(DEADLINE_S)
        assert tracker.rejected == 1
    assert "refuses a value" in caplog.text, "its log is ours"
    assert rows.points() == expected_points(range(2))
    assert {name: run[0] for name, run in rows.runs().items()} == {
        "tiny": "FINISHED",
        "00000": "RUNNING",
        "00001": "RUNNING",
    }


def test_a_killed_one_is_replaced_and_nothing_is_sent_twice(
    config: TrackerConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = Rows(tmp_path / "mlflow.db")
    with tracked(config) as tracker:
        killed: set[int] = set()
        for number in range(4):
            report(tracker, range(number, number + 1))
            if number % 2:  # the others are killed in the middle of something
                tracker.trial_started(trial(number, {"model.depth": 3}))
                assert tracker.flush(DEADLINE_S)
            wait_until(lambda: bool(children() - killed))
            (pid,) = children() - killed
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        report(tracker, range(4, 5))
        assert tracker.flush(DEADLINE_S)
        assert tracker.rejected == 2, "those of the killed ones too"
        assert tracker.close(DEADLINE_S)
    assert not children()
    assert rows.points() == expected_points(range(5))
    assert sorted(rows.runs()) == [*(f"{number:05d}" for number in range(5)), "tiny"]
    assert "the process that sends to MLflow ended (-9)" in caplog.text


def children() -> set[int]:
    """Process ids of the writers that this process has started."""
    return {pid for pid in descendants(os.getpid()) if b"tracking_process" in _command(pid)}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def driver(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that tracks, in a folder with a package that is named as one of ours."""
    named_alike = folder / "work" / "search"
    named_alike.mkdir(parents=True)
    (named_alike / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    script = folder / "driver.py"
    script.write_text(DRIVER)
    with subprocess.Popen(
        [sys.executable, str(script), str(folder), *arguments],
        cwd=folder / "work",
        env=environment(folder)
        | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3600", "MLFLOW_LOGGING_LEVEL": "INFO"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_ends_with_its_driver_and_minds_neither_folder_nor_terminal(tmp_path: Path) -> None:
    with driver(tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = list(itertools.takewhile("sent\n".__ne__, process.stdout))
        assert any(line.startswith("mlflow.store.db.utils: Creating") for line in lines), lines
        (writer,) = descendants(process.pid)
        assert os.getpgid(writer) != os.getpgid(process.pid), "Ctrl-C is for the driver"
        process.kill()
        assert not process.stderr.read()  # to its end, which is that of both
    assert not _command(writer)
    assert list(Rows(tmp_path / "mlflow.db").runs()) == ["tiny"]


@contextmanager
def silent_server() -> Iterator[tuple[str, threading.Event]]:
    """The address of one that never answers, and what is set once it is asked for something."""
    asked, over = threading.Event(), threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/health":
                self.send_response(200)
                self.end_headers()
            else:
                asked.set()
                over.wait()

    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            over.set()
            server.shutdown()
            serving.join()


def test_it_ends_with_its_driver_in_the_middle_of_a_request(tmp_path: Path) -> None:
    with silent_server() as (uri, asked), driver(tmp_path, uri) as process:
        assert asked.wait(DEADLINE_S)
        (writer,) = descendants(process.pid)
        process.kill()
        wait_until(lambda: not _command(writer))


def test_it_is_closed_in_the_middle_of_a_request_and_stays_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3600")
    with silent_server() as (uri, asked), ThreadPoolExecutor() as threads:
        (tmp_path / "spool").mkdir()
        with writer_process() as writer:
            writer.open(TrackerConfig(uri, "statten", "tiny", "id-1", tmp_path / "spool"))
            waiting = threads.submit(writer.connect, 1000.0)
            assert asked.wait(DEADLINE_S)
        with pytest.raises(TrackingError, match="ended \\(-9\\)"):
            waiting.result(DEADLINE_S)
        with pytest.raises(TrackingError, match="any more"):
            writer.connect(1000.0)
        assert not children()


def test_it_waits_for_an_earlier_one(config: TrackerConfig, tmp_path: Path) -> None:
    chunk = Chunk([], 0, 0, uncertain=False)
    with writer_process() as writer:
        writer.open(config)
        config.spool_dir.mkdir(parents=True)
        with (config.spool_dir / "sending").open("wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(TrackingError, match="an earlier driver's process still sends"):
                writer.connect(1000.0)
        assert writer.connect(1000.0)
        writer.deliver(chunk)
    assert list(Rows(tmp_path / "mlflow.db").runs()) == ["tiny"]


def test_a_store_that_is_away_is_told_as_by_this_process(tmp_path: Path) -> None:
    config = TrackerConfig("http://127.0.0.1:9", "statten", "tiny", "id-1", tmp_path / "spool")
    with pytest.raises(TrackingError) as here:
        Tracker(config).start()
    with writer_process() as writer, pytest.raises(TrackingError) as there:
        Tracker(config, writer.open).start()
    assert str(there.value) == str(here.value)
