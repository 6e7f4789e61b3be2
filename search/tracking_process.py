"""Tracking in a process of its own: MLflow takes as long for a trial as Tune does.

Threads of one interpreter take turns; the driver's are left to the search.
"""

import fcntl
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NamedTuple

from search.spool import Chunk
from search.tracking_runs import RunWriter
from search.tracking_store import load_mlflow, run_writer
from search.tracking_uri import TrackerConfig, TrackingError, redact

ALONE_S = 10.0  # one whose driver has been killed ends in milliseconds


class _Reply(NamedTuple):
    value: object
    failure: str | None
    is_told: bool  # the failure's text says all
    rejected: int


class WriterProcess:
    """A `RunWriter` in another process, which ends with this one.

    One that has ended before its time is an outage: the next call starts another.
    """

    def __init__(self) -> None:
        self._config: TrackerConfig | None = None
        self._is_closed = False
        self._lock = threading.Lock()  # of the connection
        self._before = self._rejected = 0
        self._process, self._connection = start_writer()

    @property
    def rejected(self) -> int:
        """Values that the store refused for good."""
        return self._before + self._rejected

    def open(self, config: TrackerConfig) -> "WriterProcess":
        """As `run_writer`: say where runs are tracked, before anything is asked."""
        self._config = config
        return self

    def connect(self, time_s: float) -> bool:
        """As `RunWriter.connect`.

        Raises:
            TrackingError: the store does not answer, or the process has ended.
        """
        return bool(self._ask("connect", time_s))

    def deliver(self, chunk: Chunk) -> None:
        """As `RunWriter.deliver`.

        Raises:
            TrackingError: the store does not answer, or the process has ended.
        """
        self._ask("deliver", chunk)

    def close(self) -> None:
        """End the process, whatever it does: what is not acknowledged is sent again later."""
        self._is_closed = True
        self._process.kill()  # a thread that waits for its answer gets none
        with self._lock:
            self._end()

    def _ask(self, method: str, argument: object) -> object:
        with self._lock:
            if self._is_closed:
                raise TrackingError("nothing is sent to MLflow any more")
            try:
                if self._process.poll() is not None:
                    self._before, self._rejected = self.rejected, 0
                    self._process, self._connection = start_writer()
                self._connection.send((self._config, method, argument))
                reply = self._reply()
            except (OSError, EOFError) as error:
                code = self._end()
                raise TrackingError(f"the process that sends to MLflow ended ({code})") from error
        self._rejected = reply.rejected
        if reply.failure is not None:
            raise TrackingError(reply.failure) if reply.is_told else OSError(reply.failure)
        return reply.value

    def _end(self) -> int | None:
        self._process.kill()
        code = self._process.wait()
        self._connection.close()
        return code

    def _reply(self) -> _Reply:
        while True:
            said = self._connection.recv()
            if isinstance(said, _Reply):
                return said
            logger = logging.getLogger(said.name)
            if logger.isEnabledFor(said.levelno):
                logger.handle(said)


@contextmanager
def writer_process() -> Iterator[WriterProcess]:
    """A process that writes runs, for as long as the context lasts; MLflow's import begins now."""
    writer = WriterProcess()
    try:
        yield writer
    finally:
        writer.close()


def start_writer() -> tuple["subprocess.Popen[bytes]", "Connection[Any, Any]"]:
    """Start a process that serves, and return it with the connection to it."""
    mine, its = Pipe()
    with its:
        code = f"from search.tracking_process import serve; serve({its.fileno()})"
        process = subprocess.Popen(
            # -P: the folder one works in may hold modules that are named as ours.
            [sys.executable, "-P", "-W", "ignore", "-c", code],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path),
            },
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the driver: it decides what is still sent
        )
    return process, mine


def serve(descriptor: int) -> None:
    """Do what a `WriterProcess` asks for, until it closes the connection."""
    channel = _Channel(descriptor)
    threading.Thread(target=_end_with, args=[descriptor], daemon=True).start()
    load_mlflow()
    for name in [*logging.root.manager.loggerDict]:  # MLflow's write to the driver's terminal
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger().addHandler(QueueHandler(channel))
    logging.getLogger().setLevel(logging.INFO)
    writer: RunWriter | None = None
    with ExitStack() as held:
        while True:
            try:
                config, method, argument = channel.get()
            except EOFError:
                return
            value, failure, is_told = None, None, False
            try:
                if writer is None:
                    held.enter_context(_alone(config))
                    writer = run_writer(config)
                value = getattr(writer, method)(argument)
            # MLflow and its databases' drivers raise errors of many classes.
            except Exception as error:  # noqa: BLE001
                failure, is_told = redact(str(error)), isinstance(error, TrackingError)
            channel.put_nowait(_Reply(value, failure, is_told, writer.rejected if writer else 0))


class _Channel:
    """A connection that several threads may send to."""

    def __init__(self, descriptor: int) -> None:
        self._connection: Connection[Any, Any] = Connection(descriptor)
        self._lock = threading.Lock()

    def get(self) -> Any:
        return self._connection.recv()

    def put_nowait(self, message: object) -> None:
        with self._lock:
            self._connection.send(message)


@contextmanager
def _alone(config: TrackerConfig) -> Iterator[None]:
    """Wait until the process of a driver that was killed has ended too."""
    deadline = time.monotonic() + ALONE_S
    with (config.spool_dir / "sending").open("wb") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise TrackingError(
                        f"an earlier driver's process still sends what is in {config.spool_dir}"
                    ) from error
                time.sleep(0.02)  # nobody tells who waits here, and to wait has to end
        yield


def _end_with(descriptor: int) -> None:
    """End this process when the other end is closed, in the middle of whatever it does."""
    poll = select.poll()
    poll.register(descriptor, 0)  # hanging up is always told
    poll.poll()
    os._exit(0)
