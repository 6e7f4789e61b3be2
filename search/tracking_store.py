"""MLflow's stores, behind the few calls that we make; the one door to MLflow."""

import importlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from search.tracking_runs import Point, RunWriter, Values
from search.tracking_uri import (
    TrackerConfig,
    TrackingError,
    artifact_root,
    check_reachable,
    is_sql,
    redact,
    tracking_key,
    unusable,
)
from trainables.remote import StoredFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

_log = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_METRICS, _MAX_PARAMS, _MAX_TAGS = 1000, 100, 100
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


class MlflowStore:
    """MLflow behind the few calls that tracking needs, with explicit ids everywhere.

    A call that is refused for good is logged and counted in `rejected`; every other failure is
    raised for a later attempt.
    """

    def __init__(self, config: TrackerConfig) -> None:
        self.rejected = 0
        self._config = config
        self._opened: MlflowClient | None = None
        self.experiment_id = ""

    @property
    def client(self) -> "MlflowClient":
        """MLflow's own client.

        Raises:
            TrackingError: the store is not open.
        """
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
            with quiet():
                client = load_mlflow().MlflowClient(tracking_uri=self._config.uri)
                self.experiment_id = self._open_experiment(client)
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

    def describe(self, error: Exception) -> str:
        """An exception in words that may be shown."""
        return redact(str(error))

    def failure(self, error: Exception) -> TrackingError:
        """What to raise for an exception of MLflow's or its database's."""
        return error if isinstance(error, TrackingError) else unusable(self._config.uri, error)

    @contextmanager
    def as_default(self) -> Iterator[None]:
        """Make this store MLflow's own default: its registry looks models up there."""
        mlflow = load_mlflow()
        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self._config.uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)

    def find_runs(self, tags: Mapping[str, str], status: str | None = None) -> list[str]:
        """Ids of the runs that carry all these tags, oldest first."""
        terms = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        terms += [f"attributes.status = '{status}'"] if status else []
        found: list[str] = []
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
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
        run = self.client.create_run(self.experiment_id, start_ms, dict(tags), name)
        return str(run.info.run_id)

    def set_status(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        """Set a run's status, and its end when it has one."""
        if end_ms is None:
            self._try(run_id, lambda: self.client.update_run(run_id, status=status))
        else:
            self._try(run_id, lambda: self.client.set_terminated(run_id, status, end_ms))

    def log(self, run_id: str, values: Values, *, uncertain: bool) -> None:
        """Write metric rows, parameters and tags in one request where they fit into one."""
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        points, params, tags = values.points, values.params, values.tags
        fits = len(params) <= _MAX_PARAMS and len(tags) <= _MAX_TAGS
        if fits and not uncertain and len(points) + len(params) + len(tags) <= _MAX_METRICS:
            try:
                self.client.log_batch(
                    run_id,
                    [Metric(p.key, p.value, p.time_ms, p.step) for p in points],
                    [Param(key, value) for key, value in params.items()],
                    [RunTag(key, value) for key, value in tags.items()],
                )
            except MlflowException as error:
                if not self._for_good(error):
                    raise
                uncertain = True  # of what is refused as a whole, a part may have been written
            else:
                return
        self.log_params(run_id, params)
        self.log_points(run_id, points, uncertain=uncertain)
        self.log_tags(run_id, tags)

    def log_points(self, run_id: str, points: Sequence[Point], *, uncertain: bool) -> None:
        """Write metric rows; when some may be there already, only those that are not."""
        from mlflow.entities import Metric

        if uncertain:
            there = {
                (row.key, row.timestamp, row.step)
                for key in {point.key for point in points}
                for row in self.client.get_metric_history(run_id, key)
            }
            points = [p for p in points if (p.key, p.time_ms, p.step) not in there]
        metrics = [Metric(p.key, p.value, p.time_ms, p.step) for p in points]
        self._log_parts(
            run_id, metrics, _MAX_METRICS, lambda part: self.client.log_batch(run_id, metrics=part)
        )

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Write parameters; the value a run has already stays, a different one is refused."""
        from mlflow.entities import Param

        entries = [Param(key, value) for key, value in params.items()]
        self._log_parts(
            run_id, entries, _MAX_PARAMS, lambda part: self.client.log_batch(run_id, params=part)
        )

    def log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags, replacing what they held."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, value) for key, value in tags.items()]
        self._log_parts(
            run_id, entries, _MAX_TAGS, lambda part: self.client.log_batch(run_id, tags=part)
        )

    def log_datasets(self, run_id: str, datasets: Sequence[Mapping[str, str]]) -> None:
        """Say which data a run used; the store keeps each once."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for told in datasets:
            entry = dict(told)
            tag = InputTag("mlflow.data.context", entry.pop("context"))
            inputs.append(DatasetInput(Dataset(**entry), [tag]))
        self._try(run_id, lambda: self.client.log_inputs(run_id, inputs))

    def upload(self, run_id: str, name: str, content: Mapping[str, str]) -> None:
        """Store one artifact, from its text, a file's path or a file in the checkpoints' store.

        Raises:
            StoreError: that store does not answer.
        """
        folder, _, file_name = name.rpartition("/")
        if "text" in content:
            self._try(run_id, lambda: self.client.log_text(run_id, content["text"], name))
            return
        if "stored" in content:
            self._upload_stored(run_id, folder, content)
            return
        path = Path(content["path"])
        if path.name == file_name:
            self._try(run_id, lambda: self.client.log_artifact(run_id, path, folder or None))
            return
        with tempfile.TemporaryDirectory() as renamed:
            link = Path(renamed) / file_name
            link.symlink_to(path)
            self._try(run_id, lambda: self.client.log_artifact(run_id, link, folder or None))

    def _upload_stored(self, run_id: str, folder: str, content: Mapping[str, str]) -> None:
        # Asked once: what is not sent now is sent later, and the events after it too.
        store = StoredFolder(content["url"], content["path"], patience_s=0.0)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / content["stored"]

            def send() -> None:
                store.get(path.name, path)
                self.client.log_artifact(run_id, path, folder or None)

            self._try(run_id, send)

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


def run_writer(config: TrackerConfig) -> RunWriter:
    """What writes a search's runs to MLflow."""
    return RunWriter(
        MlflowStore(config),
        search=config.search,
        search_id=config.search_id,
        key=tracking_key(config),
        path=config.spool_dir / "runs.json",
    )


def load_mlflow(module: str = "mlflow") -> Any:
    """Import one of MLflow's modules, which takes seconds, with nothing reported to anyone."""
    for name, value in _CLIENT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with quiet():
        return importlib.import_module(module)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep MLflow's own deprecation warnings, raised while it sets itself up, to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
