"""Promotes a trial: what is trained in full, tested once, tracked as a run and registered.

Every step leaves something durable and is left out where that is there: checkpoints and
`test.json` in the promotion's folder, run, model and version in MLflow, found by a tag. So running
a promotion again continues it, and a finished one changes nothing.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from search.card import card
from search.datasets import datasets
from search.director import METRICS
from search.folder import SearchFolder
from search.records import TrialRecord
from search.registry import (
    PROMOTION,
    Version,
    find_version,
    log_model,
    log_model_metrics,
    register,
    upload_model,
)
from search.tracking_runs import Point
from search.tracking_store import MlflowStore
from search.versions import versions
from trainables.config import TrialConfig, flatten
from trainables.cost import parameter_count
from trainables.errors import CheckpointError, SpiketuneError
from trainables.files import write_atomically

logger = logging.getLogger(__name__)

_REQUIRED = ("torch", "numpy", "spikingjelly", "timm")


@dataclass(frozen=True)
class Promotion:
    """What is promoted, and where its files lie.

    Attributes:
        folder: the search's.
        search_id: the ledger's.
        record: the trial.
        config: the trial's configuration, with what `--set` changes.
        model: the registered model's name.
        command: what does this promotion again.
    """

    folder: SearchFolder
    search_id: str
    record: TrialRecord
    config: TrialConfig
    model: str
    command: str

    @property
    def key(self) -> str:
        """What tells this promotion from all others; runs and models are found by it."""
        return f"{self.search_id}-{self.record.name}-{self.config.config_hash()}"

    @property
    def path(self) -> Path:
        """Where checkpoints, epochs and the test's result are."""
        label = f"{self.record.name}-{self.config.config_hash()[:8]}"
        return self.folder.path / "promoted" / label


class Publisher:
    """Tells MLflow of a promotion, as far as it does not know.

    Args:
        promotion: what is promoted.
        store: open.
    """

    def __init__(self, promotion: Promotion, store: MlflowStore) -> None:
        self._promotion = promotion
        self._store = store
        self._history = _History(promotion.path / "epochs.json")

    @property
    def registered(self) -> Version | None:
        """The version this promotion has made before."""
        return find_version(self._store, self._promotion.model, self._promotion.key)

    @cached_property
    def run_id(self) -> str:
        """The promotion's run: beside the search's, for below that are its trials."""
        promotion, store = self._promotion, self._store
        found = store.find_runs({PROMOTION: promotion.key})
        if found:
            store.set_status(found[0], "RUNNING")
            return found[0]
        name = f"{promotion.folder.name} {promotion.record.name} promoted"
        start_ms = round(time.time() * 1000)
        run_id = store.create_run(name, self._tags(), start_ms)
        store.log_params(run_id, _params(promotion))
        store.log_datasets(run_id, datasets(promotion.config, "train", "val"))
        return run_id

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Keep an epoch's metrics, and send them if the store answers."""
        points = self._history.add(metrics)
        try:
            self._store.log_points(self.run_id, points, uncertain=True)
        # Whatever the store's client throws, training goes on; `publish` sends all of them.
        except Exception as error:  # noqa: BLE001
            logger.warning("tracking: %s; it is sent at the end", self._store.describe(error))

    def publish(self, told: Mapping[str, Any], network: Path) -> Version:
        """Send what was measured, log the model and register it.

        Args:
            told: as `tested` returns it.
            network: folder that `export_network` wrote.
        """
        promotion, store, run_id = self._promotion, self._store, self.run_id
        store.log_points(run_id, self._history.points, uncertain=True)
        store.log_datasets(run_id, datasets(promotion.config, "test"))
        model = log_model(store, run_id, promotion.model, promotion.key, _params(self._promotion))
        text = card(
            told,
            promotion.config,
            uri=f"models:/{model.model_id}",
            command=promotion.command,
            versions=", ".join(f"{name} {value}" for name, value in told["versions"].items()),
        )
        artifacts = {
            "card.md": text,
            "config.json": json.dumps(promotion.config.model_dump(mode="json"), indent=2),
            "firing_rates.json": json.dumps(told["layer_rates"], indent=2),
            "test.json": json.dumps(told, indent=2),
        }
        for name, content in artifacts.items():
            store.upload(run_id, name, {"text": content})
        (promotion.path / "card.md").write_text(text)
        upload_model(
            store,
            model.model_id,
            run_id,
            network,
            told["shape"][1:],
            promotion.config.model.num_classes,
            [f"{name}=={told['versions'][name]}" for name in _REQUIRED],
            text,
        )
        time_ms = round(told["time_s"] * 1000)
        log_model_metrics(store, run_id, model.model_id, told["metrics"], time_ms)
        tags = self._tags() | {name: repr(value) for name, value in told["metrics"].items()}
        version = register(store, promotion.model, model.model_id, run_id, tags, text)
        self._link(version)
        store.log_tags(run_id, {"spiketune.state": "finished"})
        store.set_status(run_id, "FINISHED", time_ms)
        return version

    def ended(self, status: str) -> None:
        """Say, if the store answers, that this came to no end: KILLED or FAILED."""
        try:
            if "run_id" in self.__dict__:
                self._store.set_status(self.run_id, status, round(time.time() * 1000))
        except Exception as error:  # noqa: BLE001  # of many classes; the cause is told anyway
            logger.warning("tracking: %s", self._store.describe(error))

    def _trial_run(self) -> str | None:
        wanted = {
            "spiketune.search_id": self._promotion.search_id,
            "spiketune.trial": self._promotion.record.name,
        }
        return next(iter(self._store.find_runs(wanted)), None)

    def _link(self, version: Version) -> None:
        trial_run = self._trial_run()
        if trial_run is not None:
            self._store.log_tags(trial_run, {"spiketune.promoted": version.uri})

    def _tags(self) -> dict[str, str]:
        promotion = self._promotion
        config, number = promotion.config, promotion.record.name
        trial_run = self._trial_run()
        text = f"Trial {number} of the search {promotion.folder.name}, trained in full."
        if trial_run is not None:
            where = f"#/experiments/{self._store.experiment_id}/runs/{trial_run}"
            text += f" [Its run]({where})."
        return {
            PROMOTION: promotion.key,
            "spiketune.search": promotion.folder.name,
            "spiketune.promoted_trial": number,
            "spiketune.trial_run": trial_run or "",
            "spiketune.dataset": config.data.name,
            "spiketune.seed": str(config.train.seed),
            "spiketune.config_hash": config.config_hash(),
            **{f"spiketune.version.{name}": value for name, value in versions().items()},
            "mlflow.note.content": text,
            "mlflow.source.name": "spiketune",
            "mlflow.source.type": "LOCAL",
        }


class _History:
    """The epochs' metrics with their times, as they were first reported."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._rows: list[dict[str, Any]] = json.loads(path.read_bytes())
        except (OSError, ValueError):
            self._rows = []

    def add(self, metrics: Mapping[str, Any]) -> list[Point]:
        """Keep an epoch; the points it has, with the time at which it was first kept."""
        epoch = int(metrics["epoch"])
        row = next((row for row in self._rows if row["epoch"] == epoch), None)
        if row is None:
            kept = {n: float(metrics[n]) for n in METRICS if n in metrics and n != "epoch"}
            row = {"epoch": epoch, "time_ms": round(time.time() * 1000), "metrics": kept}
            self._rows.append(row)
            write_atomically(self._path, json.dumps(self._rows).encode())
        return _points(row)

    @property
    def points(self) -> list[Point]:
        """Every epoch's points."""
        return [point for row in self._rows for point in _points(row)]


def tested(promotion: Promotion, network: Path) -> dict[str, Any]:
    """What the test split says of a trained network; measured once, then read.

    Args:
        promotion: what is promoted.
        network: folder that `export_network` wrote.

    Raises:
        CheckpointError: the result there is of other weights: the test split would be looked at
            again.
    """
    from trainables import checkpoint as checkpoints
    from trainables.data import load_data
    from trainables.loop import pick_device
    from trainables.served import WEIGHTS
    from trainables.sweep import sweep

    config, path = promotion.config, promotion.path / "test.json"
    saved = checkpoints.load(network / WEIGHTS)
    digest = checkpoints.weights_digest(saved)
    if path.is_file():
        told: dict[str, Any] = json.loads(path.read_bytes())
        if told["weights_sha256"] != digest:
            raise CheckpointError(
                f"{path}: the test split must be looked at once, but that result is of other "
                "weights; put the checkpoints back, or delete the folder to begin again"
            )
        return told
    split = load_data(config.data, config.model).test
    device = pick_device(config.train)
    found = sweep(config, saved.evaluated, split, device, [config.model.timesteps])[0].evaluation
    told = {
        "search": promotion.folder.name,
        "trial": promotion.record.name,
        "epochs": saved.epoch,
        "params": parameter_count(config.model),
        "samples": len(split),
        "shape": [-1, *split.sample_shape],
        "metrics": {
            "test_top1": found.top1,
            "test_top5": found.top5,
            "test_loss": found.loss,
            "test_energy_mj": found.energy.energy_mj,
            "test_sops_g": found.energy.sops_g,
            "test_macs_g": found.energy.macs_g,
            "test_firing_rate": found.energy.firing_rate,
        },
        "convention": f"45 nm, {found.energy.convention}",
        "layer_rates": found.energy.layer_rates,
        "layer_ops": found.energy.layer_ops,
        "layer_mj": found.energy.layer_mj,
        "device": str(device),
        "versions": dict(saved.versions),
        "weights_sha256": digest,
        "time_s": time.time(),
    }
    write_atomically(path, json.dumps(told, indent=2).encode())
    return told


def promote(
    promotion: Promotion,
    store: MlflowStore,
    train: Callable[[Callable[[Mapping[str, Any]], object]], Path],
) -> Version:
    """Train, test, track and register a network, from wherever an earlier attempt ended.

    Args:
        promotion: what is promoted.
        store: open.
        train: trains to the last epoch, tells of each and returns the last checkpoint.

    Raises:
        TrialFailedError: training failed.
        CheckpointError: the weights are not those that were tested.
        TrackingError: MLflow does not answer or refuses; what was trained and tested is kept.
    """
    from trainables import checkpoint as checkpoints
    from trainables.served import export_network

    promotion.path.mkdir(parents=True, exist_ok=True)
    publisher = Publisher(promotion, store)
    with _in_words(store):
        known = publisher.registered
    if known is not None:
        return known
    try:
        with _in_words(store):
            logger.info("tracking: the promotion's run is %s", publisher.run_id)
        checkpoint = checkpoints.load(train(publisher.epoch))
        network = promotion.path / "network"
        export_network(checkpoint, network)
        told = tested(promotion, network)
        with _in_words(store):
            return publisher.publish(told, network)
    except KeyboardInterrupt:
        publisher.ended("KILLED")
        raise
    except Exception:
        publisher.ended("FAILED")
        raise


@contextmanager
def _in_words(store: MlflowStore) -> Iterator[None]:
    """Say in one line what MLflow or its database, which throw errors of many classes, refuse."""
    try:
        yield
    except (SpiketuneError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        raise store.failure(error) from error


def _points(row: Mapping[str, Any]) -> list[Point]:
    metrics = row["metrics"].items()
    return [Point(name, value, row["time_ms"], row["epoch"]) for name, value in metrics]


def _params(promotion: Promotion) -> dict[str, str]:
    """The values the search had chosen, and what `--set` has changed, as the YAML writes them."""
    now = flatten(promotion.config.model_dump(mode="json"))
    then = flatten(promotion.record.config)
    keys = [k for k in now if k in promotion.record.params or now[k] != then.get(k)]
    texts = {key: now[key] for key in keys}
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in texts.items()}
