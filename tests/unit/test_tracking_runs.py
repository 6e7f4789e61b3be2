"""Which run an event belongs to: found without asking the store, unless it may be there."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from search.spool import Chunk, Event, append_checked, read_all_checked, write_checked
from search.tracking_runs import RunWriter, Values


class Store:
    """Runs in memory, and how often they were looked for."""

    rejected = 0

    def __init__(self) -> None:
        self.names: list[str] = []
        self.asked = 0
        self.logged: list[tuple[str, Values]] = []

    def connect(self) -> bool:
        return True

    def find_runs(self, tags: Mapping[str, str], status: str | None = None) -> list[str]:  # noqa: ARG002
        self.asked += 1
        name = tags["spiketune.trial"].replace("search", "made")
        return [name] if name in self.names else []

    def create_run(self, name: str, tags: Mapping[str, str], start_ms: int) -> str:  # noqa: ARG002
        assert name not in self.names, "a run was made twice"
        self.names.append(name)
        return name

    def set_status(self, run_id: str, status: str, end_ms: int | None = None) -> None: ...

    def log(
        self,
        run_id: str,
        values: Values,
        *,
        uncertain: bool,  # noqa: ARG002  # the interface's; nothing is there twice in memory
    ) -> None:
        self.logged.append((run_id, values))

    def log_datasets(self, run_id: str, datasets: Sequence[Mapping[str, str]]) -> None: ...

    def upload(self, run_id: str, name: str, content: Mapping[str, str]) -> None: ...


NO_FILES: dict[str, object] = {"artifacts": {}}


def started(numbers: Sequence[int], *, uncertain: bool = False) -> Chunk:
    body: dict[str, object] = {"params": {}, "tags": {}, "artifacts": {}}
    events = [Event(n + 1, "trial_start", 1.0, {"trial": n, **body}) for n in numbers]
    return Chunk(events, 0, 0, uncertain=uncertain)


def writer(store: Store, folder: Path) -> RunWriter:
    made = RunWriter(store, search="made", search_id="id", key="k", path=folder / "runs.json")
    made.connect(1.0)
    return made


@pytest.fixture
def store() -> Store:
    return Store()


def test_new_trials_are_not_looked_for(store: Store, tmp_path: Path) -> None:
    runs = writer(store, tmp_path)
    for number in range(50):
        runs.deliver(started([number]))
    assert store.asked == 1, "the search's own run"
    again = writer(store, tmp_path)
    again.deliver(started([3, 49, 50]))
    assert store.asked == 2
    kept = [part["runs"] for part in read_all_checked(tmp_path / "runs.json")]
    assert kept[0]["00049"] == "00049"


def test_what_may_have_been_sent_is_looked_for(store: Store, tmp_path: Path) -> None:
    runs = writer(store, tmp_path)
    store.names.append("00000")  # made, but its answer was lost
    runs.deliver(started([0, 1], uncertain=True))
    assert store.asked == 3
    assert store.names == ["made", "00000", "00001"]


def test_what_is_told_of_a_trial_at_once_goes_out_at_once(store: Store, tmp_path: Path) -> None:
    start = Event(1, "trial_start", 1.0, {"trial": 0, "params": {"a": "1"}, "tags": {}, **NO_FILES})
    epochs = [
        Event(e + 1, "epoch", 1.0, {"trial": 0, "epoch": e, "metrics": {"m": e}, "nonfinite": []})
        for e in (1, 2)
    ]
    body = {"trial": 0, "tags": {"spiketune.state": "finished"}, "status": "FINISHED", **NO_FILES}
    chunk = Chunk([start, *epochs, Event(4, "trial_end", 2.0, body)], 0, 0, uncertain=False)
    writer(store, tmp_path).deliver(chunk)
    ((run, values),) = store.logged
    assert run == "00000"
    assert [(point.key, point.value, point.step) for point in values.points] == [
        ("m", 1, 1),
        ("m", 2, 2),
    ]
    assert values.params == {"a": "1"}
    assert values.tags == {"spiketune.state": "finished"}


@pytest.mark.parametrize("damage", ["missing", "cut", "altered"])
def test_lost_ids_are_looked_for(store: Store, tmp_path: Path, damage: str) -> None:
    runs = writer(store, tmp_path)
    for number in range(3):
        runs.deliver(started([number]))
    path = tmp_path / "runs.json"
    data = path.read_bytes()
    path.write_bytes(data[:-5] if damage == "cut" else data.replace(b"00001", b"00007"))
    if damage == "missing":
        path.unlink()
    writer(store, tmp_path).deliver(started([0, 1, 2, 3]))
    assert store.names == ["made", "00000", "00001", "00002", "00003"]


def test_saving_an_id_writes_no_other(store: Store, tmp_path: Path) -> None:
    runs, path = writer(store, tmp_path), tmp_path / "runs.json"
    sizes = []
    for number in range(40):
        runs.deliver(started([number]))
        sizes.append(path.stat().st_size)
    assert {after - before for before, after in pairwise(sizes)} == {sizes[1] - sizes[0]}


def test_what_is_appended_after_a_torn_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    write_checked(path, {"a": 1})
    with path.open("ab") as stream:
        stream.write(b'\n{"crc": "0000')
    append_checked(path, {"b": 2})
    assert read_all_checked(path) == [{"a": 1}, {}, {"b": 2}]
