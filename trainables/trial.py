"""The Tune adapters: thin hooks over the training loop; the only file here that imports Ray.

SpikingTrial trains in the trial's own process, SharedTrial in several through Ray Train.
"""

import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from trainables.config import TrialConfig
from trainables.errors import SpiketuneError, StoreError, TrialFailedError
from trainables.files import BEST, SUFFIX, epoch_path
from trainables.remote import StoredFolder, train_stored
from trainables.usage import UsageMeter

# The driver needs these classes too, and not the seconds and the memory that torch takes: what
# trains is imported where it trains.
if TYPE_CHECKING:
    from trainables.parallel import World

POLL_S = 1.0
END_S = 60.0
SCRATCH = "ray-train"  # a trial's folder for Ray Train; in a store, the folder of these


class _Trial(tune.Trainable):
    """A trial whose checkpoints are ours: Tune is to keep none.

    `config` holds `number`, `attempt`, `trial` (a TrialConfig as plain mapping), `folder` (where
    checkpoints go), `known_epochs` (those the ledger has), `threads`, where trials ask for as much
    as they need `resources`, and where checkpoints go to a store instead `store`: its `url` and the
    `path` of the trial's folder in it. Checkpoints are written before the epoch is reported, so a
    lost worker costs at most one epoch. A failure that no retry can mend is reported as a result
    (`failure`, `message`), not raised.
    """

    _assignment: dict[str, Any]

    def save_checkpoint(self, _checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: our checkpoints lie in the search's folder."""
        return {"number": self._assignment["number"]}

    def load_checkpoint(self, _checkpoint: dict[str, Any] | None) -> None:
        """Nothing: a restarted trial finds its last good checkpoint itself."""

    @property
    def _folder(self) -> Path:
        return Path(self._assignment["folder"])

    def _discard_unreported(self) -> None:
        if "store" not in self._assignment:
            discard_after(self._folder, _newest(self._assignment))


class SpikingTrial(_Trial):
    """One trial as Ray Tune sees it: an epoch a step.

    The epoch of a restored checkpoint is reported again, for the worker may have been lost between
    the two; the ledger ignores it when it knows it.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take the assignment; work starts at the first step, where errors can be told apart."""
        self._assignment = config
        self._epochs: Iterator[dict[str, Any]] | None = None

    def step(self) -> dict[str, Any]:
        """Train and evaluate one epoch, checkpoint it, report it."""
        try:
            if self._epochs is None:
                self._epochs = self._start()
                self._usage = UsageMeter()
            return _reported(next(self._epochs)) | self._usage.read()
        except (SpiketuneError, RuntimeError, MemoryError) as error:
            final = _final_failure(error)
            if final is None:
                raise
            self._epochs = None  # what it holds is in the way of the worker's next trial
            return final

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next assignment in the same process: imports and data stay loaded."""
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Let go of the network before the worker is reused or ends."""
        self._epochs = None

    def _start(self) -> Iterator[dict[str, Any]]:
        import torch

        from trainables.memory import limit_device_memory

        self._discard_unreported()
        torch.set_num_threads(max(1, int(self._assignment["threads"])))
        limit_device_memory(self._assignment.get("resources", {}).get("gpu", 0.0))
        return _epochs(self._assignment)


class SharedTrial(_Trial):
    """One trial whose batches several processes share, through Ray Train; an epoch a step.

    The processes wait for leave before each epoch, so that a trial that is stopped ends in order
    and gives back what it occupies.
    """

    def setup(
        self, config: dict[str, Any], processes: int = 2, cpus: float = 2.0, gpus: float = 0.0
    ) -> None:
        """Take the assignment; work starts at the first step, where errors can be told apart.

        Args:
            config: as SpikingTrial's.
            processes: how many share the trial.
            cpus: CPUs of the whole trial.
            gpus: GPUs of the whole trial; one a process, or none.
        """
        self._assignment = config
        self._processes, self._cpus, self._gpus = processes, cpus, gpus
        self._trainer: threading.Thread | None = None
        self._error: BaseException | None = None

    def step(self) -> dict[str, Any]:
        """Let the processes train an epoch, and report it.

        Raises:
            ray.train.TrainingFailedError: a process was lost; Tune starts the trial again.
        """
        if self._trainer is None:
            self._trainer = self._start()
        else:
            self._leave.put(True)
        return self._next_report(self._trainer)

    def cleanup(self) -> None:
        """End the processes and wait until they have given back their CPUs and GPUs."""
        if self._trainer is None:
            return
        self._leave.put(False)
        self._trainer.join(END_S)
        self._leave.shutdown(force=True)
        self._reports.shutdown(force=True)
        if "store" in self._assignment:
            with suppress(StoreError):  # then it goes when the session ends
                self._stored_scratch.clear()
        else:
            shutil.rmtree(self._scratch, ignore_errors=True)

    # Ray Train insists on a folder of its own, on storage that all its nodes see.
    @property
    def _scratch(self) -> Path:
        return self._folder / SCRATCH

    @property
    def _stored_scratch(self) -> StoredFolder:
        search, _, trial = self._assignment["store"]["path"].rpartition("/")
        url = self._assignment["store"]["url"]
        return StoredFolder(url, f"{search}/{SCRATCH}/{trial}", patience_s=0.0)

    @property
    def _scratch_place(self) -> dict[str, Any]:
        if "store" not in self._assignment:
            return {"storage_path": str(self._scratch)}
        stored = self._stored_scratch
        return {"storage_path": stored.place, "storage_filesystem": stored.system}

    def _start(self) -> threading.Thread:
        from ray.util.queue import Queue

        self._discard_unreported()
        self._leave = Queue(actor_options={"num_cpus": 0})
        self._reports = Queue(actor_options={"num_cpus": 0})
        thread = threading.Thread(target=self._fit, daemon=True)
        thread.start()
        return thread

    def _fit(self) -> None:
        from ray import train
        from ray.train import torch as train_torch

        use_gpu = self._gpus > 0.0
        each = {"CPU": self._cpus / self._processes} | ({"GPU": 1.0} if use_gpu else {})
        trainer = train_torch.TorchTrainer(
            _share,
            train_loop_config={
                **self._assignment,
                "threads": max(1, int(self._cpus) // self._processes),
                "leave": self._leave,
                "reports": self._reports,
            },
            torch_config=train_torch.TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=self._processes, use_gpu=use_gpu, resources_per_worker=each
            ),
            run_config=train.RunConfig(name="shared", **self._scratch_place),
        )
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001  # raised in the step that waits for it
            self._error = error

    def _next_report(self, trainer: threading.Thread) -> dict[str, Any]:
        from ray.util.queue import Empty

        while True:
            is_running = trainer.is_alive()
            try:
                report: dict[str, Any] = self._reports.get(timeout=POLL_S)
            except Empty:
                if not is_running:
                    return self._failed()
            else:
                return report

    def _failed(self) -> dict[str, Any]:
        error = self._error or RuntimeError("the processes of a shared trial ended early")
        for failure in getattr(error, "worker_failures", {}).values():
            cause = getattr(failure, "_base_exc", failure)
            final = _final_failure(cause)
            if final is not None:
                return final
            if isinstance(cause, StoreError):
                raise cause
        raise error


def _share(config: dict[str, Any]) -> None:
    """One process of a shared trial."""
    import torch
    from ray import train
    from ray.train.torch import get_device

    from trainables.parallel import World

    torch.set_num_threads(config["threads"])
    context = train.get_context()
    device_index = get_device().index or 0
    world = World(context.get_world_rank(), context.get_world_size(), device_index)
    usage = UsageMeter()
    for epoch in _epochs(config, world):
        if world.rank == 0:
            config["reports"].put(_reported(epoch) | usage.read())
        if not epoch["done"] and not _may_go_on(config["leave"], world):
            return


def _epochs(
    assignment: Mapping[str, Any], world: "World | None" = None
) -> Iterator[dict[str, Any]]:
    """Train what was assigned, in one of its processes."""
    from trainables.launch import train_alone
    from trainables.parallel import ALONE

    trial, world = TrialConfig.model_validate(assignment["trial"]), world or ALONE
    if "store" not in assignment:
        return train_alone(trial, Path(assignment["folder"]), world)
    return train_stored(trial, StoredFolder(**assignment["store"]), _newest(assignment), world)


def _newest(assignment: Mapping[str, Any]) -> int:
    """The last epoch that may be continued.

    One epoch may be saved and not reported. Files beyond that are of epochs that the ledger has
    lost: what came between could never be reported.
    """
    known: int = assignment["known_epochs"]
    if "store" in assignment and assignment["attempt"] == 1:
        return 0  # what lies there is of a trial that the ledger has lost
    return known + 1


def _reported(epoch: dict[str, Any]) -> dict[str, Any]:
    """An epoch as Tune takes it: flat."""
    rates = epoch.pop("layer_rates", None)
    return epoch if rates is None else {**epoch, "layer_rates": json.dumps(rates)}


def _may_go_on(leave: Any, world: "World") -> bool:
    import torch

    answer = bool(leave.get()) if world.rank == 0 else False
    return bool(world.total(torch.tensor([int(answer)])).item())


def _final_failure(error: BaseException) -> dict[str, Any] | None:
    """The report of a failure that no retry can mend; None for any other."""
    from trainables.memory import is_out_of_memory

    if isinstance(error, StoreError):
        return None
    if isinstance(error, TrialFailedError):
        return _failure(error.reason, str(error))
    if is_out_of_memory(error):
        return _failure("out_of_memory", str(error))
    return _failure("bad_input", str(error)) if isinstance(error, SpiketuneError) else None


def discard_after(folder: Path, epoch: int) -> None:
    """Delete a trial's checkpoints of later epochs; earlier ones stay."""
    last = epoch_path(folder, epoch).name
    later = [path for path in folder.glob(f"epoch-*{SUFFIX}") if path.name > last]
    for path in later:
        path.unlink()
    if later:
        (folder / BEST).unlink(missing_ok=True)


def _failure(reason: str, message: str) -> dict[str, Any]:
    return {"failure": reason, "message": message, "done": True}
