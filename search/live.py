"""A running search as a person watches it: lines of text that fit any terminal."""

import math
import time
from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from search.board import Board
from search.records import TrialRecord
from search.wording import (
    STATE_STYLES,
    duration,
    metric_column,
    metric_text,
    printable,
    value_text,
)

_BLOCKS = "▁▂▃▄▅▆▇█"
_MOST_BEST = 5
_LEAST_PARAMETERS = 10  # characters below which parameters say nothing
_USUAL_PARAMETERS = 24  # below which they are told rather than the state
_FEWEST = 3  # columns: trial, epoch and the first objective
_LEAST_BAR = 6
_MOST_BAR = 30
_MOST_SPARKS = 40
_GAP = "  "


class LiveView:
    """Draws a board: how far it is, the best so far, what runs and what was best.

    Args:
        name: of the search.
        trials: its budget.
        board: told of every change by someone else.
        started_s: when the time that is shown began, by `clock`.
        most_s: seconds from then at which the budget of hours is used.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        name: str,
        trials: int,
        board: Board,
        started_s: float,
        most_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._trials = trials
        self._board = board
        self._started_s = started_s
        self._most_s = most_s
        self._clock = clock
        self._first: tuple[float, int] | None = None

    def changed(self) -> None:
        """Note that trials run, from which on their speed is measured."""
        if self._first is None:
            self._first = (self._clock(), self._board.num_epochs)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it as large as the console is."""
        yield from self.lines(options.max_width, console.size.height, plain=options.ascii_only)

    def lines(self, width: int, height: int, *, plain: bool = False) -> list[Text]:
        """The lines, none wider than `width` and one less than `height` at most.

        Args:
            width: columns of the terminal.
            height: its rows.
            plain: whether it shows ASCII only.
        """
        board, most = self._board, max(1, height - 1)
        lines = [self._head(width, plain=plain), self._times()]
        if not board.states:
            lines.append(Text("checking the data, starting Ray and MLflow ...", style="dim"))
        else:
            lines.append(self._best(width, plain=plain))
        if board.last_failed is not None:
            failed = board.last_failed
            text = f"last failed: {failed.name} {printable(failed.reason)}"
            lines.append(Text(text, style=STATE_STYLES["failed"]))
        lines += self._tables(width, most - len(lines))
        for line in lines:
            line.no_wrap = True
            line.truncate(width, overflow="crop" if plain else "ellipsis")
        return lines[:most]

    def line(self) -> str:
        """How far it is and the best so far, as plain text."""
        board = self._board
        parts = [f"{board.num_ended}/{self._trials} trials"]
        parts += [f"{n} {state}" for state in STATE_STYLES if (n := board.states[state])]
        parts.append(f"{board.num_epochs} epochs")
        parts += [f"best {told}" for told in self._best_values()]
        return f"{self._name}: {', '.join(parts)}"

    def _best_values(self) -> list[str]:
        first = self._board.objectives[0].metric
        known = self._board.history[-1:]
        return [metric_text(first, value) for value in known if math.isfinite(value)]

    def _head(self, width: int, *, plain: bool) -> Text:
        states = self._board.states
        done = f"{self._board.num_ended}/{self._trials} trials"
        counts = [
            (f"{states[state]} {state}", STATE_STYLES[state])
            for state in ("paused", "running", "stopped", "failed")
            if states[state]
        ]
        told = Text(", ").join([Text(done), *(Text(*count) for count in counts)])
        room = width - told.cell_len - 1
        name = _cut(self._name, max(0, min(room - 1, width // 3)))
        bar = min(_MOST_BAR, room - len(name) - 1)
        if plain or bar < _LEAST_BAR:
            return Text.assemble((f"{name} ", "bold"), told)
        full = min(bar, bar * (self._board.num_ended + states["paused"]) // self._trials)
        return Text.assemble(
            (f"{name} ", "bold"), ("━" * full, "green"), ("─" * (bar - full), "dim"), " ", told
        )

    def _times(self) -> Text:
        board = self._board
        saved = f", {100 * board.saved_frac:.0f} % saved" if board.saved_epochs else ""
        left = self.left_s()
        parts = [f"{board.num_epochs} epochs{saved}", f"{duration(self._elapsed_s())} elapsed"]
        parts += [] if left is None else [f"~{duration(left)} left"]
        return Text(_GAP.join(parts))

    def _elapsed_s(self) -> float:
        return max(0.0, self._clock() - self._started_s)

    def left_s(self) -> float | None:
        """Seconds to the end by the epochs so far and those to come; None before that is known."""
        epochs = self._board.epochs_left(self._trials)
        if self._first is None or epochs is None:
            return None
        since_s, before = self._first
        done = self._board.num_epochs - before
        if done < 1:
            return None
        left = (self._clock() - since_s) / done * epochs
        return min(left, max(0.0, self._most_s - self._elapsed_s()))

    def _best(self, width: int, *, plain: bool) -> Text:
        board, first = self._board, self._board.objectives[0].metric
        history = [value for value in board.history if math.isfinite(value)]
        if not history:
            return Text("no trial has ended with a result yet", style="dim")
        before = f"best {metric_text(first, history[-1])}"
        front = f"{_GAP}{len(board.front)} on the Pareto front"
        after = front if len(board.objectives) > 1 else ""
        room = width - len(before) - len(_GAP)
        after = after if room - len(after) >= _LEAST_BAR else ""
        sparks = sparkline(history, min(_MOST_SPARKS, room - len(after)))
        if plain or len(history) < 2:
            return Text.assemble((before, "green"), after)
        return Text.assemble((before, "green"), _GAP, (sparks, "cyan"), after)

    def _tables(self, width: int, height: int) -> list[Text]:
        """What runs and what was best, each below a line of names; the best have precedence."""
        top = self._board.top(max(1, min(_MOST_BEST, (height - 2) // 2)))
        running = sorted(self._board.running.values(), key=lambda r: r.number)
        room = max(0, height - bool(top) - len(top) - 1)
        shown = running if len(running) <= room else running[: max(0, room - 1)]
        if not shown and not top:
            return []
        names, rows = self._grid([*shown, *top], width)
        lines = [_titled("running", names), *rows[: len(shown)]] if shown else []
        if shown and len(shown) < len(running):
            lines.append(Text(f"... {len(running) - len(shown)} more are running", style="dim"))
        return lines + ([_titled("best", names), *rows[len(shown) :]] if top else [])

    def _grid(self, records: Sequence[TrialRecord], width: int) -> tuple[Text, list[Text]]:
        """Names of columns and a line a trial, of as many columns as leave room for parameters."""
        board = self._board
        front = board.front if len(board.objectives) > 1 else ()
        columns = [
            _column(" " * len("running"), [r.name + "*" * (r.number in front) for r in records]),
            _column("epoch", [f"{len(r.epochs)}/{board.full_epochs}" for r in records], right=True),
        ]
        for objective in board.objectives:
            values = [record.last.get(objective.metric) for record in records]
            shown = metric_column(objective.metric, values)
            columns.append(_column(objective.metric, shown, right=True))
        state = _column(
            "state", [r.state for r in records], [STATE_STYLES[r.state] for r in records]
        )
        while len(columns) > _FEWEST and _room(columns, width) < 0:
            columns.pop()
        if _room([*columns, state], width) >= _USUAL_PARAMETERS:
            columns.append(state)
        room = _room(columns, width)
        if room >= _LEAST_PARAMETERS:
            columns.append(_column("parameters", _parameters(records, room)))
        names, *lines = (Text(_GAP).join(cells) for cells in zip(*columns, strict=True))
        return names, lines


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as blocks, the least the lowest; the last of each stretch where they are too many."""
    width = min(max(0, width), len(values))
    shown = [values[(i + 1) * len(values) // width - 1] for i in range(width)]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    if low == high:
        return _BLOCKS[0] * width
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((value - low) / (high - low) * top)] for value in shown)


def _parameters(records: Sequence[TrialRecord], room: int) -> list[str]:
    """Each trial's parameters, those first in which the trials shown differ, as many as fit."""
    keys = list(dict.fromkeys(key for record in records for key in record.params))
    seen = {key: {str(record.params.get(key)) for record in records} for key in keys}
    ordered = sorted(keys, key=lambda key: len(seen[key]) == 1)
    return [_fitting(record, ordered, room) for record in records]


def _fitting(record: TrialRecord, keys: Sequence[str], room: int) -> str:
    text = ""
    for key in keys:
        if key not in record.params:
            continue
        word = f"{key.rpartition('.')[2]}={printable(value_text(record.params[key]))}"
        longer = f"{text} {word}".strip()
        if cell_len(longer) > room:
            break
        text = longer
    return text


def _column(
    name: str, cells: Sequence[str], styles: Sequence[str] = (), *, right: bool = False
) -> list[Text]:
    """A name and cells below it, all as wide as the widest."""
    size = max(cell_len(text) for text in (name, *cells))
    column = [Text(name, style="dim"), *(Text(cell) for cell in cells)]
    for text, style in zip(column[1:], styles, strict=bool(styles)):
        text.stylize(style)
    for text in column:
        text.align("right" if right else "left", size)
    return column


def _room(columns: Sequence[Sequence[Text]], width: int) -> int:
    """What is left beside columns."""
    return width - sum(column[0].cell_len + len(_GAP) for column in columns)


def _titled(title: str, names: Text) -> Text:
    """Names of columns with a title over the trials' names."""
    return Text.assemble((title, "bold"), names[len(title) :])


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else text[: max(0, size - 1)] + "~"
