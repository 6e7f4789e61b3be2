"""A search that is real in every part and over in seconds; its networks do learn."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forked

SPACE = """
name: tiny
recipe: digits
trial:
  model.image_size: 8
  model.heads: 2
  model.depth: 1
  train.epochs: 4
  train.batch_size: 32
objectives:
  - {metric: val_top1, mode: max}
  - {metric: energy_mj, mode: min}
space:
  model.timesteps: {choice: [1, 2, 4]}
  model.width: {choice: [16, 24, 32]}
  model.attention: {choice: [statten, sdt]}
  model.block_size: {choice: [1, 2], when: {model.attention: statten}}
  train.lr: {float: [2.0e-3, 2.0e-2], log: true}
sampler: {name: tpe, seed: 4}
stopping: {name: asha, grace_epochs: 2, reduction_factor: 2}
budget: {trials: 6}
resources: {cpus: 1, concurrent: 2}
tracking: {experiment: tiny}
"""
# Short, for sockets lie below it, and one for all tests of a process: those that share a cluster
# have it here, so it goes only after the last of them.
RAY_FOLDER = Path(f"/tmp/st{os.getpid()}")

KEPT = {"SPIKETUNE_CACHE", "SPIKETUNE_STORE_PATIENCE_S"}
GONE_S = 60  # within which a killed process has gone


def write_space(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(SPACE)
    return path


def environment(folder: Path) -> dict[str, str]:
    """Our environment with all of Ray's files below a short temporary folder."""
    RAY_FOLDER.mkdir(exist_ok=True)
    dropped = {k for k in os.environ if k.startswith(("SPIKETUNE_", "MLFLOW_TR"))} - KEPT
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    # Ray's workers would wait for every other test that computes.
    ours = {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    return {**kept, **ours, "RAY_TMPDIR": str(RAY_FOLDER), "TMPDIR": str(folder)}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "default", "-m", "search.cli", *arguments]


def spiketune(
    folder: Path, *arguments: str, code: int = 0, timeout_s: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, without its imports, and expect an exit status."""
    done = forked.run(
        _main, *arguments, folder=folder, variables=environment(folder), timeout_s=timeout_s
    )
    assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


def program(
    folder: Path, *arguments: str, timeout_s: float = 600
) -> subprocess.CompletedProcess[str]:
    """The same as users have it: in a Python of its own that has imported nothing before."""
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


def _main(*arguments: str) -> None:
    from search.cli import main

    sys.argv = ["spiketune", *arguments]
    main(arguments, prog_name="spiketune")


def spiketune_json(folder: Path, *arguments: str) -> Any:
    return json.loads(spiketune(folder, *arguments, "--format", "json").stdout)


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command; whatever is left of it at the end is killed with its children."""
    process = subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
        process.communicate(timeout=GONE_S)
