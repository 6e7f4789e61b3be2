"""Which trials' checkpoints may go: those of losers, as soon as they are decided."""

from collections.abc import Sequence
from pathlib import Path

from search.records import TrialRecord
from search.results import ObjectiveLike, beats


class Front:
    """The Pareto set of the trials that have ended so far, kept trial by trial.

    Args:
        objectives: metrics and modes.
    """

    def __init__(self, objectives: Sequence[ObjectiveLike]) -> None:
        self._objectives = objectives
        self._members: list[TrialRecord] = []

    def ended(self, record: TrialRecord) -> list[TrialRecord]:
        """Take a trial that has ended.

        Returns:
            Losers: trials, this or earlier ones, that neither finished nor stand on the front.
        """
        new = beats(record, self._members, self._objectives)
        if new is None:
            return [record] if record.state != "finished" else []
        beaten, self._members = (
            new,
            [
                *(m for m in self._members if m not in new),
                record,
            ],
        )
        return [loser for loser in beaten if loser.state != "finished"]


def remove_checkpoints(folder: Path) -> None:
    """Delete a trial's checkpoints; the folder goes when nothing else is in it."""
    for path in [*folder.glob("*.safetensors"), *folder.glob(".*.tmp")]:
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
