"""Training one network to its end: in this process, or shared by several on this machine."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import (
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from trainables import checkpoint as checkpoints
from trainables.config import TrialConfig
from trainables.data import check_data
from trainables.errors import SpiketuneError, TrialFailedError
from trainables.loop import TrialRun, pick_device
from trainables.parallel import ALONE, World

POLL_S = 0.2
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def train_alone(
    config: TrialConfig, folder: Path, world: World = ALONE
) -> Iterator[dict[str, Any]]:
    """Train in this process, from the last good checkpoint or the start to the last epoch.

    In a shared world every process calls this; rank 0 writes the checkpoints.

    Args:
        config: the network and how it is trained.
        folder: where checkpoints are and go.
        world: the processes that train it.

    Yields:
        Each epoch's metrics, `done`, `num_steps` and `layer_rates`, after it is saved; first the
        metrics of a restored checkpoint's epoch, without `layer_rates`.

    Raises:
        InputError: the data are missing or do not fit.
        TrialFailedError: the loss became NaN, or the device is absent.
        OSError: the disk is full or read-only.
    """
    run = TrialRun(config, world)
    found = checkpoints.last_good(folder)
    if found is not None:
        run.restore(found)
        yield {**run.metrics, "done": run.done, "num_steps": run.num_steps}
    while not run.done:
        metrics, rates = run.step()
        if world.rank == 0:
            run.save(folder)
        position = {"done": run.done, "num_steps": run.num_steps, "layer_rates": rates}
        yield {**metrics, **position}


def train_here(config: TrialConfig, folder: Path, processes: int) -> Iterator[dict[str, Any]]:
    """Train with several processes of this machine; yields what `train_alone` does.

    Closing the iterator ends the processes.

    Args:
        config: the network and how it is trained.
        folder: where checkpoints are and go.
        processes: how many; each takes a CUDA device of its own where the network trains on CUDA.

    Raises:
        InputError: the data are missing or do not fit, or there are too few devices.
        TrialFailedError: training failed, or a process was lost.
    """
    check_data(config)  # what is wrong with the input is said before anything is started
    _check_devices(config, processes)
    # Written by the process itself, not by a thread that its end may cut off.
    reports: Any = mp.get_context("spawn").SimpleQueue()
    threads = max(1, torch.get_num_threads() // processes)
    with tempfile.TemporaryDirectory(prefix="spiketune-") as scratch:
        started = start_processes(
            _process,
            (processes, scratch, config, folder, threads, reports),
            nprocs=processes,
            join=False,
            start_method="spawn",
        )
        try:
            yield from _epochs(started, reports)
        finally:
            for process in started.processes:
                process.kill()
                process.join()
            reports.close()


def _epochs(started: Any, reports: Any) -> Iterator[dict[str, Any]]:
    failure: BaseException | None = None
    is_running = True
    while is_running:
        try:
            is_running = not started.join(timeout=POLL_S)
        except (ProcessRaisedException, ProcessExitedException) as error:
            failure, is_running = failure or error, False
        for item in _waiting(reports):
            if isinstance(item, dict):
                yield item
            elif not isinstance(failure, SpiketuneError):
                failure = item
    if isinstance(failure, SpiketuneError | OSError | torch.cuda.OutOfMemoryError):
        raise failure
    if failure is not None:
        raise TrialFailedError("worker_lost", f"a training process was lost: {failure}")


def _waiting(reports: Any) -> Iterator[Any]:
    while not reports.empty():
        yield reports.get()


def _check_devices(config: TrialConfig, processes: int) -> None:
    device = pick_device(config.train)
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise TrialFailedError(
            "no_device",
            f"processes must be at most {torch.cuda.device_count()} (CUDA devices of this "
            f"machine), but got {processes}",
        )


def _process(
    rank: int,
    size: int,
    scratch: str,
    config: TrialConfig,
    folder: Path,
    threads: int,
    reports: Any,
) -> None:
    torch.set_num_threads(threads)
    world = World(rank, size, device_index=rank)
    device = pick_device(config.train, rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _stay_on_this_machine()
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{scratch}/rendezvous",
        rank=rank,
        world_size=size,
    )
    try:
        for epoch in train_alone(config, folder, world):
            if rank == 0:
                reports.put(epoch)
    except (SpiketuneError, OSError, torch.cuda.OutOfMemoryError) as error:
        reports.put(error)
        raise
    finally:
        dist.destroy_process_group()


def _stay_on_this_machine() -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
