"""The report's plots of where epochs and time went, for plotly."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from search.records import TrialRecord
from search.report_data import STATES, Span
from search.report_figures import WORDS, Tree, axis, bar, colour, drawn, plain, time_unit
from search.wording import duration

MOST_BARS = 1_200


@dataclass(frozen=True)
class _Bar:
    """What is drawn of a lane: one attempt, or several that have no trial in common."""

    lane: int
    start_s: float
    end_s: float
    fate: str
    trial: int | None
    text: str


def epochs_reached(records: Sequence[TrialRecord], full_epochs: int | None) -> Tree:
    """How many trials trained each epoch, by what became of them, and what stopping left out."""
    longest = max([full_epochs or 0, *(len(r.epochs) for r in records)])
    epochs = list(range(1, longest + 1))
    traces = []
    for state in STATES:
        lengths = sorted(len(r.epochs) for r in records if r.state == state)
        if any(lengths):
            counts = [len(lengths) - bisect_left(lengths, epoch) for epoch in epochs]
            traces.append(_bars(epochs, counts, WORDS[state], colour(state)))
    ended = sorted(len(r.epochs) for r in records if r.state in ("finished", "stopped"))
    left = [bisect_left(ended, epoch) for epoch in epochs]
    if full_epochs and any(left):
        traces.append(_bars(epochs, left, "left out", colour("grid")))
    layout = {"barmode": "stack", "bargap": 0.08}
    return drawn(traces, 340, xaxis=axis("Epoch"), yaxis=axis("Trials"), **layout)


def timeline(bars: Sequence[Span]) -> Tree:
    """Every attempt from its start to its end, in as many lanes as ran at once.

    Of many attempts, those of a lane that are too short to be told apart are one bar.
    """
    unit_s, unit = time_unit(max((span.end_s for span in bars), default=0.0))
    joined = _joined(bars) if are_joined(bars) else [_single(span) for span in bars]
    traces = []
    for state in STATES:
        own = [one for one in joined if one.fate == state]
        if own:
            traces.append(
                bar(
                    orientation="h",
                    base=[one.start_s / unit_s for one in own],
                    x=[(one.end_s - one.start_s) / unit_s for one in own],
                    y=[one.lane + 1 for one in own],
                    customdata=[one.trial for one in own],
                    text=[one.text for one in own],
                    textposition="none",
                    name=WORDS[state],
                    marker={
                        "color": colour(state),
                        "opacity": 0.8,
                        "line": {"width": 1, "color": colour("panel")},
                    },
                    hovertemplate="%{text}<br>%{hovertext}<extra></extra>",
                )
            )
    lanes = max((span.lane + 1 for span in bars), default=1)
    return drawn(
        traces,
        min(640, max(340, 130 + 26 * lanes)),
        barmode="overlay",
        bargap=0.15,
        xaxis=axis(f"Time since the start ({unit})"),
        yaxis=axis("Lane") | {"dtick": max(1, lanes // 8), "autorange": "reversed"},
    )


def are_joined(bars: Sequence[Span]) -> bool:
    """Whether there are too many attempts to draw each."""
    return len(bars) > MOST_BARS


def _single(span: Span) -> _Bar:
    return _Bar(span.lane, span.start_s, span.end_s, span.fate, span.trial, _attempt_words(span))


def _joined(bars: Sequence[Span]) -> list[_Bar]:
    """Bars of each lane in slots of time, so many that there are few enough of them."""
    lanes = max(span.lane for span in bars) + 1
    slot_s = max(span.end_s for span in bars) * lanes / MOST_BARS or 1.0
    slots: dict[tuple[int, int], list[Span]] = {}
    for span in bars:
        slots.setdefault((span.lane, int(span.start_s / slot_s)), []).append(span)
    found = []
    for (lane, _), spans in slots.items():
        if len(spans) == 1:
            found.append(_single(spans[0]))
            continue
        fates = Counter(span.fate for span in spans)
        told = ", ".join(f"{count} {WORDS[fate]}" for fate, count in fates.most_common())
        start_s, end_s = spans[0].start_s, max(span.end_s for span in spans)
        text = f"{len(spans)} attempts in {duration(end_s - start_s)}: {told}"
        found.append(_Bar(lane, start_s, end_s, fates.most_common(1)[0][0], None, text))
    return found


def _bars(xs: Sequence[int], heights: Sequence[int], name: str, fill: str) -> Tree:
    return bar(
        x=list(xs),
        y=list(heights),
        name=name,
        marker={"color": fill, "opacity": 0.8},
        hovertemplate="epoch %{x}: %{y} trials",
    )


def _attempt_words(span: Span) -> str:
    took = duration(span.end_s - span.start_s)
    of = f"attempt {span.attempt} of {span.of}, " if span.of > 1 else ""
    why = f": {plain(span.reason)}" if span.reason and span.of > 1 else ""
    return f"{of}{took}{why}"
