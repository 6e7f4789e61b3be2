"""Runs a search: checks, ledger, tracker, Ray, and an orderly end whatever happens."""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.connect import ray_session
from cluster.resources import trial_processes
from search.datasets import datasets
from search.director import Director, Watcher, trial_files
from search.first import with_warm_points
from search.folder import SearchFolder
from search.packing import Packing, machines_here, packing_here, slots_here
from search.recorded import create_ledger, open_ledger, take_ledger
from search.records import TrialRecord
from search.reporting import report_search
from search.results import is_over
from search.screening import check_screen
from search.signals import Interruption, interruption
from search.stored import check_store, clear_scratch
from search.study import Ledger
from search.summary import summary_metrics
from search.tracking import Tracker, TrackerConfig, redact, resolve_uri
from search.tracking_process import WriterProcess, writer_process
from search.tracking_uri import check_reachable
from search.versions import versions
from spaces.schema import SearchSpec
from trainables.errors import InputError
from trainables.remote import sweep as sweep_working_folders

if TYPE_CHECKING:
    from ray import tune

    Trainable = type[tune.Trainable]

logger = logging.getLogger(__name__)

TRACKER_CLOSE_S = 30.0
REMOVER_CLOSE_S = 30.0
# Tune waits for machines for this many trials at once; for one at a time unless it is told.
MOST_PENDING = 10_000


@dataclass(frozen=True)
class Outcome:
    """How a search ended.

    Attributes:
        records: every trial.
        signal_number: the signal that ended it early; 0 when it came to its end.
        exhausted: whether every valid point of the space was tried before the budget was used.
        unsent: tracking events still in the spool.
        seconds: wall-clock of this run.
    """

    records: list[TrialRecord]
    signal_number: int
    exhausted: bool
    unsent: int
    seconds: float


def start_search(
    spec: SearchSpec,
    folder: SearchFolder,
    text: str,
    address: str | None,
    watcher: Watcher,
    trainable: "Trainable | None" = None,
) -> Outcome:
    """Run a new search to its end.

    Args:
        spec: the search.
        folder: where it is to lie; must not hold a search.
        text: the YAML as given, kept for the reader.
        address: a running Ray cluster, or None for this machine.
        watcher: told of every change.
        trainable: what a trial runs, `SpikingTrial` unless given; reports as that does.

    Raises:
        InputError: the name is taken, data are missing, or the cluster cannot hold a trial.
        TrackingError: MLflow does not answer and `tracking.required` holds.
        ConnectionError: no cluster answers at the address.
        InterruptedEarlyError: a signal came before the first trial.
    """
    if folder.exists:
        raise InputError(
            f"{folder.path}: a search named {folder.name!r} exists already; "
            f"`spiketune resume {folder.name}` continues it, --name starts another"
        )
    spec = with_warm_points(spec, folder)
    with interruption() as received:
        _check(spec)
        uri = _tracking_uri(spec, folder)
        with writer_process() as writer, _session(spec, folder, address):
            received.install()
            packing = packing_here(spec)  # refuses what does not fit before there is a ledger
            ledger = create_ledger(spec, folder, text)
            return _run(spec, folder, ledger, packing, uri, writer, watcher, received, trainable)


def resume_search(
    folder: SearchFolder,
    address: str | None,
    watcher: Watcher,
    trainable: "Trainable | None" = None,
    *,
    force: bool = False,
    opened: tuple[SearchSpec, Ledger] | None = None,
) -> Outcome:
    """Continue a search: finished trials are kept, unfinished ones go on from their checkpoints.

    Args:
        folder: where it lies.
        address: a running Ray cluster, or None for this machine.
        watcher: told of every change.
        trainable: what a trial runs, `SpikingTrial` unless given.
        force: go on under other versions, and without what a damaged log has lost.
        opened: what `open_ledger` returned, not to be read again; it is closed at the end.

    Where nothing is left to run it needs neither data nor Ray: what a full disk or a silent MLflow
    did not take is sent, and the report is written.

    Raises:
        InputError: another driver runs it, versions differ, data are missing, or the cluster
            cannot hold a trial.
        LedgerError: the ledger is missing or damaged.
        TrackingError: MLflow does not answer and `tracking.required` holds.
        ConnectionError: no cluster answers at the address.
        InterruptedEarlyError: a signal came before the first trial.
    """
    with interruption() as received:
        spec, ledger = opened or open_ledger(folder, force=force)
        try:
            take_ledger(folder, ledger, force=force)
            received.resume = resume_command(folder)
            if is_over(spec, ledger.records, ledger.used_s(time.time())):
                uri = _tracking_uri(spec, folder)
                with writer_process() as writer:
                    return _run(
                        spec, folder, ledger, None, uri, writer, watcher, received, trainable
                    )
            _check(spec)
            uri = _tracking_uri(spec, folder)
            with writer_process() as writer, _session(spec, folder, address):
                received.install()
                packing = packing_here(spec)
                return _run(
                    spec, folder, ledger, packing, uri, writer, watcher, received, trainable
                )
        finally:
            ledger.close()


@contextmanager
def _session(spec: SearchSpec, folder: SearchFolder, address: str | None) -> Iterator[None]:
    """Ray, for as long as trials run, and nothing of it left in their folders after."""
    from trainables.trial import SCRATCH

    is_shared = trial_processes(spec.resources) > 1
    try:
        with ray_session(address, dashboard=is_shared):
            yield
    finally:
        # The last trials' actors end with the session, maybe before they have come to this.
        for left in (folder.path / "trials").glob(f"*/{SCRATCH}") if is_shared else ():
            shutil.rmtree(left, ignore_errors=True)
        if spec.storage.checkpoints is not None:
            sweep_working_folders()
        if is_shared:
            clear_scratch(spec, folder)


def resume_command(folder: SearchFolder) -> str:
    """What continues a search."""
    return f"spiketune resume {folder.name}{folder.runs_option}"


def _check(spec: SearchSpec) -> None:
    from trainables.data import check_data  # torch: a search with nothing left needs none

    check_data(spec.base_config)
    check_screen(spec)
    check_store(spec)


def _tracking_uri(spec: SearchSpec, folder: SearchFolder) -> str:
    uri = resolve_uri(spec.tracking.uri, folder.runs)
    if spec.tracking.required:
        check_reachable(uri)
    return uri


def _run(
    spec: SearchSpec,
    folder: SearchFolder,
    ledger: Ledger,
    packing: Packing | None,
    uri: str,
    writer: WriterProcess,
    watcher: Watcher,
    received: Interruption,
    trainable: "Trainable | None",
) -> Outcome:
    start = time.monotonic()
    received.resume = resume_command(folder)
    tracker = Tracker(tracker_config(spec, folder, ledger.search_id, uri), writer.open)
    try:
        tracker.start()
        data = [] if packing is None else _datasets(spec)
        tracker.search_started(_params(spec), versions(), _artifacts(folder), data)
        director = Director(spec, folder, ledger, tracker, watcher)
        received.listen(lambda: setattr(director, "closing", True))
        if packing is not None:  # else there is nothing left to run
            _fit(director, folder, packing, trainable)
        director.close(REMOVER_CLOSE_S)
        if director.failure is not None:
            raise director.failure
        ledger.check_held()
        _end(director, folder, tracker, interrupted=bool(received.number))
    finally:
        tracker.close(TRACKER_CLOSE_S, patient=False)
        ledger.close()
    return Outcome(
        records=ledger.records,
        signal_number=received.number,
        exhausted=director.exhausted or (packing is None and _is_exhausted(spec, ledger.records)),
        unsent=tracker.pending,
        seconds=time.monotonic() - start,
    )


def _is_exhausted(spec: SearchSpec, records: list[TrialRecord]) -> bool:
    return spec.search_space.cardinality() <= len(records) < spec.budget.trials


def tracker_config(
    spec: SearchSpec, folder: SearchFolder, search_id: str, uri: str
) -> TrackerConfig:
    """Where a search is tracked."""
    return TrackerConfig(
        uri=uri,
        experiment=spec.tracking.experiment,
        search=folder.name,
        search_id=search_id,
        spool_dir=folder.spool,
        required=spec.tracking.required,
    )


def _fit(
    director: Director, folder: SearchFolder, packing: Packing, trainable: "Trainable | None"
) -> None:
    from ray import tune

    from search.adapters import (
        InterruptStopper,
        LedgerCallback,
        LedgerScheduler,
        LedgerSearcher,
        NoProgress,
        register,
        unregister,
    )

    spec, processes = director.spec, trial_processes(director.spec.resources)
    if processes == 1:
        director.shares.use(packing, machines_here())
    key = director.ledger.search_id
    register(key, director, slots_here(spec, packing))
    # Tune's own bookkeeping is pickled and not ours to keep: the ledger is the record.
    with tempfile.TemporaryDirectory(prefix="spiketune-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            _trainable(packing, processes, trainable),
            tune_config=tune.TuneConfig(
                search_alg=LedgerSearcher(key),
                scheduler=LedgerScheduler(key),
                num_samples=-1,
                max_concurrent_trials=MOST_PENDING,  # how many there are is the searcher's
                reuse_actors=processes == 1,  # by trials that ask for the same
            ),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=scratch,
                verbose=0,
                callbacks=[NoProgress(), LedgerCallback(key, spec.stopping.trial_timeout_s)],
                failure_config=tune.FailureConfig(max_failures=0),  # retries are ours
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # and these too
                stop=InterruptStopper(key),
            ),
        )
        try:
            tuner.fit()
        finally:
            unregister(key)


def _trainable(packing: Packing, processes: int, given: "Trainable | None") -> Any:
    from ray import tune

    from trainables.trial import SharedTrial, SpikingTrial

    wanted = packing.wanted
    if processes == 1:

        def assigned(config: dict[str, Any]) -> tune.PlacementGroupFactory:
            # Every attempt is a trial to Tune, so a larger share needs no more than being asked.
            asked: dict[str, float] = config["resources"]
            bundle = {name if name == "memory" else name.upper(): n for name, n in asked.items()}
            return tune.PlacementGroupFactory([bundle])

        return tune.with_resources(given or SpikingTrial, assigned)
    if given is not None:
        return tune.with_resources(given, dict(wanted))
    # The trial itself only waits: its processes ask for what it occupies. Tune wants it to ask for
    # something: one byte of memory.
    shared = tune.with_parameters(
        SharedTrial, processes=processes, cpus=wanted["cpu"], gpus=wanted["gpu"]
    )
    return tune.with_resources(shared, {"cpu": 0.0, "memory": 1.0})


def _end(director: Director, folder: SearchFolder, tracker: Tracker, *, interrupted: bool) -> None:
    spec, records = director.spec, director.ledger.records
    report_search(spec, folder, records)
    files = partial(trial_files, folder, director.store)
    tracker.catch_up(records, files)  # what a full disk refused
    metrics = summary_metrics(spec, records)
    status = "KILLED" if interrupted else "FINISHED"
    artifacts = {path.name: path for path in (folder.report, folder.report_numbers)}
    tracker.search_ended(status, metrics, artifacts, time.time())


def _params(spec: SearchSpec) -> dict[str, Any]:
    return {
        "recipe": spec.recipe,
        "sampler.name": spec.sampler.name,
        "sampler.seed": spec.sampler.seed,
        "stopping.name": spec.stopping.name,
        "stopping.grace_epochs": spec.stopping.grace_epochs,
        "stopping.reduction_factor": spec.stopping.reduction_factor,
        "budget.trials": spec.budget.trials,
        "train.epochs": spec.base_config.train.epochs,
    }


def _datasets(spec: SearchSpec) -> list[dict[str, str]]:
    """The data of every trial; none where trials differ in them."""
    if any(key.startswith("data.") for key in spec.search_space.domains):
        return []
    return datasets(spec.base_config, "train", "val")


def _artifacts(folder: SearchFolder) -> dict[str, str]:
    return {
        name: redact((folder.path / name).read_text()) for name in ("search.yaml", "resolved.yaml")
    }
