"""Opening a search again: versions, where its ledger is, what another program left in it."""

import json
from pathlib import Path

import optuna
import pytest
from ledgers import add_trial, fill, made_search
from sqlalchemy import text

from search.database import writing
from search.folder import SearchFolder
from search.founding import found
from search.recorded import open_ledger
from search.study import Ledger, LedgerError
from search.versions import check_versions, versions
from trainables.errors import InputError


def test_other_versions_are_refused_with_both_and_forced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, folder, ledger = made_search(tmp_path)
    ledger.close()
    manifest = json.loads(folder.manifest_path.read_text())
    now = manifest["versions"]["torch"]
    manifest["versions"] |= {"torch": "1.0.0", "mlflow": "1.0.0"}
    folder.manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=f"torch 1.0.0 then, {now} now; ") as refused:
        open_ledger(folder, write=True)
    assert "mlflow" not in str(refused.value), "it decides no result"
    assert "--force" in str(refused.value)
    open_ledger(folder)[1].close()
    _, forced = open_ledger(folder, write=True, force=True)
    assert "other versions: torch 1.0.0 then" in caplog.text
    assert forced.sessions[-1].versions == versions()
    forced.close()
    open_ledger(folder, write=True)[1].close()


def test_a_driver_that_was_lost_before_it_began_is_followed_by_another(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path / "first")
    facts = ledger.facts
    ledger.close()
    other = SearchFolder(tmp_path / "second", "made")
    other.create()
    found(
        f"sqlite:///{other.database}",
        "made",
        spec.objectives,
        {**facts, "sessions": [], "count": 0},
    )
    _, again = open_ledger(other, write=True)
    assert len(again.sessions) == 1
    again.close()
    assert (other.path / "search.yaml").read_text() == (folder.path / "search.yaml").read_text()


def test_versions_of_packages_that_are_gone_do_not_matter() -> None:
    check_versions({"gone": "1"}, "made", force=False)


def test_a_trials_versions_are_those_of_its_sessions(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path)
    number = add_trial(spec, ledger, 16, 1)
    ledger.close()
    _, again = open_ledger(folder, write=True)
    again.retry(number)
    assert [a.session for a in again.record(number).attempts] == [0, 1]
    assert len(again.sessions) == 2
    again.close()


def test_columns_that_contradict_what_was_decided_are_mended(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path)
    fill(spec, ledger)
    records = ledger.records
    with writing(ledger._engine) as session:
        session.execute(text("update trials set state = 'RUNNING' where number = 0"))
        session.execute(text("update trial_values set value = 99 where trial_id = 2"))
    ledger.close()
    read = open_ledger(folder)[1]
    read.close()
    assert read.records == records, "what was decided counts"
    _, again = open_ledger(folder, write=True)
    again.close()
    study = optuna.load_study(storage=f"sqlite:///{folder.database}", study_name="made")
    assert study.trials[0].state == optuna.trial.TrialState.COMPLETE
    assert study.trials[0].values == [records[0].last["val_top1"], records[0].last["energy_mj"]]
    assert study.trials[1].values == [records[1].last["val_top1"], records[1].last["energy_mj"]]


def test_a_trial_that_nobody_configured_is_a_failure(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path)
    add_trial(spec, ledger, 16, 4, "finished")
    ledger.close()
    url = f"sqlite:///{folder.database}"
    optuna.load_study(storage=url, study_name="made").ask()
    _, again = open_ledger(folder, write=True)
    assert [(r.state, r.reason) for r in again.records][1] == ("failed", "half_created")
    assert add_trial(spec, again, 24, 1) == 2
    records = again.records
    again.close()
    reread = Ledger.open(url, "made")
    assert reread.records == records
    reread.close()


@pytest.mark.parametrize("where", ["trial_user_attributes", "trials", "study_user_attributes"])
def test_a_lost_row_is_noticed(tmp_path: Path, where: str) -> None:
    spec, folder, ledger = made_search(tmp_path)
    fill(spec, ledger)
    with writing(ledger._engine) as session:
        session.execute(text(f"delete from {where} where rowid = 3"))
    ledger.close()
    with pytest.raises(Exception, match=r"study\.db") as refused:
        open_ledger(folder)
    assert "damaged" in str(refused.value)


@pytest.mark.parametrize("change", ["value_json = replace(value_json, '67.', '68.')", "key = 'x'"])
def test_an_altered_value_is_noticed(tmp_path: Path, change: str) -> None:
    spec, folder, ledger = made_search(tmp_path)
    ledger_number = add_trial(spec, ledger, 16, 4, "finished")
    with writing(ledger._engine) as session:
        session.execute(text(f"update trial_user_attributes set {change} where key = 'epoch:0004'"))
    ledger.close()
    with pytest.raises(Exception, match=f"trial {ledger_number}"):
        open_ledger(folder)


def test_altered_parameters_are_noticed(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path)
    add_trial(spec, ledger, 16, 4, "finished")
    with writing(ledger._engine) as session:
        session.execute(text("update trial_params set param_value = param_value + 1"))
    ledger.close()
    with pytest.raises(Exception, match="the parameters of trial 0 were altered"):
        open_ledger(folder)


def test_a_search_that_is_not_there(tmp_path: Path) -> None:
    made_search(tmp_path)[2].close()
    with pytest.raises(InputError, match="no search named 'other'; searches there: made"):
        open_ledger(SearchFolder(tmp_path, "other"))
    assert not (tmp_path / "other").exists()


def test_a_last_trial_that_is_gone_with_all_its_rows_is_noticed(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path)
    fill(spec, ledger)
    with writing(ledger._engine) as session:
        for table in ("user_attributes", "system_attributes", "params", "values"):
            session.execute(text(f"delete from trial_{table} where trial_id = 4"))
        session.execute(text("delete from trials where trial_id = 4"))
    ledger.close()
    with pytest.raises(LedgerError, match="must hold trials 0 to 3, but holds 3"):
        open_ledger(folder)
