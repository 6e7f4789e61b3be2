"""Sends what an earlier driver could not send."""

from collections.abc import Sequence
from dataclasses import replace

from search.records import TrialRecord
from search.tracking import Tracker, TrackerConfig
from search.tracking_events import Files


def sync(
    config: TrackerConfig,
    timeout_s: float,
    records: Sequence[TrialRecord] = (),
    files: Files = lambda _: {},
) -> int:
    """Send what an earlier process left in the spool; returns the number of events still left.

    Args:
        config: where to.
        timeout_s: when to give up.
        records: the ledger's, of which events may be missing.
        files: as for `EventWriter.catch_up`.

    Raises:
        TrackingError: the store does not answer.
    """
    tracker = Tracker(replace(config, required=True))  # someone waits for it
    tracker.start()
    tracker.catch_up(records, files)
    tracker.close(timeout_s)
    return tracker.pending
