"""The live display: it fits any terminal, says what the ledger says, and costs little."""

import io
import logging
import os
import pty
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ledgers import made_spec
from records import record
from rich.console import Console

from search.board import Board
from search.cli import ErrorHandler
from search.live import LiveView, sparkline
from search.progress import Progress
from search.records import TrialRecord, TrialState
from search.results import pareto, rank, saved_epochs
from spaces.schema import Objective

FULL = 8
OBJECTIVES = (
    Objective(metric="val_top1", mode="max"),
    Objective(metric="energy_mj", mode="min"),
    Objective(metric="images_per_s", mode="max"),
)
STATES: tuple[TrialState, ...] = ("running", "paused", "finished", "stopped", "failed")
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")


def trial(number: int, value: float, epochs: int, state: TrialState) -> TrialRecord:
    params = {
        "model.timesteps": 2 ** (number % 4),
        "model.depth": 1,
        "model.attention": ("statten", "sdt", "ssa")[number % 3],
        "train.lr": 0.003 + number / 7000,
    }
    values = [value - epochs + epoch for epoch in range(1, epochs + 1)]
    more = {"energy_mj": 0.001 * (1 + number % 5), "images_per_s": 1000.0 + number}
    return record(number, values, state=state, params=params, extra_metrics=more)


def some_trials(count: int) -> list[TrialRecord]:
    return [
        trial(number, 20.0 + 7 * number % 70, number % (FULL + 1), STATES[number % 5])
        for number in range(count)
    ]


def view(
    records: list[TrialRecord], objectives: int = 2, name: str = "made", now_s: float = 60.0
) -> LiveView:
    board = Board(OBJECTIVES[:objectives], FULL, records)
    return LiveView(name, max(1, 2 * len(records)), board, 0.0, clock=lambda: now_s)


@pytest.mark.parametrize("width", [60, 61, 80, 100, 140, 300])
@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_no_line_is_wider_and_no_more_lines_than_the_terminal(width: int, objectives: int) -> None:
    for count in (0, 1, 5, 60):
        for name in ("made", "n" * 64):
            shown = view(some_trials(count), objectives, name)
            for height in (2, 5, 8, 24, 70):
                for plain in (False, True):
                    lines = shown.lines(width, height, plain=plain)
                    assert len(lines) < height
                    assert max(line.cell_len for line in lines) <= width
                    assert not any("\n" in line.plain for line in lines)
                    assert not plain or all(
                        line.plain.isascii() or "µ" in line.plain for line in lines
                    )


def test_what_a_narrow_and_a_wide_terminal_show() -> None:
    records = [
        trial(0, 61.0, 8, "finished"),
        trial(1, 70.0, 3, "stopped"),
        trial(2, 55.0, 2, "running"),
    ]
    shown = {
        width: [t.plain.rstrip() for t in view(records).lines(width, 24)] for width in (60, 140)
    }
    assert shown[60][1:] == [
        "13 epochs, 31 % saved  1m00s elapsed",
        "best val_top1 70.00 %  ▁█  2 on the Pareto front",
        "running  epoch  val_top1  energy_mj  parameters",
        "00002      2/8   55.00 %       3 µJ  timesteps=4",
        "best     epoch  val_top1  energy_mj  parameters",
        "00001*     3/8   70.00 %       2 µJ  timesteps=2",
        "00000*     8/8   61.00 %       1 µJ  timesteps=1",
    ]
    assert shown[60][0].endswith(" 2/6 trials, 1 running, 1 stopped")
    assert shown[140][4] == (
        "00002      2/8   55.00 %       3 µJ  running   "
        "timesteps=4 attention=ssa lr=0.00329 depth=1"
    )


def test_rows_that_do_not_fit_are_counted() -> None:
    lines = [t.plain for t in view([trial(n, 50.0, 1, "running") for n in range(40)]).lines(80, 12)]
    assert lines[-1].strip() == "... 34 more are running"


def test_a_sparkline_keeps_the_last_of_each_stretch() -> None:
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 40) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.0] * 999 + [1.0], 4) == "▁▁▁█"
    assert sparkline([5.0, 5.0], 9) == "▁▁"
    assert sparkline([], 9) == sparkline([1.0], 0) == ""


def test_the_board_says_what_a_walk_through_all_trials_says() -> None:
    rng = random.Random(3)
    objectives = OBJECTIVES[:2]
    board, known = Board(objectives, FULL), dict[int, TrialRecord]()
    for _ in range(600):
        number = rng.randrange(len(known) + 1) if len(known) < 60 else rng.randrange(60)
        old = known.get(number)
        if old is not None and old.has_ended:
            continue
        epochs = min(FULL, (len(old.epochs) if old else 0) + rng.randrange(2))
        state: TrialState = rng.choice(STATES[:2] * 6 + STATES[2:])
        known[number] = trial(number, 20.0 + 7 * number % 9, epochs, state)
        board.take(known[number])
        records = list(known.values())
        assert +board.states == Counter(r.state for r in records)
        assert board.num_epochs == sum(len(r.epochs) for r in records)
        assert set(board.running) == {r.number for r in records if r.state == "running"}
        assert board.top(99) == rank(records, objectives)
        assert board.front.keys() == {r.number for r in pareto(records, objectives)}
        spent, whole = saved_epochs(records, FULL)
        assert board.saved_epochs == whole - spent
        assert len(board.history) == board.num_ended


def test_the_best_so_far_never_gets_worse_and_skips_what_does_not_count() -> None:
    records = [trial(0, 5.0, 0, "failed"), *some_trials(30)[1:]]
    history = Board(OBJECTIVES, FULL, records).history
    assert history[0] != history[0]
    assert history[1:] == sorted(history[1:])


def test_an_unchanged_trial_is_told_from_a_changed_one() -> None:
    board = Board(OBJECTIVES, FULL)
    assert board.take(trial(0, 5.0, 1, "running"))
    assert not board.take(trial(0, 5.0, 1, "running"))
    assert board.take(trial(0, 5.0, 2, "running"))


class Unwalked(dict[int, TrialRecord]):
    """Trials by number, which nobody goes through."""

    def __iter__(self) -> Iterator[int]:
        raise AssertionError

    # Its other walks must fail as well, whatever they would return.
    values = items = keys = __iter__  # type: ignore[assignment]


def test_drawing_ten_thousand_trials_walks_through_none() -> None:
    shown = view([trial(n, 20.0 + n / 200, 3, "stopped") for n in range(10_000)])
    board = shown._board
    board._known = Unwalked(board._known)
    assert shown.lines(80, 24)
    board.take(trial(10_000, 95.0, 8, "finished"))
    assert shown.lines(80, 24)[2].plain.startswith("best val_top1 95.00 %")


def test_the_time_left_is_that_of_the_epochs_to_come() -> None:
    now_s = [0.0]
    board = Board(OBJECTIVES, FULL)
    shown = LiveView("made", 4, board, 0.0, most_s=100.0, clock=lambda: now_s[0])
    assert shown.left_s() is None
    shown.changed()
    board.take(trial(0, 9.0, 4, "stopped"))
    board.take(trial(1, 9.0, 2, "running"))
    now_s[0] = 12.0  # six epochs in 12 s; trials took four: 12 - 2 are left
    assert shown.left_s() == pytest.approx(20.0)
    now_s[0] = 90.0
    assert shown.left_s() == pytest.approx(10.0)


@pytest.fixture
def terminal() -> Iterator[tuple[int, Any]]:
    """Both ends of a terminal."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as file:
        yield ours, file
    os.close(ours)


@pytest.mark.parametrize("colours", [True, False])
def test_a_terminal_gets_colours_unless_it_wants_none(
    tmp_path: Path, terminal: tuple[int, Any], monkeypatch: pytest.MonkeyPatch, colours: bool
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "" if colours else "1")
    ours, file = terminal
    console = Console(file=file)
    with Progress(console, made_spec(tmp_path), some_trials(12)) as display:
        display._live.refresh()
    file.flush()
    shown = ""
    while "\x1b[?25h" not in shown:  # the cursor comes back last; a read may give less than all
        shown += os.read(ours, 100_000).decode()
    assert "on the Pareto front" in shown
    assert bool(COLOUR.search(shown)) == colours
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert max(len(line) for line in plain.replace("\r", "\n").split("\n")) <= 60


def test_a_pipe_gets_nothing(tmp_path: Path) -> None:
    file = io.StringIO()
    with Progress(Console(file=file), made_spec(tmp_path), some_trials(12)) as display:
        display.trial_changed(trial(99, 1.0, 1, "running"))
    assert file.getvalue() == ""


def test_what_is_logged_goes_to_the_standard_error_of_the_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler, later = ErrorHandler(), io.StringIO()
    monkeypatch.setattr("sys.stderr", later)
    handler.emit(logging.makeLogRecord({"msg": "above the display"}))
    assert later.getvalue() == "above the display\n"
