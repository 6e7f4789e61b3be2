"""Every file of a search's folder, damaged: recovered or refused by name, never wrong."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ledgers import add_trial, fill, made_search
from sqlalchemy import update
from test_checkpoint import CONFIG
from test_damage import damage, survives

from search.database import LEASES, writing
from search.folder import SearchFolder
from search.recorded import open_ledger
from search.records import TrialRecord
from search.reporting import report_search
from search.spool import Chunk, Spool
from trainables import checkpoint as checkpoints
from trainables.loop import TrialRun

LEDGER = ("study.db", "study.db-wal", "study.db-shm", "study.db-changes")
COPIES = ("manifest.json", "search.yaml", "resolved.yaml", "report.html", "report.json")
CHECKPOINTS = tuple(f"trials/00003/{n}.safetensors" for n in ("epoch-0002", "epoch-0003", "best"))
SPOOL = ("spool/events.jsonl", "spool/acked.json", "spool/runs.json")
EVENTS, SENT = 30, 12


@dataclass(frozen=True)
class Whole:
    """An undamaged search as a killed driver leaves it."""

    runs: Path
    records: list[TrialRecord]
    epochs: dict[int, checkpoints.Checkpoint]

    @property
    def folder(self) -> Path:
        return self.runs / "made"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    home = tmp_path_factory.mktemp("whole")
    spec, folder, ledger = made_search(home / "first")
    fill(spec, ledger)
    ledger.close()
    _, again = open_ledger(folder, write=True)
    add_trial(spec, again, 32, 2)
    report_search(spec, folder, again.records)
    run = TrialRun(CONFIG)
    epochs = {}
    for epoch in (1, 2, 3):
        run.step()
        epochs[epoch] = checkpoints.load(run.save(folder.trial(3)))
    spool = Spool(folder.spool, "store")
    for number in range(EVENTS):
        spool.append("epoch", 100.0 + number, {"trial": number, "metrics": {"val_top1": 50.5}})
        if number + 1 == SENT:
            spool.acknowledge(spool.read())
    spool.close()
    (folder.spool / "runs.json").write_text('{"crc": "00000000", "value": {}}')
    with writing(again._engine) as session:  # as if its process were gone
        session.execute(update(LEASES).values(token=""))
    shutil.copytree(folder.path, home / "copy" / "made")
    records = again.records
    again.close()
    return Whole(home / "copy", records, epochs)


def test_every_file_of_a_searchs_folder_is_tried(whole: Whole) -> None:
    found = {str(p.relative_to(whole.folder)) for p in whole.folder.rglob("*") if p.is_file()}
    assert found - {"spool/lock"} == {*LEDGER, *COPIES, *CHECKPOINTS, *SPOOL}


def copies(whole: Whole, work: Path, file: str, seeds: range) -> Any:
    """Damaged folders one after the other, each with what was done to it."""
    for seed in seeds:
        runs = work / str(seed)
        shutil.copytree(whole.runs, runs)
        yield runs, damage(runs / "made" / file, random.Random(f"{file} {seed}"))
        shutil.rmtree(runs)


def check_ledger(whole: Whole, work: Path, file: str, seeds: range) -> None:
    for runs, what in copies(whole, work, file, seeds):
        outcome = survives(runs, whole.records, what)
        if file not in ("study.db", "study.db-wal"):
            assert outcome in ("right right", "right refused"), what


def same(found: checkpoints.Checkpoint, expected: checkpoints.Checkpoint) -> bool:
    return (
        (found.config, found.metrics) == (expected.config, expected.metrics)
        and found.model.keys() == expected.model.keys()
        and all(torch.equal(found.model[k], v) for k, v in expected.model.items())
    )


def check_checkpoints(
    whole: Whole, work: Path, file: str, seeds: range, caplog: pytest.LogCaptureFixture
) -> None:
    for runs, what in copies(whole, work, file, seeds):
        caplog.clear()
        folder = SearchFolder(runs, "made").trial(3)
        untouched = (runs / "made" / file).read_bytes() == (whole.folder / file).read_bytes()
        good = checkpoints.last_good(folder)
        assert good is not None, what
        assert same(good, whole.epochs[good.epoch]), what
        if file.endswith("epoch-0003.safetensors") and not untouched:
            assert good.epoch == 2, what
            assert file in caplog.text, "it is named"
        else:
            assert good.epoch == 3, what
        truly = checkpoints.best_top1(whole.folder / "trials" / "00003")
        assert checkpoints.best_top1(folder) in ((-1.0,) if "best" in file else (truly,)), what


def check_spool(
    whole: Whole, work: Path, file: str, seeds: range, caplog: pytest.LogCaptureFixture
) -> None:
    for runs, what in copies(whole, work, file, seeds):
        caplog.clear()
        data = (runs / "made" / file).read_bytes()
        spool = Spool(runs / "made" / "spool", "store")
        numbers, uncertain = delivered(spool)
        spool.close()
        assert numbers == sorted(set(numbers)), what
        if "events" in file:
            # Only a cut between two lines leaves no trace in the file itself.
            complete = numbers[-1:] == [EVENTS - 1] and set(range(SENT, EVENTS)) <= set(numbers)
            assert complete or caplog.text or data.endswith(b"}\n") or not data, what
            continue
        assert set(range(SENT, EVENTS)) <= set(numbers), f"{what}: events were left out"
        assert uncertain or numbers[0] == SENT, f"{what}: what was sent may come twice"


def delivered(spool: Spool) -> tuple[list[int], bool]:
    """Numbers of the events that come out, and whether the first came in doubt."""
    numbers: list[int] = []
    chunks: list[Chunk] = []
    while (chunk := spool.read()).end > chunk.start:
        numbers += [event.body["trial"] for event in chunk.events]
        for event in chunk.events:
            assert event.time_s == 100.0 + event.body["trial"]
            assert event.body["metrics"] == {"val_top1": 50.5}
        chunks.append(chunk)
        spool.acknowledge(chunk)
    return numbers, bool(chunks) and chunks[0].uncertain


@pytest.mark.parametrize("file", [*LEDGER, *COPIES])
def test_the_ledger_mends_or_refuses(whole: Whole, tmp_path: Path, file: str) -> None:
    check_ledger(whole, tmp_path, file, range(1000, 1002))


@pytest.mark.slow
@pytest.mark.parametrize("file", [*LEDGER, *COPIES])
def test_the_ledger_mends_or_refuses_much(whole: Whole, tmp_path: Path, file: str) -> None:
    check_ledger(whole, tmp_path, file, range(1002, 1122))


@pytest.mark.parametrize("file", CHECKPOINTS)
def test_a_trial_falls_back(
    whole: Whole, tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_checkpoints(whole, tmp_path, file, range(5), caplog)


@pytest.mark.slow
@pytest.mark.parametrize("file", CHECKPOINTS)
def test_a_trial_falls_back_from_much(
    whole: Whole, tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_checkpoints(whole, tmp_path, file, range(5, 225), caplog)


@pytest.mark.parametrize("file", SPOOL)
def test_the_spool_delivers_what_is_intact(
    whole: Whole, tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_spool(whole, tmp_path, file, range(10), caplog)


@pytest.mark.slow
@pytest.mark.parametrize("file", SPOOL)
def test_the_spool_delivers_what_is_intact_of_much(
    whole: Whole, tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_spool(whole, tmp_path, file, range(10, 310), caplog)


def test_a_damaged_report_is_written_again(whole: Whole, tmp_path: Path) -> None:
    shutil.copytree(whole.runs, tmp_path / "runs")
    folder = SearchFolder(tmp_path / "runs", "made")
    damage(folder.report, random.Random(1))
    spec, ledger = open_ledger(folder)
    ledger.close()
    report_search(spec, folder, ledger.records)
    assert folder.report.read_text().rstrip().endswith("</html>")
    assert folder.report.stat().st_size >= (whole.folder / "report.html").stat().st_size * 0.9
