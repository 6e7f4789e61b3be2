"""`open_search`: a search as pandas tables, trials and figures, and as the ledger has it."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
import pytest
from ledgers import add_trial, fill, made_search, made_spec
from records import record

from search import open_search
from search.database import LedgerError
from search.figures import palette
from search.folder import SearchFolder
from search.frames import dtype_of, epochs_frame, trials_frame
from search.report_data import history
from search.report_figures import learning_curves, volume_so_far
from search.reporting import report_search
from spaces.domains import ChoiceDomain
from trainables.errors import CheckpointError, InputError

CONDITIONAL = """
name: made
recipe: digits
trial: {train.epochs: 4}
space:
  model.attention: {choice: [statten, sdt]}
  model.block_size: {int: [1, 2], when: {model.attention: statten}}
  model.drop_path: {choice: [0.0, 0.1]}
  train.channels_last: {choice: [true, false]}
budget: {trials: 4}
"""


def test_tables_have_the_ledgers_numbers(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path / "runs")
    fill(spec, ledger)
    found = open_search(folder.path)
    trials, epochs = found.trials, found.epochs
    assert list(trials.index) == [0, 1, 2, 3]
    assert list(trials["state"]) == ["finished", "stopped", "failed", "running"]
    assert list(trials["reason"]) == ["finished@4", "stopped@2", "nan_loss", ""]
    assert list(trials["epochs"]) == [4, 2, 1, 3]
    assert trials["rank"].tolist()[:2] == [2, 1]
    assert trials["rank"].isna().tolist() == [False, False, True, True]
    assert list(trials["on_pareto"]) == [True, True, False, False]
    for kept in ledger.records:
        row = trials.loc[kept.number]
        assert {name: row[name] for name in kept.last} == kept.last
        assert {key: row[key] for key in kept.params} == kept.params
        assert row["started"].timestamp() == pytest.approx(kept.started_s, abs=1e-6)
        mine = epochs[epochs["trial"] == kept.number]
        assert list(mine["epoch"]) == [entry.epoch for entry in kept.epochs]
        for name in ("val_top1", "energy_mj", "train_loss"):
            assert list(mine[name]) == [entry.metrics[name] for entry in kept.epochs]
    assert list(trials.columns[5:8]) == ["val_top1", "energy_mj", "train_loss"]
    assert trials["ended"].isna().tolist() == [False, False, False, True]
    ledger.close()


def test_columns_have_their_parameters_types(tmp_path: Path) -> None:
    spec = made_spec(tmp_path, text=CONDITIONAL)
    values = {"model.drop_path": 0.1, "train.channels_last": True}
    records = [
        record(0, [1.0], params={"model.attention": "statten", "model.block_size": 2, **values}),
        record(1, [1.0, math.nan], params={"model.attention": "sdt", **values}),
    ]
    trials = trials_frame(spec, records)
    assert trials.dtypes["model.attention"] == pd.CategoricalDtype(["statten", "sdt"])
    assert str(trials.dtypes["model.block_size"]) == "Int64"
    assert trials.dtypes["model.drop_path"] == np.float64
    assert str(trials.dtypes["train.channels_last"]) == "boolean"
    assert trials["model.block_size"].isna().tolist() == [False, True]
    assert trials.loc[0, "model.block_size"] == 2
    assert math.isnan(epochs_frame(spec, records)["val_top1"].iloc[-1])
    assert dtype_of(ChoiceDomain(choice=(1, "a"))) == "object"


def test_an_empty_search_has_the_columns(tmp_path: Path) -> None:
    _, folder, ledger = made_search(tmp_path / "runs")
    found = open_search("made", runs=tmp_path / "runs")
    assert found.trials.empty
    assert {"val_top1", "energy_mj", "train.lr"} <= set(found.trials.columns)
    assert found.epochs.empty
    assert found.best is None
    assert found.pareto == []
    assert found.figures == {}
    assert "No trial" in found._repr_html_()
    with pytest.raises(InputError, match="no trial of made has a result"):
        found.load_network()
    ledger.close()
    assert SearchFolder(tmp_path / "runs", "made") == folder


def test_it_follows_a_running_search_and_takes_nothing(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path / "runs")
    found = open_search(folder.path)
    assert (found.state, found.is_running, len(found.trials)) == ("running", True, 0)
    add_trial(spec, ledger, 16, 4, "finished")  # the lease is still the driver's
    assert len(found.trials) == 0
    assert len(found.refresh().trials) == 1
    assert found.best is not None
    assert found.best.metrics == ledger.record(0).last
    assert found.best.config == spec.trial_config(ledger.record(0).params)
    assert found.best.config.config_hash() == ledger.record(0).config_hash
    ledger.close()
    assert found.refresh().state == "interrupted"
    assert "interrupted, 1 trials" in repr(found)


def test_it_is_finished_when_its_budget_is_used(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path / "runs", "budget.trials=1")
    number = add_trial(spec, ledger, 16, 4)
    found = open_search(folder.path)
    ledger.finish(number, "finished", "completed")
    ledger.close()
    assert found.state == "running"
    assert found.refresh().state == "finished"


def test_it_is_not_finished_while_a_trial_is_not(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path / "runs", "budget.trials=1")
    add_trial(spec, ledger, 16, 3)
    ledger.close()
    assert open_search(folder.path).state == "interrupted"


def test_figures_are_the_reports(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path / "runs")
    for width in (16, 24, 32) * 3:
        add_trial(spec, ledger, width, 2 + width % 3, "finished")
    fill(spec, ledger)
    page = report_search(spec, folder, ledger.records).read_text()
    data = re.search(r'id="data">(.*?)</script>', page)
    assert data is not None
    plots = json.loads(data[1])["plots"]
    found = open_search(folder.path)
    drawn = found.figures
    assert drawn.keys() == plots.keys()
    assert {"front", "curves", "best", "volume", "parallel", "importance0"} <= drawn.keys()
    assert all(isinstance(figure, go.Figure) for figure in drawn.values())
    for name, figure in drawn.items():
        text = figure.to_json()
        assert "var(--" not in text, name
        shown = json.loads(text)["data"]
        assert len(shown) == len(plots[name]["data"]), name
        for mine, theirs in zip(shown, plots[name]["data"], strict=True):
            assert mine.get("name") == theirs.get("name")
    curves = learning_curves(ledger.records, spec.objectives, 2)
    assert found.figure("curves").data[0].x == tuple(curves["data"][0]["x"])
    volume = volume_so_far(history(ledger.records, spec.objectives))
    assert found.figure("volume").data[0].y == tuple(volume["data"][0]["y"])
    assert "<b>0000" in found.figure("front").data[-1].hovertext[0]
    assert palette()["front"] in found.figure("front").to_json()
    with pytest.raises(InputError, match=r"must be one of front, curves.*'fronts'"):
        found.figure("fronts")
    ledger.close()


def test_a_notebook_gets_a_line_and_a_leaderboard(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path / "runs")
    fill(spec, ledger)
    ledger.close()
    shown = open_search(folder.path)._repr_html_()
    assert "<b>made</b> (interrupted, 4 trials). Pick trial 00001: " in shown
    assert shown.index("<th>1</th>") < shown.index("<th>0</th>")  # best first
    assert "<th>model.width</th>" in shown


@pytest.mark.parametrize(
    ("given", "runs", "message"),
    [
        ("nothing", None, "no search named 'nothing'"),
        ("runs/nothing", None, "no search named 'nothing'"),
        ("nowhere/made", None, "No such file or directory"),
        ("runs/made", "runs", "runs must not be given with the path"),
        ("../made", "runs", "runs must not be given with the path"),
        ("a\0/b", None, "must be the folder of a search"),
        ("x" * 300 + "/b", None, "must be the folder of a search, but: File name too long"),
        ("runs/..", None, "a search's name must have"),
        ("..", None, "a search's name must have"),
        ("", None, "a search's name must have"),
    ],
)
def test_what_is_no_search_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, runs: str | None, message: str
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        open_search(given, runs=runs)
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]


def test_runs_are_looked_for_where_commands_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_search(tmp_path / "runs")[2].close()
    monkeypatch.chdir(tmp_path)
    assert open_search("made").name == "made"
    assert open_search("runs/made/").path == tmp_path / "runs" / "made"
    monkeypatch.chdir("/")
    monkeypatch.setenv("SPIKETUNE_RUNS", str(tmp_path / "runs"))
    assert open_search("made").name == "made"


def test_a_damaged_ledger_is_refused(tmp_path: Path) -> None:
    _, folder, ledger = made_search(tmp_path / "runs")
    ledger.close()
    folder.database.write_bytes(folder.database.read_bytes()[:5000])
    with pytest.raises(LedgerError, match="damaged"):
        open_search(folder.path)


def test_a_network_that_is_not_kept_is_missed_in_words(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path / "runs")
    fill(spec, ledger)
    ledger.close()
    found = open_search(folder.path)
    assert found.best is not None
    assert found.best.checkpoint is None
    with pytest.raises(CheckpointError, match=r"trial 1 is stopped.*spiketune train --from made:1"):
        found.load_network(1)
    with pytest.raises(InputError, match="made must have trial 9, but it has 0 to 3"):
        found.load_network(9)
    with pytest.raises(InputError, match="made must have trial 9"):
        found.config(9)


def test_a_trial_that_nobody_configured_has_no_configuration(tmp_path: Path) -> None:
    _, folder, ledger = made_search(tmp_path / "runs")
    ledger.close()
    optuna.load_study(study_name="made", storage=f"sqlite:///{folder.database}").ask()
    found = open_search(folder.path)
    assert list(found.trials["reason"]) == ["half_created"]
    assert found.trials["model.width"].isna().all()
    with pytest.raises(InputError, match=r"has no configuration: it is failed \(half_created\)"):
        found.config(0)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys; from search import open_search; "
        "print([m for m in ('pandas', 'torch', 'ray', 'optuna', 'mlflow', 'plotly', 'matplotlib',"
        " 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = code.replace("; print", "; import search.opened; print")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'pandas'" not in done.stdout
    assert "'torch'" not in done.stdout
    assert "'plotly'" not in done.stdout
