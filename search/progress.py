"""The live display of a running search: silent where the output is no terminal."""

import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.records import TrialRecord
from search.results import best, pareto
from search.wording import STATE_STYLES, describe_params, duration, metric_text
from spaces.schema import SearchSpec

SHOWN_ENDED = 5


class Progress:
    """Draws trials, epochs, best so far and time left from what the director reports."""

    def __init__(self, console: Console, spec: SearchSpec, known: list[TrialRecord]) -> None:
        """Start from the trials the ledger knows already."""
        self._console = console
        self._spec = spec
        self._full_epochs = spec.base_config.train.total_epochs
        self._records = {record.number: record for record in known}
        self._ended: deque[int] = deque(maxlen=SHOWN_ENDED)
        self._started_s = time.monotonic()
        self._done_before = sum(record.has_ended for record in known)
        self._live = Live(
            console=console, get_renderable=self._draw, refresh_per_second=4, transient=True
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
        self._records[record.number] = record
        if record.has_ended:
            self._ended.append(record.number)

    def _draw(self) -> RenderableType:
        records = [self._records[number] for number in sorted(self._records)]
        done = sum(record.has_ended for record in records)
        num_paused = sum(record.state == "paused" for record in records)
        total = self._spec.budget.trials
        head = Table.grid(padding=(0, 1))
        left = self._left_s(done, total)
        head.add_row(
            Text(self._spec.name, style="bold"),
            ProgressBar(total=total, completed=done + num_paused, width=24),
            f"{done}/{total} trials" + (f", {num_paused} paused" if num_paused else ""),
            f"{sum(len(r.epochs) for r in records)} epochs",
            f"{duration(time.monotonic() - self._started_s)} elapsed",
            f"~{duration(left)} left" if left is not None else "",
        )
        if not records:
            waiting = Text("checking the data, starting Ray and MLflow …", style="dim")
            return Group(head, waiting)
        return Group(head, self._best_line(records), self._trials(records))

    def _left_s(self, done: int, total: int) -> float | None:
        finished_here = done - self._done_before
        if finished_here < 1:
            return None
        return (time.monotonic() - self._started_s) / finished_here * (total - done)

    def _best_line(self, records: list[TrialRecord]) -> Text:
        objectives = self._spec.objectives
        top = best(records, objectives)
        if top is None:
            return Text("no trial has ended yet", style="dim")
        shown = "  ".join(metric_text(o.metric, top.last[o.metric]) for o in objectives)
        front = len(pareto(records, objectives))
        return Text(f"best {top.name}  {shown}  ({front} on the Pareto front)", style="green")

    def _trials(self, records: list[TrialRecord]) -> Table:
        table = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
        for column in ("trial", "state", "epoch", self._spec.objectives[0].metric, "parameters"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        running = [record for record in records if record.state == "running"]
        ended = [self._records[number] for number in reversed(self._ended)]
        for record in [*running, *ended]:
            metric = self._spec.objectives[0].metric
            value = record.last.get(metric)
            table.add_row(
                record.name,
                Text(record.state, style=STATE_STYLES[record.state]),
                f"{len(record.epochs)}/{self._full_epochs}",
                "" if value is None else metric_text(metric, value, named=False),
                describe_params(record.params),
            )
        return table
