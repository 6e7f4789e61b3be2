"""Damage anywhere in a search's folder is mended or refused by name; numbers are never wrong."""

import random
import shutil
from pathlib import Path

import pytest
from ledgers import fill, made_search
from sqlalchemy import update

from search.database import LEASES, writing
from search.folder import SearchFolder
from search.lease import LeaseHeldError
from search.recorded import open_ledger
from search.records import TrialRecord
from trainables.errors import SpiketuneError

FILES = (
    "study.db",
    "study.db-wal",
    "study.db-shm",
    "study.db-changes",
    "manifest.json",
    "search.yaml",
    "resolved.yaml",
)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TrialRecord]]:
    """A folder as a killed driver leaves it: half of the ledger is in the write-ahead log."""
    runs = tmp_path_factory.mktemp("killed")
    spec, folder, ledger = made_search(runs / "first")
    fill(spec, ledger)
    ledger.close()
    _, again = open_ledger(folder, write=True)
    fill(spec, again)
    with writing(again._engine) as session:  # as if its process were gone
        session.execute(update(LEASES).values(token=""))
    copy = runs / "copy"
    shutil.copytree(folder.path, copy / "made")
    records = again.records
    again.close()
    assert (copy / "made" / "study.db-wal").stat().st_size > 0
    return copy, records


def damage(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    how = rng.choice(("flip", "cut", "zero"))
    at = rng.randrange(len(data))
    if how == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[at:]
    else:
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    path.write_bytes(data)
    return f"{how} {path.name} at {at}"


def survives(runs: Path, records: list[TrialRecord], what: str) -> str:
    """Open to read and to write; what comes is right, or an error that names a file."""
    folder = SearchFolder(runs, "made")
    outcomes = []
    for write in (False, True):
        try:
            _, ledger = open_ledger(folder, write=write)
        except SpiketuneError as error:
            named = str(folder.path) in str(error) or "versions" in str(error)
            # Where the very last transaction is lost, this process seems to hold the search.
            named = named or isinstance(error, LeaseHeldError)
            outcomes.append("refused" if named else f"{what}: {error}")
            continue
        found = ledger.records
        ledger.close()
        assert found == records, what
        outcomes.append("right")
    assert set(outcomes) <= {"refused", "right"}
    return " ".join(outcomes)


def run(killed: tuple[Path, list[TrialRecord]], work: Path, file: str, seeds: range) -> list[str]:
    source, records = killed
    outcomes = []
    for seed in seeds:
        shutil.copytree(source, work / str(seed))
        what = damage(work / str(seed) / "made" / file, random.Random(f"{file} {seed}"))
        outcomes.append(survives(work / str(seed), records, f"seed {seed}: {what}"))
    return outcomes


@pytest.mark.parametrize("file", FILES)
def test_damage_is_mended_or_refused_by_name(
    killed: tuple[Path, list[TrialRecord]], tmp_path: Path, file: str
) -> None:
    run(killed, tmp_path, file, range(3))


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_much_damage_is_mended_or_refused_by_name(
    killed: tuple[Path, list[TrialRecord]], tmp_path: Path, file: str
) -> None:
    outcomes = run(killed, tmp_path, file, range(3, 43))
    if not file.startswith("study.db") or file.endswith(("-shm", "-changes")):
        assert set(outcomes) <= {"right right", "right refused"}, "only versions may be refused"


@pytest.mark.parametrize("file", ["manifest.json", "search.yaml", "resolved.yaml"])
def test_a_lost_file_is_written_again(
    killed: tuple[Path, list[TrialRecord]], tmp_path: Path, file: str
) -> None:
    source, records = killed
    shutil.copytree(source, tmp_path / "runs")
    path = tmp_path / "runs" / "made" / file
    before = path.read_bytes()
    path.unlink()
    assert survives(tmp_path / "runs", records, file) == "right right"
    assert path.read_bytes() == before


def test_an_altered_file_is_kept_aside(
    killed: tuple[Path, list[TrialRecord]], tmp_path: Path
) -> None:
    source, records = killed
    shutil.copytree(source, tmp_path / "runs")
    path = tmp_path / "runs" / "made" / "resolved.yaml"
    before = path.read_text()
    path.write_text(before.replace("trials: 12", "trials: 13"))
    assert survives(tmp_path / "runs", records, "") == "right right"
    assert path.read_text() == before
    assert "trials: 13" in path.with_name("resolved.yaml.altered").read_text()


def test_another_searchs_ledger_is_refused(
    killed: tuple[Path, list[TrialRecord]], tmp_path: Path
) -> None:
    source, _ = killed
    shutil.copytree(source, tmp_path / "runs")
    spec, folder, other = made_search(tmp_path / "other", "budget.trials=3")
    other.close()
    del spec
    shutil.copy(folder.database, tmp_path / "runs" / "made" / "study.db")
    for suffix in ("-wal", "-shm", "-changes"):
        (tmp_path / "runs" / "made" / f"study.db{suffix}").unlink()
    with pytest.raises(SpiketuneError, match=r"manifest\.json: it must belong"):
        open_ledger(SearchFolder(tmp_path / "runs", "made"), write=True)


def test_a_lost_log_is_refused_until_it_is_accepted(
    killed: tuple[Path, list[TrialRecord]], tmp_path: Path
) -> None:
    source, records = killed
    shutil.copytree(source, tmp_path / "runs")
    folder = SearchFolder(tmp_path / "runs", "made")
    (folder.path / "study.db-wal").write_bytes(b"")
    for write in (False, True):
        with pytest.raises(SpiketuneError, match=r"study\.db-wal: .* changes of the ledger"):
            open_ledger(folder, write=write)
    _, ledger = open_ledger(folder, write=True, force=True)
    assert ledger.records == records[:4]
    ledger.close()
    open_ledger(folder, write=True)[1].close()
