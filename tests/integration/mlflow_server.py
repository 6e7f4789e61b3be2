"""A real MLflow server in a process of its own."""

import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from search.tracking import ui_command, ui_environment

DEADLINE_S = 40.0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        pause.wait(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class MlflowServer:
    """An MLflow server that can be frozen, killed and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = folder / "mlflow.db"
        self._log = (folder / "server.log").open("ab")
        self.start()

    def start(self) -> None:
        store = f"sqlite:///{self.database}"
        self._process = subprocess.Popen(
            ui_command(store, self.port),
            env=ui_environment(store),
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        try:
            wait_until(self._healthy)
        except BaseException:
            self.close()
            raise

    def _healthy(self) -> bool:
        assert self._process.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
        except OSError:
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        if self._process.poll() is None:
            self.kill()
        self._log.close()
