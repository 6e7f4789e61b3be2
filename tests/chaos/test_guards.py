"""Guards that nothing else would miss: take one away and its test here is red."""

from pathlib import Path

import pytest
from ledgers import add_trial, fill, made_search
from sqlalchemy import text
from test_checkpoint import CONFIG

from search.database import LedgerError, writing
from search.recorded import open_ledger
from trainables.loop import TrialRun
from trainables.trial import SpikingTrial, discard_after


def test_a_search_whose_directions_were_turned_is_refused(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path)
    add_trial(spec, ledger, 16, 4, "finished")
    with writing(ledger._engine) as session:
        session.execute(text("update study_directions set direction = 'MINIMIZE'"))
    ledger.close()
    for write in (False, True):
        with pytest.raises(LedgerError, match="directions are not those of its objectives"):
            open_ledger(folder, write=write)


def assignment(folder: Path, known_epochs: int) -> dict[str, object]:
    trial = CONFIG.model_dump(mode="json")
    fixed = {"number": 0, "attempt": 2, "threads": 1}
    return {**fixed, "trial": trial, "folder": str(folder), "known_epochs": known_epochs}


@pytest.mark.parametrize(("known", "first"), [(0, 1), (2, 3)])
def test_a_trial_goes_on_where_the_ledger_can_follow(
    tmp_path: Path, known: int, first: int
) -> None:
    run = TrialRun(CONFIG)
    for _ in range(3):
        run.step()
        run.save(tmp_path)
    trial = SpikingTrial.__new__(SpikingTrial)  # as Tune's worker has it, without a worker
    trial.setup(assignment(tmp_path, known))
    report = trial.step()
    assert report["epoch"] == first
    assert report["epoch"] <= known + 1, "no epoch is left out"


def test_checkpoints_of_epochs_that_the_ledger_lost_go(tmp_path: Path) -> None:
    for name in ("epoch-0002", "epoch-0003", "epoch-0004", "best"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"x")
    discard_after(tmp_path, 4)
    assert len(list(tmp_path.iterdir())) == 4
    discard_after(tmp_path, 3)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["epoch-0002.safetensors", "epoch-0003.safetensors"]


def test_an_altered_result_is_refused(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path)
    fill(spec, ledger)
    change = text(
        "update trial_user_attributes set value_json = "
        "replace(value_json, '\"energy_mj\": ', '\"energy_mj\": 1') where key = 'epoch:0001'"
    )
    with writing(ledger._engine) as session:
        session.execute(change)
    ledger.close()
    with pytest.raises(LedgerError, match="'epoch:0001' of trial 0 was altered"):
        open_ledger(folder)
