"""The ledger on a real PostgreSQL server."""

import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_server import free_port
from postgresql import postgresql
from sqlalchemy import create_engine, text

from search.database import driver_url
from search.folder import SearchFolder
from search.lease import LeaseHeldError
from search.recorded import create_ledger, open_ledger
from search.study import Ledger, LedgerError
from spaces import SearchSpec, load_search_space
from trainables.errors import InputError

DIGITS = Path(__file__).parents[2] / "spaces" / "digits.yaml"
PASSWORD = "canary-" + secrets.token_hex(8)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with postgresql(PASSWORD, free_port()) as server:
        yield f"{server}/postgres"


@pytest.fixture
def spec(address: str, monkeypatch: pytest.MonkeyPatch) -> SearchSpec:
    monkeypatch.setenv("SPIKETUNE_LEDGER_URL", address)
    return load_search_space(DIGITS)


def test_a_ledger_on_a_server_keeps_everything_and_no_password_is_written(
    spec: SearchSpec, address: str, tmp_path: Path
) -> None:
    folder = SearchFolder(tmp_path, "served")
    ledger = create_ledger(spec, folder, DIGITS.read_text())
    for state in ("stopped", "failed"):
        number = ledger.add({}, {}, {"model": {}}, "0").number
        ledger.report(number, 1, {"val_top1": 1.0 / 3.0, "energy_mj": 2.0}, {"lif": 0.5})
        ledger.finish(number, state, "asha@1", {"energy_mj <= 1": 1.0})
    ledger.add({}, {}, {"model": {}}, "1")
    records = ledger.records
    with pytest.raises(LeaseHeldError, match=f"process {os.getpid()}"):
        open_ledger(folder, write=True)
    ledger.close()
    found_spec, again = open_ledger(folder, write=True)
    assert again.records == records
    assert found_spec.resolved() == spec.resolved()
    again.close()
    assert not folder.database.exists()
    assert '"env:SPIKETUNE_LEDGER_URL"' in folder.manifest_path.read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]


def test_names_on_a_server_are_taken_once(spec: SearchSpec, tmp_path: Path) -> None:
    create_ledger(spec, SearchFolder(tmp_path / "a", "once"), "").close()
    with pytest.raises(InputError, match="exists already"):
        create_ledger(spec, SearchFolder(tmp_path / "b", "once"), "")


def test_the_files_of_a_search_on_a_server_are_written_again(
    spec: SearchSpec, tmp_path: Path
) -> None:
    folder = SearchFolder(tmp_path, "bare")
    create_ledger(spec, folder, DIGITS.read_text()).close()
    before = (folder.path / "resolved.yaml").read_bytes()
    shutil.rmtree(folder.path)
    open_ledger(folder, write=True)[1].close()
    assert (folder.path / "resolved.yaml").read_bytes() == before


def test_races_on_a_server_have_one_winner(spec: SearchSpec, tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path, "raced")
    create_ledger(spec, folder, "").close()
    for _ in range(5):
        barrier = threading.Barrier(3)
        winners: list[Ledger] = []

        def race(barrier: threading.Barrier = barrier, winners: list[Ledger] = winners) -> None:
            barrier.wait()
            try:
                winners.append(open_ledger(folder, write=True)[1])
            except LeaseHeldError:
                return

        racers = [threading.Thread(target=race) for _ in range(3)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert len(winners) == 1
        winners[0].close()


def test_altered_values_on_a_server_are_noticed(
    spec: SearchSpec, address: str, tmp_path: Path
) -> None:
    folder = SearchFolder(tmp_path, "altered")
    ledger = create_ledger(spec, folder, "")
    ledger.report(ledger.add({}, {}, {}, "0").number, 1, {"val_top1": 77.5})
    ledger.close()
    engine = create_engine(driver_url(address))
    with engine.begin() as connection:
        change = "update trial_user_attributes set value_json = replace(value_json, '77.', '78.')"
        # A time of the trial's may hold the same digits.
        connection.execute(text(f"{change} where key = 'epoch:0001'"))
    engine.dispose()
    with pytest.raises(LedgerError, match=r"\*\*\*@.*'epoch:0001' of trial 0 was altered") as told:
        open_ledger(folder)
    assert PASSWORD not in str(told.value)


def test_a_server_that_is_away_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIKETUNE_LEDGER_URL", f"postgresql://u:canary@127.0.0.1:{free_port()}/x")
    with pytest.raises(LedgerError, match="cannot be used") as told:
        create_ledger(load_search_space(DIGITS), SearchFolder(tmp_path, "away"), "")
    assert "canary" not in str(told.value)
