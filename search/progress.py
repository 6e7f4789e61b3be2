"""The live display of a running search: silent where the output is no terminal."""

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live

from search.board import Board
from search.live import LiveView
from search.records import TrialRecord
from spaces.schema import SearchSpec

REFRESHES_PER_S = 2


class Progress:
    """Draws trials, epochs, best so far and time left from what the director reports.

    Args:
        console: where to.
        spec: the search.
        known: the trials the ledger knows already.
        used_s: seconds that earlier drivers have spent.
        elapsed_s: seconds for which this one has run.
    """

    def __init__(
        self,
        console: Console,
        spec: SearchSpec,
        known: Sequence[TrialRecord],
        used_s: float = 0.0,
        elapsed_s: float = 0.0,
    ) -> None:
        self._console = console
        self._board = Board(spec.objectives, spec.base_config.train.total_epochs, known)
        self._view = LiveView(
            spec.name,
            spec.budget.trials,
            self._board,
            time.monotonic() - elapsed_s,
            max(0.0, spec.budget.most_s - used_s),
        )
        self._lock = threading.Lock()  # the display draws in a thread of its own
        self._live = Live(
            console=console,
            get_renderable=self._draw,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),  # else it goes where the user has sent it
        )

    def __enter__(self) -> Self:
        """Begin drawing, on a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Clear the display."""
        if self._console.is_terminal:
            self._live.stop()

    def trial_changed(self, record: TrialRecord) -> None:
        """Take a trial's new state."""
        with self._lock:
            self._view.changed()
            self._board.take(record)

    def take(self, records: Sequence[TrialRecord]) -> None:
        """Take all trials as they were read again."""
        with self._lock:
            for record in records:
                self._board.take(record)
            self._view.changed()  # their speed is measured from the first reading on

    def line(self) -> str:
        """All of it in one line, for where there is no terminal."""
        with self._lock:
            return self._view.line()

    def _draw(self) -> RenderableType:
        return self

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw what is known now."""
        with self._lock:
            lines = list(self._view.__rich_console__(console, options))
        yield from lines
