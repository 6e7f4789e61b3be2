"""Which trials a large search's plots show: more than an eye tells apart make a page heavy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.records import TrialRecord
from search.report_data import STATES, Moment, turns

MOST_DRAWN = 1_000


@dataclass(frozen=True)
class Shown:
    """The trials that plots show.

    Attributes:
        records: in the search's order.
        note: a sentence for captions that says what is left out; empty if nothing is.
    """

    records: tuple[TrialRecord, ...]
    note: str

    @property
    def is_whole(self) -> bool:
        """Whether no trial is left out."""
        return not self.note


def shown_trials(
    records: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    moments: Sequence[Moment],
    most: int = MOST_DRAWN,
) -> Shown:
    """All trials, or of many those that matter and a sample of each fate in proportion.

    Args:
        records: every trial.
        front: the Pareto set, drawn whatever its size.
        moments: the search's history; what changed the best or the hypervolume is drawn.
        most: how many are drawn, where those that matter are fewer.
    """
    if len(records) <= most:
        return Shown(tuple(records), "")
    kept = {record.number for record in front} | {moment.trial for moment in turns(moments)}
    rest = {s: [r.number for r in records if r.state == s and r.number not in kept] for s in STATES}
    room = max(0, most - len(kept)) / max(1, sum(map(len, rest.values())))
    rng = np.random.default_rng(0)  # the same trials are drawn each time
    for numbers in rest.values():
        kept |= set(rng.choice(numbers, round(room * len(numbers)), replace=False).tolist())
    drawn = tuple(record for record in records if record.number in kept)
    note = (
        f"Drawn are {len(drawn):,} of {len(records):,} trials: all that no other beats now or beat "
        "when they ended, and of the rest a sample of each fate in proportion."
    )
    return Shown(drawn, note)
