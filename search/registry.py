"""MLflow's model registry: one logged model a promotion, one version of it a registered name."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from search.card import CONFIGURATION
from search.tracking_store import MlflowStore, load_mlflow, quiet

PROMOTION = "spiketune.promotion"
_READY: Final = "READY"
_MAX_DESCRIPTION = 5000  # characters of a version's description that databases take


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: the registered model.
        number: its version, from 1.
        model_id: of the logged model.
        run_id: of the promotion's run.
        tags: what was recorded with it.
    """

    name: str
    number: int
    model_id: str
    run_id: str
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """What MLflow loads it by."""
        return f"models:/{self.name}/{self.number}"


def find_version(store: MlflowStore, name: str, promotion: str) -> Version | None:
    """The version that a promotion has made under a name; None when it has made none."""
    for found in store.client.search_model_versions(f"name='{name}'"):
        if found.tags.get(PROMOTION) == promotion and found.status == _READY:
            return _version(found)
    return None


def find_model(store: MlflowStore, promotion: str) -> Any:
    """The model that a promotion has logged, whole or begun; None when there is none."""
    found = store.client.search_logged_models([store.experiment_id])
    mine = [model for model in found if model.tags.get(PROMOTION) == promotion]
    return next((model for model in mine if model.status.value == _READY), next(iter(mine), None))


def log_model(
    store: MlflowStore, run_id: str, name: str, promotion: str, params: Mapping[str, str]
) -> Any:
    """Begin a logged model of a run, or find the one that was begun."""
    found = find_model(store, promotion)
    if found is not None:
        return found
    return store.client.create_logged_model(
        store.experiment_id,
        name,
        source_run_id=run_id,
        tags={PROMOTION: promotion},
        params=dict(params),
        model_type="spiking transformer",
    )


def upload_model(
    store: MlflowStore,
    model_id: str,
    run_id: str,
    data: Path,
    shape: Sequence[int],
    classes: int,
    requirements: Sequence[str],
    card: str,
) -> None:
    """Upload a network as a pyfunc model that is loaded by `trainables.served`.

    Args:
        store: open.
        model_id: of the logged model.
        run_id: of the promotion's run.
        data: the folder that is loaded.
        shape: of one input.
        classes: logits an input.
        requirements: pinned packages.
        card: Markdown.
    """
    if store.client.get_logged_model(model_id).status.value == _READY:
        return
    pyfunc, models = load_mlflow("mlflow.pyfunc"), load_mlflow("mlflow.models")
    types = load_mlflow("mlflow.types")
    signature = models.ModelSignature(
        types.Schema([types.TensorSpec(np.dtype("float32"), (-1, *shape))]),
        types.Schema([types.TensorSpec(np.dtype("float32"), (-1, classes))]),
    )
    with tempfile.TemporaryDirectory(prefix="spiketune-") as scratch, quiet():
        folder = Path(scratch) / "model"
        pyfunc.save_model(
            folder,
            loader_module="trainables.served",
            data_path=str(data),
            mlflow_model=models.Model(model_id=model_id, run_id=run_id),
            signature=signature,
            input_example=np.zeros((1, *shape), np.float32),
            pip_requirements=list(requirements),
        )
        (folder / "card.md").write_text(card)
        store.client.log_model_artifacts(model_id, str(folder))
    store.client.finalize_logged_model(model_id, _READY)
    outputs = load_mlflow("mlflow.entities")
    store.client.log_outputs(run_id, [outputs.LoggedModelOutput(model_id, 0)])


def log_model_metrics(
    store: MlflowStore, run_id: str, model_id: str, metrics: Mapping[str, float], time_ms: int
) -> None:
    """Record a model's metrics, on it and on its run, once."""
    if metrics.keys() <= store.client.get_run(run_id).data.metrics.keys():
        return
    metric = load_mlflow("mlflow.entities").Metric
    rows = [metric(key, value, time_ms, 0, model_id=model_id) for key, value in metrics.items()]
    store.client.log_batch(run_id, metrics=rows)


def register(
    store: MlflowStore,
    name: str,
    model_id: str,
    run_id: str,
    tags: Mapping[str, str],
    card: str,
) -> Version:
    """Make a version of a registered model, or find the one that this promotion has made.

    Args:
        store: open.
        name: the registered model; made when there is none.
        model_id: of the logged model, which is whole.
        run_id: of the promotion's run.
        tags: of the version, the promotion's own among them.
        card: the version's description.
    """
    found = find_version(store, name, tags[PROMOTION])
    if found is not None:
        return found
    if not store.client.search_registered_models(f"name='{name}'"):
        store.client.create_registered_model(name)
    with store.as_default():
        made = store.client.create_model_version(
            name,
            f"models:/{model_id}",
            run_id,
            tags=dict(tags),
            description=card.partition(CONFIGURATION)[0][:_MAX_DESCRIPTION],
            model_id=model_id,
        )
    return _version(made)


def _version(found: Any) -> Version:
    model_id = found.model_id or str(found.source).removeprefix("models:/")
    return Version(found.name, int(found.version), model_id, found.run_id, dict(found.tags))
