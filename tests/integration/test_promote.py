"""Promotion end to end: trained in full, tested once, registered once, loaded without pickle."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Run
from processes import PATIENCE_S, wait_for
from tiny_search import running, spiketune, spiketune_json

from search.card import group
from search.cli import main
from search.registry import PROMOTION
from search.tracking_store import load_mlflow
from trainables.config import TrialConfig
from trainables.data import load_data

LONG = 10
ENERGY = ("energy_mj", "sops_g", "macs_g", "firing_rate")


@pytest.fixture(scope="module")
def client(finished_search: Path) -> MlflowClient:
    load_mlflow("mlflow.pyfunc")  # which warns of its own type hints
    uri = f"sqlite:///{finished_search / 'runs' / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


@pytest.fixture(scope="module")
def promoted(finished_search: Path) -> str:
    return spiketune(finished_search, "promote", "tiny", "--as", "chosen").stdout


def the_version(client: MlflowClient, name: str) -> Any:
    (version,) = client.search_model_versions(f"name='{name}'")
    return version


def model_of(version: Any) -> str:
    return str(version.source).removeprefix("models:/")


def runs_of(client: MlflowClient, promotion: str) -> list[Run]:
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.`{PROMOTION}` = '{promotion}'")
    return list(found)


def test_the_registered_model_gives_what_was_recorded(
    finished_search: Path,
    promoted: str,
    client: MlflowClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setattr("pickle.load", None)
    monkeypatch.setattr("pickle.loads", None)
    best = spiketune_json(finished_search, "best", "tiny")["best"]
    version = the_version(client, "chosen")
    assert "Registered: models:/chosen/1" in promoted
    assert version.tags["spiketune.promoted_trial"] == best["name"]
    network = mlflow.pyfunc.load_model("models:/chosen/1")

    monkeypatch.undo()
    folder = Path(mlflow.artifacts.download_artifacts("models:/chosen/1", dst_path=str(tmp_path)))
    files = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert not files & {".pkl", ".pt", ".pth", ".bin", ".py", ".pickle"}, files
    weights = folder / "data" / "network" / "network.safetensors"
    found = spiketune_json(finished_search, "evaluate", str(weights))
    (run,) = runs_of(client, version.tags[PROMOTION])
    logged = client.get_logged_model(model_of(version))
    recorded = {metric.key: metric.value for metric in logged.metrics or []}
    for name in ENERGY:
        assert recorded[f"test_{name}"] == found[name], name
        assert run.data.metrics[f"test_{name}"] == found[name], name
        assert float(version.tags[f"test_{name}"]) == found[name], name

    config = TrialConfig.model_validate(found["config"])
    split = load_data(config.data, config.model).test
    inputs, labels = split.batch(torch.arange(len(split)), torch.device("cpu"))
    logits = network.predict(inputs.numpy())
    top1 = 100.0 * int((logits.argmax(1) == labels.numpy()).sum()) / len(labels)
    assert top1 == found["test_top1"] == recorded["test_top1"] == run.data.metrics["test_top1"]
    with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
        network.predict(np.zeros((2, 3, 8, 8), np.float32))


def test_run_card_and_links(
    finished_search: Path, promoted: str, client: MlflowClient, tmp_path: Path
) -> None:
    version = the_version(client, "chosen")
    (run,) = runs_of(client, version.tags[PROMOTION])
    assert run.info.status == "FINISHED"
    assert "mlflow.parentRunId" not in run.data.tags
    (trial,) = [
        found
        for found in client.search_runs([run.info.experiment_id], "tags.`spiketune.trial` != 'x'")
        if found.info.run_id == run.data.tags["spiketune.trial_run"]
    ]
    assert trial.data.tags["spiketune.promoted"] == "models:/chosen/1"
    assert run.data.params == trial.data.params
    # The full training gives a finished trial's numbers again.
    if trial.data.tags["spiketune.state"] == "finished":
        assert run.data.metrics["val_top1"] == trial.data.metrics["val_top1"]
    assert run.inputs is not None
    assert run.outputs is not None
    contexts = {
        next(tag.value for tag in given.tags if tag.key == "mlflow.data.context"): given.dataset
        for given in run.inputs.dataset_inputs
    }
    assert contexts.keys() == {"training", "validation", "test"}
    assert len({dataset.digest for dataset in contexts.values()}) == 3
    assert json.loads(contexts["test"].profile or "{}")["num_samples"] == 359
    logged = client.get_logged_model(model_of(version))
    assert logged.source_run_id == run.info.run_id
    assert [output.model_id for output in run.outputs.model_outputs] == [model_of(version)]

    card = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/card.md")
    told = json.loads(mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/test.json"))
    for name in ("top1", "energy_mj", "firing_rate"):
        assert f"| {run.data.metrics[f'test_{name}']!r} " in card
    assert f'load_model("models:/{model_of(version)}")' in card
    assert "spiketune promote tiny:" in card
    groups = dict.fromkeys(group(layer) for layer in told["layer_ops"])
    assert all(f"| {name} |" in card for name in groups)
    assert 0 < len(version.description) < 5000
    assert card.startswith(version.description)


def test_a_second_promotion_changes_nothing(
    finished_search: Path, promoted: str, client: MlflowClient
) -> None:
    before = the_version(client, "chosen")
    (tested,) = (finished_search / "runs/tiny/promoted").glob(
        f"{before.tags['spiketune.promoted_trial']}-*/test.json"
    )
    looked_at = tested.stat().st_mtime_ns
    again = spiketune(finished_search, "promote", "tiny", "--as", "chosen").stdout
    assert "Registered: models:/chosen/1" in again
    assert "continuing" not in again
    assert model_of(the_version(client, "chosen")) == model_of(before)
    # Another name is another version of the same model: nothing is trained or tested again.
    spiketune(finished_search, "promote", "tiny")
    assert model_of(the_version(client, "tiny")) == model_of(before)
    assert tested.stat().st_mtime_ns == looked_at
    assert len(runs_of(client, before.tags[PROMOTION])) == 1


@pytest.mark.parametrize(
    "until", [pytest.param("epoch-0003.safetensors", marks=pytest.mark.slow), "test.json"]
)
def test_a_killed_promotion_goes_on(
    finished_search: Path, client: MlflowClient, until: str
) -> None:
    name = until.partition(".")[0]
    number = {"epoch-0003": 1, "test": 2}[name]
    words = ("promote", f"tiny:{number}", "--as", name, "--set", f"train.epochs={LONG}")

    def there() -> list[Path]:
        return list((finished_search / "runs/tiny/promoted").glob(f"0000{number}-*/{until}"))

    with running(finished_search, *words) as process:
        wait_for(lambda: bool(there()), process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
    looked_at = there()[0].stat().st_mtime_ns
    done = spiketune(finished_search, *words)
    assert "continuing after epoch" in done.stdout
    version = the_version(client, name)
    (run,) = runs_of(client, version.tags[PROMOTION])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == str(LONG)
    rows = client.get_metric_history(run.info.run_id, "val_top1")
    assert sorted(row.step for row in rows) == list(range(1, LONG + 1))
    assert len(client.get_metric_history(run.info.run_id, "test_top1")) == 1
    if until == "test.json":
        assert there()[0].stat().st_mtime_ns == looked_at
    models = client.search_logged_models([run.info.experiment_id])
    assert sum(model.source_run_id == run.info.run_id for model in models) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tiny:99",), "must have trial 99"),
        (("nothing",), "no search named"),
        (("tiny", "--as", "a/b"), "a model's name must have"),
        (("tiny:0", "--set", "train.lr=no"), "train.lr"),
    ],
)
def test_what_does_not_exist_is_said_in_a_line(
    finished_search: Path, words: tuple[str, ...], said: str
) -> None:
    runs = ("--runs", str(finished_search / "runs"))
    done = CliRunner().invoke(main, ["promote", *words, *runs])
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert "Traceback" not in done.output


def test_a_result_of_other_weights_is_not_overwritten(
    finished_search: Path, promoted: str, client: MlflowClient
) -> None:
    number = int(the_version(client, "chosen").tags["spiketune.promoted_trial"])
    (tested,) = (finished_search / "runs/tiny/promoted").glob(f"{number:05d}-*/test.json")
    text = tested.read_text()
    told = json.loads(text)
    tested.write_text(json.dumps({**told, "weights_sha256": "0" * 64}))
    try:
        done = spiketune(finished_search, "promote", f"tiny:{number}", "--as", "other", code=1)
    finally:
        tested.write_text(text)
    assert "looked at once" in done.stderr
    assert not client.search_model_versions("name='other'")
