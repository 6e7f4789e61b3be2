"""Processes forked from one that has imported everything already: each saves seconds of imports."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest


@cache
def context() -> ForkServerContext:
    """Python has one server a process: whoever used another list of imports would set all back."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["preloaded"])
    here = str(Path(__file__).parent)
    with pytest.MonkeyPatch.context() as patch:
        # The server looks for modules only where a new Python does.
        patch.setenv("PYTHONPATH", os.pathsep.join([here, *filter(None, sys.path)]))
        patch.setenv("OMP_NUM_THREADS", "1")  # read when torch is imported
        forkserver.ensure_running()
    return found


def start(
    target: Callable[..., Any],
    *arguments: Any,
    folder: Path,
    variables: Mapping[str, str],
    output: Path,
    errors: Path | None = None,
) -> BaseProcess:
    """Call a function as if it were a program's, in a session of its own.

    Args:
        target: a function of a module; what it returns or exits with is the exit status.
        arguments: for it.
        folder: where it works.
        variables: its environment.
        output: file that its output is appended to.
        errors: the same for its errors, `output` unless given.
    """
    files = (str(output), str(errors or output))
    process = context().Process(
        target=_call, args=(target, arguments, str(folder), dict(variables), files)
    )
    process.start()
    return process


def run(
    target: Callable[..., Any],
    *arguments: Any,
    folder: Path,
    variables: Mapping[str, str],
    timeout_s: float = 600,
) -> subprocess.CompletedProcess[str]:
    """`start`, and wait for its end; what is left of it by then is killed."""
    with tempfile.TemporaryDirectory() as said:
        output, errors = (Path(said) / name for name in ("output", "errors"))
        process = start(
            target,
            *arguments,
            folder=folder,
            variables=variables,
            output=output,
            errors=errors,
        )
        process.join(timeout_s)
        if process.exitcode is None:
            os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(
            arguments, process.exitcode, output.read_text(), errors.read_text()
        )


def _call(
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
    folder: str,
    variables: dict[str, str],
    files: tuple[str, str],
) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for descriptor, path in enumerate(files, 1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    warnings.simplefilter("default")
    sys.exit(target(*arguments))
