"""A driver that ends before or after any of its writes: resumed, it does what it would have done.

Every change of the ledger and every event of the tracker is a place to end at. What a kill leaves
is what was committed and what was appended; nothing is closed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_search import assert_rule_followed
from ledgers import made_search
from promotions import assert_promotions_followed

from search import database
from search.director import Assignment, Director
from search.folder import SearchFolder
from search.recorded import open_ledger
from search.records import TrialRecord
from search.retries import Loss
from search.rows import Rows
from search.spool import Chunk, Event, Spool
from search.study import Ledger
from search.tracking_events import EventWriter
from search.tracking_runs import RunWriter, Values
from spaces import SearchSpec

EPOCHS, TRIALS = 4, 8
OVERRIDES = (f"budget.trials={TRIALS}", "stopping.grace_epochs=1")
FOLLOWED = {"asha": assert_rule_followed, "asha_promotion": assert_promotions_followed}
LOSES_A_WORKER, DIES = 2, 4  # numbers of the trials that do
LOST = Loss("worker_lost", charged=True)


class Crash(BaseException):
    """The driver's process is gone."""


class Places:
    """Counts the places to crash at, and crashes at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.passed = 0
        self._at = at

    def __call__(self) -> None:
        self.passed += 1
        if self.passed - 1 == self._at:
            raise Crash


class Events(EventWriter):
    """The tracker without its thread: events go into a real spool."""

    def __init__(self, folder: Path, crash: Callable[[], None]) -> None:
        super().__init__()
        self.spool = Spool(folder, "store", self._note)
        self._crash = crash

    def _append(self, kind: str, time_s: float, body: Mapping[str, Any]) -> bool:
        self._crash()
        done = self.spool.append(kind, time_s, body)
        self._crash()
        return done


class Store:
    """A tracking store as plain dictionaries."""

    rejected = 0

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []

    def connect(self) -> bool:
        return not self.runs

    def find_runs(self, tags: Mapping[str, str], status: str | None = None) -> list[str]:
        return [
            str(number)
            for number, run in enumerate(self.runs)
            if tags.items() <= run["tags"].items() and status in (None, run["status"])
        ]

    def create_run(self, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        made = {"tags": dict(tags), "params": {}, "points": [], "status": "RUNNING"}
        self.runs.append({"name": name, "start_ms": start_ms, "files": {}, **made})
        return str(len(self.runs) - 1)

    def set_status(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        self.runs[int(run_id)] |= {"status": status, "end_ms": end_ms}

    def log(
        self,
        run_id: str,
        values: Values,
        *,
        uncertain: bool,  # noqa: ARG002  # this store never leaves one in doubt
    ) -> None:
        run = self.runs[int(run_id)]
        run["points"] += values.points
        run["params"] |= values.params
        run["tags"] |= values.tags

    def log_datasets(self, run_id: str, datasets: Sequence[Mapping[str, str]]) -> None:
        self.runs[int(run_id)]["datasets"] = list(datasets)

    def upload(self, run_id: str, name: str, content: Mapping[str, str]) -> None:
        self.runs[int(run_id)]["files"][name] = content


class Silent:
    def trial_changed(self, record: TrialRecord) -> None:
        """Nobody looks."""


class Clock:
    """Goes on by a minute a look, so that every pause is over."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def __call__(self) -> float:
        self._now_s += 60.0
        return self._now_s


@contextmanager
def crashing(monkeypatch: pytest.MonkeyPatch, crash: Callable[[], None]) -> Iterator[None]:
    """Make each transaction of the ledger two places to crash at."""
    writing = Rows.writing

    @contextmanager
    def watched(rows: Rows) -> Iterator[Any]:
        crash()
        with writing(rows) as transaction:
            yield transaction
        crash()

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "writing", watched)
        yield


def measured(assignment: Assignment, epoch: int) -> dict[str, Any]:
    trial = assignment.config["trial"]
    width, timesteps = trial["model"]["width"], trial["model"]["timesteps"]
    number = assignment.number
    nan = number == DIES and epoch == 1
    # Some start well and get worse, so that the second rung stops some too.
    gain = 15 - 9 * epoch if number % 4 == 3 else 2 * epoch
    return {
        "epoch": epoch,
        "val_top1": 50.0 + width / 64 + 3 * (number % 6) + gain,
        "energy_mj": width * timesteps / 10,
        "train_loss": float("nan") if nan else 1.0 / epoch,
        "num_steps": 40 * epoch,
        "done": epoch == EPOCHS,
    }


def drive(
    spec: SearchSpec,
    folder: SearchFolder,
    ledger: Ledger,
    events: Events,
    reached: dict[int, int],
) -> None:
    """One trial at a time to the end of the search; `reached` is the last epoch of each."""
    tracker: Any = events
    director = Director(spec, folder, ledger, tracker, Silent(), Clock())
    while (assignment := director.next_assignment()) is not None:
        if isinstance(assignment, Assignment):
            run_trial(director, assignment, reached)


def run_trial(director: Director, assignment: Assignment, reached: dict[int, int]) -> None:
    number, attempt = assignment.number, assignment.config["attempt"]
    epoch = max(1, assignment.config["known_epochs"])  # the checkpoint's is reported again
    assert epoch >= reached.get(number, 0) - 1, "the trial starts again"
    attempts = director.ledger.record(number).attempts
    if number == LOSES_A_WORKER and not any(a.charged for a in attempts):
        director.lost(number, LOST, attempt)
        return
    stop = False
    while not stop:
        reached[number] = epoch
        stop = director.report(number, measured(assignment, epoch), attempt)
        epoch += 1


def history(records: Sequence[TrialRecord]) -> list[Any]:
    return [
        (
            dict(r.params),
            r.state,
            r.reason,
            [repr(dict(e.metrics)) for e in r.epochs],
            sum(a.charged for a in r.attempts),
        )
        for r in records
    ]


def forget(ledger: Ledger, events: Events) -> None:
    """What the end of a process does: locks go, nothing is written."""
    ledger._lease.release()
    database.close_storage(ledger._storage)
    events.spool.close()


def crash_and_resume(
    runs: Path, monkeypatch: pytest.MonkeyPatch, rule: str, at: int | None
) -> tuple[list[Any], int]:
    """Run a search that crashes at a place, resume it to its end; its history, places passed."""
    places = Places(at)
    spec, folder, ledger = made_search(runs, *OVERRIDES, f"stopping.name={rule}")
    events = Events(folder.spool, places)
    reached: dict[int, int] = {}
    crashed = False
    with crashing(monkeypatch, places):
        try:
            drive(spec, folder, ledger, events, reached)
        except Crash:
            crashed = True
    forget(ledger, events)
    assert crashed == (at is not None)
    _, ledger = open_ledger(folder, write=True)
    events = Events(folder.spool, lambda: None)
    drive(spec, folder, ledger, events, reached)
    records = ledger.records
    ledger.close()
    FOLLOWED[rule](records)
    assert_told(events.spool, folder, records)
    events.spool.close()
    return history(records), places.passed


def assert_told(spool: Spool, folder: SearchFolder, records: Sequence[TrialRecord]) -> None:
    """The events make one run a trial, with each value once, at its time, and the right end."""
    store = Store()
    writer = RunWriter(
        store, search="made", search_id="id", key="store", path=folder.spool / "runs.json"
    )
    writer.connect(1.0)
    found: list[Event] = []
    spool.rewind()
    while (chunk := spool.read()).events:
        found += chunk.events
        spool.acknowledge(chunk)
    writer.deliver(Chunk(found, 0, 0, uncertain=False))
    by_name = {run["name"]: run for run in store.runs[1:]}
    assert len(by_name) == len(store.runs) - 1 == len(records), "a run a trial"
    for record in records:
        run = by_name[record.name]
        failed = record.state == "failed"
        assert run["status"] == ("FAILED" if failed else "FINISHED"), record.number
        assert run["tags"]["spiketune.state"] == record.state
        assert run["tags"]["spiketune.reason"] == record.reason
        assert run["end_ms"] == round(1000 * (record.ended_s or 0))
        points = [(p.step, p.value, p.time_ms) for p in run["points"] if p.key == "val_top1"]
        assert points == [
            (e.epoch, e.metrics["val_top1"], round(1000 * e.time_s)) for e in record.epochs
        ]


@dataclass(frozen=True)
class Whole:
    """An uninterrupted search: its rule, its history, how many places to crash at it has."""

    rule: str
    history: list[Any]
    places: int


@pytest.fixture(scope="module", params=sorted(FOLLOWED))
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    with pytest.MonkeyPatch.context() as patch:
        runs = tmp_path_factory.mktemp("whole") / "runs"
        return Whole(request.param, *crash_and_resume(runs, patch, request.param, None))


def check(whole: Whole, runs: Path, patch: pytest.MonkeyPatch, places: Sequence[int]) -> None:
    for at in places:
        found, _ = crash_and_resume(runs / str(at), patch, whole.rule, at)
        assert found == whole.history, f"crashed at place {at}"


def test_a_crash_anywhere_changes_nothing(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stride without common factors with the four places that a report has.
    check(whole, tmp_path, monkeypatch, range(0, whole.places, 11))


@pytest.mark.slow
def test_a_crash_everywhere_changes_nothing(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(whole, tmp_path, monkeypatch, range(whole.places))
