"""`spiketune status --follow`: it tells each change once and ends with the driver."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ledgers import add_trial, made_search
from test_lease import dead_holder, hand_to

from search import following
from search.cli import main
from search.folder import SearchFolder
from search.lease import Holder
from search.study import Ledger
from spaces import SearchSpec

Made = tuple[SearchSpec, SearchFolder, Ledger]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    made = made_search(tmp_path / "runs")
    yield made
    made[2].close()


def follow(made: Made, *options: str, name: str = "made") -> Result:
    names = [name] if name else []
    runs = ("--runs", str(made[1].runs))
    return CliRunner().invoke(main, ["status", *names, "--follow", *options, *runs])


def meanwhile(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> list[float]:
    """Let something happen at each wait; how long these were to be."""
    left, waits, plain = list(steps), [0.0][:0], following.readings

    def wait(seconds: float) -> None:
        waits.append(seconds)
        left.pop(0)()

    def readings(folder: SearchFolder, every_s: float) -> Iterator[following.Reading]:
        return plain(folder, every_s, wait)

    monkeypatch.setattr("search.cli_status.readings", readings)
    return waits


def test_a_pipe_gets_a_line_a_change_and_no_control_characters(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _, ledger = made
    waits = meanwhile(
        monkeypatch,
        lambda: add_trial(spec, ledger, 16, 4, "finished"),
        lambda: None,
        lambda: add_trial(spec, ledger, 24, 2),
        ledger.close,
    )
    done = follow(made, "--every", "0.5")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "made: 0/12 trials, 0 epochs",
        "made: 1/12 trials, 1 finished, 4 epochs, best val_top1 67.33 %",
        "made: 1/12 trials, 1 running, 1 finished, 6 epochs, best val_top1 67.33 %",
        f"No driver runs made; continue with:  spiketune resume made --runs {made[1].runs}",
    ]
    assert "\x1b" not in done.output
    assert len(waits) == 4
    assert min(waits) >= 0.5


def test_json_is_an_object_a_line_on_each_change(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _, ledger = made
    meanwhile(monkeypatch, lambda: add_trial(spec, ledger, 16, 4, "finished"), ledger.close)
    trees = [json.loads(line) for line in follow(made, "--format", "json").output.splitlines()]
    assert [tree["epochs"] for tree in trees] == [0, 4, 4]
    assert [tree["driver"] is None for tree in trees] == [False, False, True]


def test_an_interruption_ends_it(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    meanwhile(monkeypatch, interrupt)
    assert follow(made).exit_code == 130


def test_without_a_name_it_takes_the_one_that_runs(made: Made) -> None:
    made[2].close()
    done = follow(made, name="")
    assert done.exit_code == 2
    assert "needs one running search" in done.output


def test_a_dead_driver_is_none(made: Made) -> None:
    hand_to(made[2], dead_holder())
    assert "No driver runs made" in follow(made).output


def test_a_driver_elsewhere_has_gone_when_it_stands_still(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    far = replace(Holder.here(), host="far")
    holders = iter([replace(far, beat_s=float(beat)) for beat in (1, 2, 2, 2, 2)])
    plain = following.read
    monkeypatch.setattr(
        following, "read", lambda folder: replace(plain(folder), holder=next(holders), took_s=0.0)
    )

    def wait(seconds: float) -> None:
        now_s[0] += seconds

    found = following.readings(made[1], 4.0, wait, lambda: now_s[0])
    assert len(list(found)) == 4  # the last beat was at 4 s, it is 12 s now


def test_a_ledger_that_takes_long_is_read_less_often(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    plain = following.read
    monkeypatch.setattr(following, "read", lambda folder: replace(plain(folder), took_s=3.0))

    def wait(seconds: float) -> None:
        waits.append(seconds)
        made[2].close()

    assert len(list(following.readings(made[1], 2.0, wait))) == 2
    assert waits == [30.0]


def test_an_interval_without_follow_is_refused(made: Made) -> None:
    runs = ("--runs", str(made[1].runs))
    assert CliRunner().invoke(main, ["status", "--every", "3", *runs]).exit_code == 2
    assert follow(made, "--every", "0").exit_code == 2
