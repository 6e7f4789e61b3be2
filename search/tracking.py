"""Tracking in MLflow: one writer, in the driver, that never keeps training waiting.

Calls append to a spool on disk and return; a thread sends. Every event keeps its own time, so
sending one twice writes the row that is already there.
"""

import hashlib
import logging
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from search.spool import Chunk, Delivery, Spool
from search.tracking_events import EventWriter
from search.tracking_runs import Point, RunWriter
from search.tracking_uri import (
    TrackerConfig,
    TrackingError,
    artifact_root,
    check_reachable,
    default_uri,
    is_sql,
    redact,
    resolve_uri,
    ui_command,
    ui_environment,
    unusable,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

__all__ = [
    "Tracker",
    "TrackerConfig",
    "TrackingError",
    "default_uri",
    "redact",
    "resolve_uri",
    "ui_command",
    "ui_environment",
]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_METRICS, _MAX_PARAMS, _MAX_TAGS = 1000, 100, 100
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Set only where the user has not: an outage must be noticed in seconds (our own thread tries
# again), nothing is reported to anyone, and nothing is printed between our lines.
_CLIENT_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_PERMANENT = frozenset(
    ("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST")
)


class Tracker(EventWriter):
    """Writes one MLflow run for the search and one below it for each trial.

    The methods that report something are for one thread, cost one small durable write and do
    not raise when the store is away. Repeating a report changes nothing, so a resumed driver may
    report its whole ledger again.

    Raises:
        TrackingError: the search's id holds other characters than letters, digits, `.`, `_`, `-`.
    """

    def __init__(self, config: TrackerConfig) -> None:
        super().__init__()
        if not _ID.fullmatch(config.search_id):
            raise TrackingError(
                f"a search id must match `{_ID.pattern}`, but got {config.search_id!r}"
            )
        self._config = config
        self._runs = RunWriter(
            _Mlflow(config),
            search=config.search,
            search_id=config.search_id,
            key=_key(config),
            path=config.spool_dir / "runs.json",
        )
        self._spool: Spool | None = None
        self._delivery: Delivery | None = None

    def start(self) -> None:
        """Open spool, store, experiment and the search's run, and start sending.

        Raises:
            TrackingError: the store is required and does not answer.
            SpoolError: another process tracks this search.
        """
        spool = Spool(self._config.spool_dir, self._runs.key, self._note)
        try:
            self._connect(spool)
        except Exception as error:  # MLflow lets errors of many classes through
            failure = self._unusable(error)
            if self._config.required:
                spool.close()
                raise failure from error
            _log.warning("tracking: %s; events are kept in %s", failure, spool.path)
        self._spool = spool
        self._delivery = Delivery(spool, self._deliver, lambda error: redact(str(error)))
        self._delivery.start()

    @property
    def pending(self) -> int:
        """Events that the store has not confirmed yet."""
        return self._spool.pending if self._spool else 0

    @property
    def rejected(self) -> int:
        """Values that the store refused for good since `start`; each was logged."""
        return self._runs.rejected

    def run_id(self, number: int | None) -> str | None:
        """MLflow's id of a trial's run (None: the search's), as far as known yet."""
        return self._runs.run_id(number)

    def flush(self, timeout_s: float) -> bool:
        """Wait until the store has confirmed everything; False when time is over first."""
        return self._delivery is None or self._delivery.flush(timeout_s)

    def close(self, timeout_s: float = 30.0) -> bool:
        """Flush and stop; False when events are left, which `sync` or a resume will send."""
        if self._spool is None or self._delivery is None:
            return True
        deadline = time.monotonic() + timeout_s
        done = self.flush(timeout_s)
        ended = self._delivery.stop(max(1.0, deadline - time.monotonic()))
        if not done:
            _log.warning(
                "tracking: %d event(s) are left in %s and will be sent at the next resume or sync",
                self._spool.pending,
                self._spool.path,
            )
        if ended:  # else the thread still reads; the process's end releases the spool
            self._spool.close()
        self._delivery = None
        return done

    def _append(self, kind: str, time_s: float, body: Mapping[str, Any]) -> bool:
        if self._spool is None or self._delivery is None:
            raise TrackingError("a tracker must be started before it is told anything")
        return self._spool.append(kind, time_s, body)

    def _unusable(self, error: Exception) -> TrackingError:
        return error if isinstance(error, TrackingError) else unusable(self._config.uri, error)

    def _connect(self, spool: Spool) -> bool:
        """Open the store; False when its runs are gone and the spool was rewound for that."""
        if self._runs.connect(time.time()) and spool.acked:
            _log.warning("tracking: the store no longer has this search; sending it all again")
            spool.rewind()
            return False
        return True

    def _deliver(self, chunk: Chunk) -> bool:
        spool = self._spool
        if spool is None or not self._connect(spool):
            return False
        self._runs.deliver(chunk)
        return True


def preload() -> None:
    """Import MLflow, which takes seconds: call it in a thread while something else starts."""
    _client_class()


def _key(config: TrackerConfig) -> str:
    """Name the destination: events confirmed by another one have to be sent again."""
    where = f"{redact(config.uri)}|{config.experiment}|{config.search_id}"
    return hashlib.sha256(where.encode()).hexdigest()[:16]


class _Mlflow:
    """MLflow behind the few calls that tracking needs, with explicit ids everywhere.

    A call that is refused for good is logged and counted in `rejected`; every other failure is
    raised for a later attempt.
    """

    def __init__(self, config: TrackerConfig) -> None:
        self.rejected = 0
        self._config = config
        self._opened: MlflowClient | None = None
        self._experiment_id = ""

    @property
    def _client(self) -> "MlflowClient":
        if self._opened is None:
            raise TrackingError("the tracking store must be opened first")
        return self._opened

    def connect(self) -> bool:
        """Open store and experiment; False when they are open already.

        Raises:
            TrackingError: the store does not answer or refuses.
        """
        if self._opened is not None:
            return False
        check_reachable(self._config.uri)
        try:
            with _quiet():
                client = _client_class()(tracking_uri=self._config.uri)
                self._experiment_id = self._open_experiment(client)
        except TrackingError:
            raise
        # MLflow lets its own and its database driver's errors through, of many classes.
        except Exception as error:
            raise unusable(self._config.uri, error) from error
        self._opened = client
        return True

    def _open_experiment(self, client: "MlflowClient") -> str:
        from mlflow.exceptions import MlflowException

        name = self._config.experiment
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            root = artifact_root(self._config.uri, self._config.spool_dir.parent.parent)
            try:
                return str(client.create_experiment(name, artifact_location=root))
            except MlflowException:
                # Two searches may start at once; the other one's experiment is as good.
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"the experiment {name!r} must be active, but it was deleted; "
                "restore it, or choose another tracking.experiment"
            )
        return str(experiment.experiment_id)

    def find_runs(self, tags: Mapping[str, str], status: str | None = None) -> list[str]:
        """Ids of the runs that carry all these tags, oldest first."""
        terms = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        terms += [f"attributes.status = '{status}'"] if status else []
        found: list[str] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                " and ".join(terms),
                page_token=token,
                order_by=["attributes.start_time ASC"],
            )
            found += [str(run.info.run_id) for run in page]
            token = page.token
            if not token:
                return found

    def create_run(self, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        """Make a run and return its id."""
        run = self._client.create_run(self._experiment_id, start_ms, dict(tags), name)
        return str(run.info.run_id)

    def set_status(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        """Set a run's status, and its end when it has one."""
        if end_ms is None:
            self._try(run_id, lambda: self._client.update_run(run_id, status=status))
        else:
            self._try(run_id, lambda: self._client.set_terminated(run_id, status, end_ms))

    def log_points(self, run_id: str, points: Sequence[Point], *, uncertain: bool) -> None:
        """Write metric rows; when some may be there already, only those that are not."""
        from mlflow.entities import Metric

        if uncertain:
            there = {
                (row.key, row.timestamp, row.step)
                for key in {point.key for point in points}
                for row in self._client.get_metric_history(run_id, key)
            }
            points = [p for p in points if (p.key, p.time_ms, p.step) not in there]
        metrics = [Metric(p.key, p.value, p.time_ms, p.step) for p in points]
        self._log_parts(
            run_id, metrics, _MAX_METRICS, lambda part: self._client.log_batch(run_id, metrics=part)
        )

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Write parameters; the value a run has already stays, a different one is refused."""
        from mlflow.entities import Param

        entries = [Param(key, value) for key, value in params.items()]
        self._log_parts(
            run_id, entries, _MAX_PARAMS, lambda part: self._client.log_batch(run_id, params=part)
        )

    def log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags, replacing what they held."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, value) for key, value in tags.items()]
        self._log_parts(
            run_id, entries, _MAX_TAGS, lambda part: self._client.log_batch(run_id, tags=part)
        )

    def upload(self, run_id: str, name: str, content: Mapping[str, str]) -> None:
        """Store one artifact, from its text or from a file's path."""
        folder, _, file_name = name.rpartition("/")
        if "text" in content:
            self._try(run_id, lambda: self._client.log_text(run_id, content["text"], name))
            return
        path = Path(content["path"])
        if path.name == file_name:
            self._try(run_id, lambda: self._client.log_artifact(run_id, path, folder or None))
            return
        with tempfile.TemporaryDirectory() as renamed:
            link = Path(renamed) / file_name
            link.symlink_to(path)
            self._try(run_id, lambda: self._client.log_artifact(run_id, link, folder or None))

    def _log_parts(
        self, run_id: str, items: Sequence[T], size: int, send: Callable[[Sequence[T]], object]
    ) -> None:
        from mlflow.exceptions import MlflowException

        for start in range(0, len(items), size):
            part = items[start : start + size]
            try:
                send(part)
            except MlflowException as error:
                if not self._for_good(error):
                    raise
                # One bad value has the whole request refused: send the others without it.
                for item in part:
                    self._try(run_id, partial(send, [item]))

    def _try(self, run_id: str, call: Callable[[], object]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            call()
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            self._reject(run_id, error)
        except MlflowException as error:
            if not self._for_good(error):
                raise
            self._reject(run_id, error)

    def _for_good(self, error: "MlflowException") -> bool:
        from mlflow.exceptions import RestException

        # A proxy's own 404 or 400 while the server restarts is no answer of MLflow's.
        answered = isinstance(error, RestException) or is_sql(self._config.uri)
        return answered and error.error_code in _PERMANENT

    def _reject(self, run_id: str, error: Exception) -> None:
        self.rejected += 1
        _log.error(
            "tracking: the store refuses a value of run %s for good, it is left out: %s",
            run_id,
            redact(str(error)),
        )


def _client_class() -> "type[MlflowClient]":
    for name, value in _CLIENT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow's own deprecation warnings, raised while it sets itself up, to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
