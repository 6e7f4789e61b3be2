"""The process that writes to MLflow, forked from a driver that has imported everything already."""

import os
from multiprocessing.connection import Connection, Pipe
from typing import Any

from search.tracking_process import serve


class Forked:
    """What is asked of a `Popen`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self) -> int | None:
        return self._wait(0)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self._pid, 9)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self._pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def fork_writer() -> tuple[Forked, "Connection[Any, Any]"]:
    """As `search.tracking_process.start_writer`, without the seconds that imports take."""
    mine, its = Pipe()
    pid = os.fork()
    if pid == 0:
        mine.close()
        os.setsid()
        try:
            serve(its.fileno())
        finally:
            os._exit(1)
    its.close()
    return Forked(pid), mine
