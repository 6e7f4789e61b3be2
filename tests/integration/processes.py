"""Processes that tests start, look at and kill: a Ray cluster's, a search's workers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlflow_server import free_port
from tiny_search import GONE_S, environment

PATIENCE_S = 600  # only ends what hangs: other work may slow a search down tenfold


@contextmanager
def ray_cluster(
    folder: Path, cpus: int = 2, variables: Mapping[str, str] | None = None, gpus: int = 0
) -> Iterator[str]:
    """A Ray head node in processes of its own, ended by their ids; its GPUs are only counted."""
    port = free_port()
    head = ["--head", f"--port={port}", "--include-dashboard=false", "--disable-usage-stats"]
    with ray_node(folder, [*head, f"--num-cpus={cpus}", f"--num-gpus={gpus}"], variables):
        yield f"127.0.0.1:{port}"


@contextmanager
def ray_node(
    folder: Path, arguments: Sequence[str], variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """One node of a cluster; what is left of it at the end is killed."""
    ray = str(Path(sys.executable).with_name("ray"))
    process = subprocess.Popen(
        [ray, "start", "--block", "--node-ip-address=127.0.0.1", *arguments],
        env={**environment(folder), "RAY_AUTH_MODE": "disabled", **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "--block" in line or "Ray runtime started" in line:
                break
        assert process.poll() is None, "the node did not start"
        yield process
    finally:
        kill_all(process.pid)
        process.communicate(timeout=GONE_S)


def kill_all(parent: int) -> None:
    """Kill a process and all that it has started."""
    for pid in [parent, *descendants(parent)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.05)  # between two looks at another process's file


def worker_of(driver: int) -> int:
    """The process id of a trial worker below a driver."""
    found = trial_workers(driver)
    assert found, "no trial worker runs"
    return found[0]


def trial_workers(parent: int) -> list[int]:
    """Process ids of the trial workers below a driver or a node."""
    found = []
    for pid in descendants(parent):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        # As Tune wraps ours, and as Ray names the others.
        if b"ray::" in title and (b"Trainable" in title or b"FakeTrial" in title):
            found.append(pid)
    return found


def descendants(parent: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields: Any = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, queue = [], [parent]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found
