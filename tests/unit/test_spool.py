import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.delivery import Delivery
from search.spool import Chunk, Event, Spool, SpoolError, decode, encode

DEADLINE_S = 5.0


def filled(folder: Path, count: int, store: str = "store") -> Spool:
    spool = Spool(folder, store)
    for number in range(count):
        assert spool.append("epoch", 100.0 + number, {"trial": 0, "epoch": number})
    return spool


@given(
    st.text(), st.floats(allow_nan=False), st.dictionaries(st.text(), st.floats(allow_nan=False))
)
def test_an_event_survives_its_line(kind: str, time_s: float, body: dict[str, float]) -> None:
    event = Event(7, kind, time_s, body)
    line = encode(event)
    assert decode(line) == event
    assert line.count(b"\n") == 1
    assert json.loads(line)["event"]["kind"] == kind


@given(st.data())
def test_any_altered_or_cut_line_is_noticed(data: st.DataObject) -> None:
    line = encode(Event(1, "epoch", 1.5, {"trial": 3, "metrics": {"val_top1": 91.25}}))
    cut = data.draw(st.integers(0, len(line) - 1))
    assert decode(line[:cut]) is None
    at = data.draw(st.integers(8, len(line) - 3))
    altered = bytes([line[at] ^ data.draw(st.integers(1, 255))])
    assert decode(line[:at] + altered + line[at + 1 :]) != decode(line) or 16 <= at < 26


def test_events_come_back_in_order_until_acknowledged(tmp_path: Path) -> None:
    spool = filled(tmp_path, 3)
    chunk = spool.read()
    assert [event.time_s for event in chunk.events] == [100.0, 101.0, 102.0]
    assert not chunk.uncertain
    assert spool.pending == 3
    spool.acknowledge(chunk)
    assert spool.pending == 0
    assert spool.read().events == []
    spool.close()


def test_reopening_continues_after_the_acknowledged_part(tmp_path: Path) -> None:
    spool = filled(tmp_path, 2)
    spool.acknowledge(spool.read())
    spool.append("late", 200.0, {})
    spool.close()
    noted: list[int] = []
    again = Spool(tmp_path, "store", lambda event: noted.append(event.seq))
    chunk = again.read()
    assert [event.kind for event in chunk.events] == ["late"]
    assert chunk.uncertain, "the crash may have come between sending and acknowledging"
    assert noted == [1, 2, 3]
    again.append("next", 201.0, {})
    assert [event.seq for event in again.read().events] == [3, 4]
    again.close()


@pytest.mark.parametrize(
    "acked",
    [
        None,
        b"",
        b"{",
        b'{"offset": 10000000, "store": "store"}',
        b'{"offset": 5, "store": "another"}',
    ],
)
def test_without_a_usable_position_everything_is_delivered_again(
    tmp_path: Path, acked: bytes | None
) -> None:
    spool = filled(tmp_path, 3)
    spool.acknowledge(spool.read())
    spool.close()
    (tmp_path / "acked.json").unlink()
    if acked is not None:
        (tmp_path / "acked.json").write_bytes(acked)
    again = Spool(tmp_path, "store")
    assert again.pending == 3
    assert again.read().uncertain
    again.close()


@pytest.mark.parametrize("tail", [b"\x00" * 40, b'{"crc":"0123', None])
def test_a_torn_last_line_is_cut_before_the_next_append(
    tmp_path: Path, tail: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, 2).close()
    path = tmp_path / "events.jsonl"
    whole = path.read_bytes()
    torn = whole + tail if tail else whole[:-3]
    path.write_bytes(torn)
    spool = Spool(tmp_path, "store")
    assert "unfinished line" in caplog.text
    kept = spool.pending
    assert kept == (2 if tail else 1)
    spool.append("next", 1.0, {})
    assert [event.kind for event in spool.read().events] == ["epoch"] * kept + ["next"]
    spool.close()
    assert all(decode(line) for line in path.read_bytes().splitlines(keepends=True))


def test_an_altered_line_in_the_middle_costs_only_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, 3).close()
    path = tmp_path / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"101", b"109") + lines[2])
    spool = Spool(tmp_path, "store")
    chunk = spool.read()
    assert [event.time_s for event in chunk.events] == [100.0, 102.0]
    assert "altered line" in caplog.text
    spool.acknowledge(chunk)
    assert spool.pending == 0
    spool.close()


def test_a_full_disk_loses_that_event_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = filled(tmp_path, 1)

    def half_a_write(stream: object, data: bytes) -> None:
        stream.write(data[: len(data) // 2])  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("search.spool._write_all", half_a_write)
        assert not spool.append("lost", 1.0, {})
    assert "No space left" in caplog.text
    assert spool.append("kept", 2.0, {})
    assert [event.kind for event in spool.read().events] == ["epoch", "kept"]
    spool.close()
    assert len((tmp_path / "events.jsonl").read_bytes().splitlines()) == 2


def test_one_process_at_a_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "store")
    with pytest.raises(SpoolError, match="another one has it"):
        Spool(tmp_path, "store")
    spool.close()
    Spool(tmp_path, "store").close()


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="file/spool"):
        Spool(tmp_path / "file" / "spool", "store")


class Receiver:
    """Takes chunks, after failing a number of times."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.seen: list[int] = []
        self.doubts: list[bool] = []
        self.tried = threading.Event()

    def __call__(self, chunk: Chunk) -> bool:
        self.tried.set()
        self.doubts.append(chunk.uncertain)
        if self.failures:
            self.failures -= 1
            raise OSError("away")
        self.seen += [event.seq for event in chunk.events]
        return True


def test_delivery_hands_everything_on_once_and_in_order(tmp_path: Path) -> None:
    spool, receiver = Spool(tmp_path, "store"), Receiver()
    delivery = Delivery(spool, receiver, str)
    delivery.start()
    for number in range(600):
        spool.append("epoch", float(number), {})
    assert delivery.flush(DEADLINE_S)
    assert receiver.seen == list(range(1, 601))
    assert delivery.stop(DEADLINE_S)
    spool.close()


def test_an_outage_is_told_once_and_makes_the_chunk_uncertain(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool, receiver = filled(tmp_path, 2), Receiver(failures=2)
    delivery = Delivery(spool, receiver, str)
    delivery.start()
    assert delivery.flush(DEADLINE_S)
    assert receiver.seen == [1, 2]
    assert receiver.doubts == [False, True, True]
    assert caplog.text.count("does not take events (away)") == 1
    delivery.stop(DEADLINE_S)
    spool.close()


def test_what_would_take_far_too_long_is_not_waited_for_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, now, goes_on = filled(tmp_path, 6000), [0.0], threading.Event()
    monkeypatch.setattr("search.delivery.time.monotonic", lambda: now[0])
    sent: list[int] = []

    def slowly(chunk: Chunk) -> bool:
        assert not sent or goes_on.wait(DEADLINE_S)
        now[0] += 2 * DEADLINE_S  # for one of 24 chunks
        sent.append(len(chunk.events))
        return True

    delivery = Delivery(spool, slowly, str)
    delivery.start()
    flushed: list[bool] = []
    waiting = threading.Thread(
        target=lambda: flushed.append(delivery.flush(10 * DEADLINE_S, patient=False)), daemon=True
    )
    waiting.start()
    waiting.join(DEADLINE_S)
    assert flushed == [False]
    goes_on.set()
    assert delivery.flush(DEADLINE_S)
    assert sum(sent) == 6000
    assert delivery.stop(DEADLINE_S)
    spool.close()


def test_stop_interrupts_the_pause_of_an_outage(tmp_path: Path) -> None:
    spool, receiver = filled(tmp_path, 1), Receiver(failures=10**6)
    delivery = Delivery(spool, receiver, str)
    delivery.start()
    assert receiver.tried.wait(DEADLINE_S)
    assert not delivery.flush(0.05)
    assert delivery.stop(DEADLINE_S)
    assert spool.pending == 1
    spool.close()
