"""Which networks of a search are worth choosing, and what speaks for each."""

import math
from collections.abc import Sequence
from html import escape

from search.records import TrialRecord
from search.report_plots import label, number, quantity
from search.results import ObjectiveLike

Pick = tuple[str, TrialRecord]
POINT = 1.0  # percentage points of accuracy that may be given up for less of the second objective


def picks_of(front: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]) -> list[Pick]:
    """Trials worth choosing, with what speaks for each; the first one leads.

    Args:
        front: the Pareto set, best first objective first.
        objectives: what was searched for.
    """
    if not front:
        return []
    found = [(_superlative(objectives[0]), front[0])]
    if len(objectives) > 1:
        last = min(front, key=lambda r: _signed(r, objectives[1]))
        found.append(("Best balance", _balanced(front, objectives)))
        near = within_a_point(front, objectives)
        if near is not None:
            found.append((f"{_superlative(objectives[1])} within a point", near))
        found.append((_superlative(objectives[1]), last))
    first_of = {record.number: (why, record) for why, record in reversed(found)}
    return [pick for pick in found if first_of[pick[1].number] == pick]


def chosen_networks(picks: Sequence[Pick], front: Sequence[TrialRecord]) -> list[Pick]:
    """The picks, then the rest of the front."""
    known = {record.number for _, record in picks}
    return [*picks, *(("", record) for record in front if record.number not in known)]


def within_a_point(
    front: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]
) -> TrialRecord | None:
    """The front's best trial by the second objective among those within a point of the best.

    Returns:
        None unless the first objective is in percent and there is such a trial besides the best.
    """
    if not front or len(objectives) < 2 or not _is_percent(objectives[0]):
        return None
    top = _signed(front[0], objectives[0])
    near = [r for r in front if _signed(r, objectives[0]) <= top + POINT]
    cheapest = min(near, key=lambda r: _signed(r, objectives[1]))
    return None if cheapest is front[0] else cheapest


def headline(
    picks: Sequence[Pick], front: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]
) -> str:
    """One sentence as HTML: which network to pick, and what the nearest other choice changes."""
    if not picks:
        return "No trial has ended with values that can be compared yet."
    record = picks[0][1]
    found = " at ".join(quantity(o.metric, record.last[o.metric]) for o in objectives[:2])
    text = f"Pick trial {link(record)}: {escape(found)}"
    other = within_a_point(front, objectives)
    if other is not None:
        return f"{text}; or {link(other)} {escape(_trade(record, other, objectives))}."
    if len(picks) < 2:
        return f"{text}."
    if _is_percent(objectives[0]):
        does = "needs less" if objectives[1].mode == "min" else "has more"
        noun = label(objectives[1].metric).split(" (")[0].lower()
        return f"{text}; no network within a point of it {does} {escape(noun)}."
    return f"{text}; or {link(picks[1][1])} {escape(_trade(record, picks[1][1], objectives))}."


def link(record: TrialRecord) -> str:
    """A trial's name as a link to its row."""
    return f'<a href="#t{record.name}">{record.name}</a>'


def _is_percent(objective: ObjectiveLike) -> bool:
    return quantity(objective.metric, 0.0).endswith("%")


def _superlative(objective: ObjectiveLike) -> str:
    named = {
        ("val_top1", "max"): "Most accurate",
        ("energy_mj", "min"): "Least energy",
        ("params_m", "min"): "Fewest parameters",
    }
    word = "Highest" if objective.mode == "max" else "Lowest"
    return named.get((objective.metric, objective.mode), f"{word} {label(objective.metric)}")


def _signed(record: TrialRecord, objective: ObjectiveLike) -> float:
    value = record.last[objective.metric]
    return -value if objective.mode == "max" else value


def _balanced(front: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]) -> TrialRecord:
    """The front's trial nearest to having the best of every objective, each scaled to 0…1."""
    losses = {r.number: [_signed(r, objective) for objective in objectives] for r in front}
    lows = [min(column) for column in zip(*losses.values(), strict=True)]
    highs = [max(column) for column in zip(*losses.values(), strict=True)]

    def distance(record: TrialRecord) -> float:
        return math.hypot(
            *(
                (loss - low) / (high - low)
                for loss, low, high in zip(losses[record.number], lows, highs, strict=True)
                if high > low
            )
        )

    return min(front, key=lambda r: (distance(r), r.number))


def _trade(record: TrialRecord, other: TrialRecord, objectives: Sequence[ObjectiveLike]) -> str:
    """Say what choosing `other` instead changes in the first two objectives."""
    changes = []
    for objective in objectives[:2]:
        old, new = record.last[objective.metric], other.last[objective.metric]
        noun = label(objective.metric).split(" (")[0].lower()
        more = "more" if new > old else "less"
        if _is_percent(objective):
            changes.append(f"{number(objective.metric, abs(new - old))} points {more} {noun}")
        elif old:
            changes.append(f"{abs(new - old) / abs(old):.0%} {more} {noun}")
    return "with " + " and ".join(reversed(changes)) if changes else ""
