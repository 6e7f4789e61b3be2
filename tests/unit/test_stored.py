"""A search's checkpoints in a store, from the driver's side."""

import shutil
from pathlib import Path

import pytest
from ledgers import fill, made_search, made_spec
from s3_server import BUCKET, S3Server
from test_director import SEVEN, Clock, Recorder, Silent, result, start

from search import open_search
from search.director import Director
from search.recorded import check_same
from search.results import pareto
from search.stored import Remover, check_store, checkpoint_url, stored_folder
from spaces.json_schema import json_schema
from trainables.errors import CheckpointError, InputError
from trainables.files import BEST
from trainables.remote import StoredFolder

CANARY = "hunter2hunter2"


def setting(place: object) -> str:
    return f"storage.checkpoints={place}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


def put_best(store: StoredFolder, number: int, text: str, scratch: Path) -> None:
    (scratch / BEST).write_text(text)
    store.below(f"{number:05d}").put(scratch / BEST)


def test_a_place_is_kept_as_given_and_looked_up_when_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_STORE", raising=False)
    plain = made_spec(tmp_path)
    assert plain.storage.checkpoints is None
    assert checkpoint_url(plain) is None
    assert stored_folder(plain, "made", "1") is None
    check_store(plain)
    spec = made_spec(tmp_path, setting("env:MY_STORE"))
    assert spec.resolved()["storage"] == {"ledger": None, "checkpoints": "env:MY_STORE"}
    with pytest.raises(InputError, match="MY_STORE is not set"):
        checkpoint_url(spec)
    monkeypatch.setenv("MY_STORE", "s3://bucket/deep/prefix/?region=eu-west-1")
    store = stored_folder(spec, "made", "f00")
    assert str(store) == "s3://bucket/deep/prefix/made/f00"
    for wrong in (f"s3://me:{CANARY}@bucket", "relative", "env:OTHER"):
        monkeypatch.setenv("MY_STORE", wrong)
        with pytest.raises(
            InputError, match=r"storage\.checkpoints: what `env:MY_STORE` names"
        ) as no:
            checkpoint_url(spec)
        assert CANARY not in str(no.value)
    with pytest.raises(InputError, match=r"storage\.checkpoints: None, not 'env:MY_STORE'"):
        check_same(plain, spec, "made")


def test_editors_know_the_key() -> None:
    assert set(json_schema()["$defs"]["Storage"]["properties"]) == {"ledger", "checkpoints"}


def test_a_store_is_tried_before_a_search(tmp_path: Path, root: Path, s3: S3Server) -> None:
    check_store(made_spec(tmp_path, setting(root)))
    assert not list(root.iterdir())
    check_store(made_spec(tmp_path, setting(f"s3://{BUCKET}")))
    for place, reason in (
        (f"{root}/missing", "folder that is there on every machine"),
        ("s3://other/prefix", "NO_SUCH_BUCKET"),
    ):
        with pytest.raises(InputError, match=f"storage.checkpoints: {place}.*{reason}") as told:
            check_store(made_spec(tmp_path, setting(place)))
        assert told.value.exit_code == 2
        assert "\n" not in str(told.value)
    s3.deny(deny=True)
    try:
        with pytest.raises(InputError, match="INVALID_ACCESS_KEY"):
            check_store(made_spec(tmp_path, setting(f"s3://{BUCKET}")))
    finally:
        s3.deny(deny=False)


def test_the_director_says_where_and_losers_leave_the_store(tmp_path: Path, root: Path) -> None:
    spec, folder, ledger = made_search(tmp_path / "runs", *SEVEN, setting(root.as_uri()))
    recorder = Recorder()
    # A recorder is no tracker to mypy, but takes the same calls.
    director = Director(spec, folder, ledger, recorder, Silent(), Clock())  # type: ignore[arg-type]
    mine = root / "made" / ledger.search_id
    for number in range(7):
        assignment = start(director)
        store = StoredFolder(**assignment.config["store"])
        assert store.place == f"{mine}/{number:05d}"
        epoch, stop = 0, False
        while not stop:
            epoch += 1
            (tmp_path / BEST).write_text(f"{number}")
            store.put(tmp_path / BEST)
            stop = director.report(number, result(assignment, epoch))
    director.close(60.0)
    front = {r.number for r in pareto(ledger.records, spec.objectives)}
    kept = {r.name for r in ledger.records if r.state == "finished" or r.number in front}
    assert len(kept) < 7
    assert {path.name for path in mine.iterdir()} == kept
    ends = {b["trial"]: b["artifacts"] for kind, b in recorder.events if kind == "trial_end"}
    for record in ledger.records:
        told = ends[record.number].get(f"checkpoint/{BEST}")
        name = f"made/{ledger.search_id}/{record.name}"
        wanted = {"url": root.as_uri(), "path": name, "stored": BEST}
        assert told == (wanted if record.state == "finished" else None)
    assert not list((folder.path / "trials").iterdir())
    ledger.close()


def test_what_lost_before_a_resume_goes_then(
    tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec, folder, ledger = made_search(tmp_path / "runs", setting(root))
    fill(spec, ledger)
    store = StoredFolder(str(root), f"made/{ledger.search_id}", 0.0)
    for number in range(4):
        put_best(store, number, "x", tmp_path)
    root.rename(tmp_path / "away")
    root.write_text("in the way")
    remover = Remover(folder, store)
    remover.remove(ledger.records[2])
    remover.close(60.0)
    assert "stays there until the search is resumed" in caplog.text
    root.unlink()
    (tmp_path / "away").rename(root)
    # A recorder is no tracker to mypy, but takes the same calls.
    director = Director(spec, folder, ledger, Recorder(), Silent(), Clock())  # type: ignore[arg-type]
    director.close(60.0)
    assert sorted(store.names()) == ["00000", "00001", "00003"]
    ledger.close()


def test_an_opened_search_fetches_what_it_is_asked_for(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_STORE", str(root))
    spec, folder, ledger = made_search(tmp_path / "runs", setting("env:MY_STORE"))
    fill(spec, ledger)
    store = StoredFolder(str(root), f"made/{ledger.search_id}", 0.0)
    put_best(store, 0, "first", tmp_path)
    found = open_search(folder.path)
    trials = {trial.number: trial for trial in found.pareto}
    assert not folder.trial(0).exists(), "nobody has asked"

    def fetched(number: int = 0) -> Path | None:
        return trials[number].checkpoint

    path = fetched()
    assert path is not None
    assert path == folder.trial(0) / BEST
    assert path.read_text() == "first"
    put_best(store, 0, "a later one", tmp_path)
    assert fetched() == path
    assert path.read_text() == "a later one"
    store.below("00000").clear()
    assert fetched() is None
    assert not path.exists(), "a copy of what is kept no more"
    put_best(store, 0, "a later one", tmp_path)
    assert fetched() == path
    assert fetched(1) is None
    with pytest.raises(CheckpointError, match=f"{store}/00001/{BEST}: no such checkpoint"):
        found.load_network(1)
    shutil.rmtree(root)
    root.write_text("in the way")
    monkeypatch.setenv("SPIKETUNE_STORE_PATIENCE_S", "0")
    with pytest.raises(CheckpointError, match=f"must be fetched, but: {root}/made") as told:
        fetched()
    assert "\n" not in str(told.value)
    assert path.exists(), "what was fetched stays"
    ledger.close()


def test_searches_of_one_name_see_nothing_of_each_other(tmp_path: Path, root: Path) -> None:
    stores = []
    for _ in range(2):
        spec, folder, ledger = made_search(tmp_path / "runs", setting(root))
        store = stored_folder(spec, "made", ledger.search_id)
        assert store is not None
        assert store.names() == []
        put_best(store, 0, "x", tmp_path)
        stores.append(str(store))
        ledger.close()
        shutil.rmtree(folder.path)
    assert len(set(stores)) == 2
