"""Ledger, `best`, report, MLflow and `open_search` say the same numbers, to the last digit."""

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Run

from search import open_search
from search.cli import main
from search.cli_options import open_recorded
from search.director import USAGE
from search.records import TrialRecord
from tests.notebooks.execute import NOTEBOOK, code_cells, executed
from trainables.data import load_data

# Columns of the report's table, in its order, from the fourth on.
SHOWN = ("val_top1", "energy_mj", "params_m")
ROW = re.compile(r'<tr id="t(\d{5})"(.*?)</tr>', re.DOTALL)
CELL = re.compile(r'<td(?: class="[^"]*")?(?: data-v="([^"]*)")?>(.*?)</td>')


@pytest.fixture(scope="module")
def records(finished_search: Path) -> dict[str, TrialRecord]:
    _, _, found = open_recorded(finished_search / "runs", "tiny")
    assert len(found) == 6
    assert all(record.epochs for record in found)
    return {record.name: record for record in found}


@pytest.fixture(scope="module")
def runs(finished_search: Path) -> tuple[MlflowClient, dict[str, Run]]:
    client = MlflowClient(f"sqlite:///{finished_search / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.`mlflow.parentRunId` != ''")
    return client, {str(run.info.run_name): run for run in found}


def results(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics without what a trial takes of its machine, which is MLflow's only."""
    return {name: value for name, value in metrics.items() if not name.startswith(USAGE)}


def spiketune_json(folder: Path, *words: str) -> Any:
    arguments = [*words, "--format", "json", "--runs", str(folder / "runs")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_best_and_report_have_the_ledgers_numbers(
    finished_search: Path, records: dict[str, TrialRecord]
) -> None:
    trees = [
        spiketune_json(finished_search, "best", "tiny"),
        spiketune_json(finished_search, "report", "tiny"),
        json.loads((finished_search / "runs/tiny/report.json").read_text()),
    ]
    for tree in trees:
        rows = {row["name"]: row for row in tree["trials"]}
        assert rows.keys() == records.keys()
        for name, record in records.items():
            assert rows[name]["metrics"] == dict(record.last), name
            assert rows[name]["params"] == dict(record.params), name


def test_an_opened_search_has_the_ledgers_numbers(
    finished_search: Path, records: dict[str, TrialRecord]
) -> None:
    found = open_search("tiny", runs=finished_search / "runs")
    trials, epochs = found.trials, found.epochs
    assert found.state == "finished"
    for record in records.values():
        row = trials.loc[record.number]
        assert {name: row[name] for name in record.last} == dict(record.last)
        assert row[list(found.spec.space)].dropna().to_dict() == dict(record.params)
        mine = epochs[epochs["trial"] == record.number].set_index("epoch")
        for entry in record.epochs:
            assert {n: mine.loc[entry.epoch, n] for n in entry.metrics} == dict(entry.metrics)
    tree = spiketune_json(finished_search, "best", "tiny")
    assert found.best is not None
    assert found.best.number == tree["best"]["number"]
    assert [trial.number for trial in found.pareto] == [row["number"] for row in tree["pareto"]]


def test_an_opened_searchs_network_is_the_trials(finished_search: Path) -> None:
    found = open_search(finished_search / "runs" / "tiny")
    chosen = next(trial for trial in found.pareto if trial.state == "finished")
    network = found.load_network(chosen)
    assert not network.training
    split = load_data(chosen.config.data, chosen.config.model).val
    inputs, labels = split.batch(torch.arange(len(split)), torch.device("cpu"))
    with torch.no_grad():
        logits_BK = network(inputs).mean(dim=0)
    top1 = 100.0 * float((logits_BK.argmax(dim=1) == labels).double().mean())
    # The checkpoint is that of the best epoch.
    epochs = found.epochs.query("trial == @chosen.number")
    assert top1 == pytest.approx(epochs["val_top1"].max(), abs=1e-9)


def test_the_notebook_shows_the_same_numbers(finished_search: Path) -> None:
    search, trials, _, figure, params, config, answers, accuracy = executed(
        str(finished_search / "runs" / "tiny")
    )
    tree = spiketune_json(finished_search, "best", "tiny")
    assert list(trials.index) == [row["number"] for row in tree["trials"][: len(trials)]]
    assert params == tree["best"]["params"]
    assert config == search.best.config.model
    assert figure.data
    assert len(answers["found"]) == len(answers["labels"]) == 12
    assert accuracy["computed"] == pytest.approx(accuracy["recorded"], abs=1e-9)


def test_the_notebooks_outputs_are_those_of_a_run() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 150_000
    assert not re.search(r"/(tmp|home|root|work)/|https?://", text)
    cells = code_cells(json.loads(text))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    shown = [cell["outputs"][0]["data"] for cell in cells]
    assert all("text/plain" in data for data in shown)
    assert sum("image/png" in data for data in shown) == 1
    accuracy = ast.literal_eval("".join(shown[-1]["text/plain"]))
    assert accuracy["computed"] == pytest.approx(accuracy["recorded"], abs=1e-9)


def test_mlflow_has_the_ledgers_numbers(
    records: dict[str, TrialRecord], runs: tuple[MlflowClient, dict[str, Run]]
) -> None:
    client, by_name = runs
    assert by_name.keys() == records.keys()
    for name, record in records.items():
        run = by_name[name]
        assert results(run.data.metrics) == dict(record.last), name
        # As the YAML writes them, and nothing beside them.
        assert run.data.params == {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in record.params.items()
        }
        for metric in record.last:
            history = client.get_metric_history(run.info.run_id, metric)
            assert {row.step: row.value for row in history} == {
                epoch.epoch: epoch.metrics[metric] for epoch in record.epochs
            }, (name, metric)


def test_the_report_page_has_the_ledgers_numbers(
    finished_search: Path, records: dict[str, TrialRecord]
) -> None:
    page = (finished_search / "runs/tiny/report.html").read_text()
    table = page.partition('<table id="trials">')[2].partition("</table>")[0]
    found = {name: CELL.findall(cells) for name, cells in ROW.findall(table)}
    assert found.keys() == records.keys()
    for name, record in records.items():
        exact = [value or text for value, text in found[name]]
        assert [float(text) for text in exact[4:7]] == [record.last[m] for m in SHOWN]
        told = {text for text in exact[7:] if text != "–"}
        assert {str(value) for value in record.params.values()} <= told, name


def test_the_parent_run_sums_up(
    finished_search: Path,
    records: dict[str, TrialRecord],
    runs: tuple[MlflowClient, dict[str, Run]],
) -> None:
    client, by_name = runs
    (parent_id,) = {run.data.tags["mlflow.parentRunId"] for run in by_name.values()}
    metrics = client.get_run(parent_id).data.metrics
    tree = spiketune_json(finished_search, "best", "tiny")
    best = records[tree["best"]["name"]]
    assert metrics["best_trial"] == best.number
    assert metrics["best_val_top1"] == best.last["val_top1"]
    assert metrics["trials"] == len(records)


def test_every_run_says_its_data_and_what_it_took(
    runs: tuple[MlflowClient, dict[str, Run]],
) -> None:
    client, by_name = runs
    parent = client.get_run(next(iter(by_name.values())).data.tags["mlflow.parentRunId"])
    told = set()
    for run in (parent, *by_name.values()):
        assert run.inputs is not None
        told.add(
            tuple(
                sorted(
                    (given.tags[0].value, given.dataset.name, given.dataset.digest)
                    for given in run.inputs.dataset_inputs
                )
            )
        )
    ((training, validation),) = told
    assert training[:2] == ("training", "digits-train")
    assert validation[:2] == ("validation", "digits-val")
    assert training[2] != validation[2]
    for run in by_name.values():
        taken = {name: v for name, v in run.data.metrics.items() if name.startswith(USAGE)}
        assert taken.keys() >= {"system/cpu_pct", "system/memory_mib"}
        assert 0.0 < taken["system/cpu_pct"] < 10_000.0
        assert 50.0 < taken["system/memory_mib"] < 100_000.0
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "system/memory_mib")]
        assert sorted(steps) == list(range(1, len(steps) + 1))


def test_every_run_has_its_artifacts(runs: tuple[MlflowClient, dict[str, Run]]) -> None:
    client, by_name = runs
    for run in by_name.values():
        found = {entry.path for entry in client.list_artifacts(run.info.run_id)}
        kept = {"checkpoint"} if run.data.tags["spiketune.state"] == "finished" else set()
        assert found == {"config.json", "firing_rates.json"} | kept
    parent_id = next(iter(by_name.values())).data.tags["mlflow.parentRunId"]
    found = {entry.path for entry in client.list_artifacts(parent_id)}
    assert found == {"search.yaml", "resolved.yaml", "report.html", "report.json"}
