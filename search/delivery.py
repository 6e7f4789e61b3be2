"""The thread that delivers a spool's events, in order and until the store has taken them."""

import logging
import threading
import time
from collections.abc import Callable

from search.spool import Chunk, Spool

_log = logging.getLogger(__name__)

_LINGER_S = 0.1
_BACKOFF_FIRST_S = 0.5
_BACKOFF_MAX_S = 30.0
# After this it is clear how fast a store takes events; what needs so many times the time that is
# left is not waited for.
_GLANCE_S = 3.0
_FAR_TOO_LONG = 2.0


class Delivery:
    """The thread that hands a spool's events on, with growing pauses while that fails.

    Args:
        spool: read and acknowledged by this thread only, once started.
        deliver: sends a chunk; False when the spool was rewound and has to be read again. An
            exception means try later.
        describe: makes an exception's text fit for a log.
    """

    def __init__(
        self,
        spool: Spool,
        deliver: Callable[[Chunk], bool],
        describe: Callable[[Exception], str],
    ) -> None:
        self._spool = spool
        self._deliver = deliver
        self._describe = describe
        self._stopping = False
        self._hurry = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="spiketune-tracking", daemon=True)

    def start(self) -> None:
        """Start delivering."""
        self._thread.start()

    def flush(self, timeout_s: float, *, patient: bool = True) -> bool:
        """Wait until nothing is pending; False when the time is over first.

        Args:
            timeout_s: how long at most.
            patient: whether to wait though so much is left that the time will not do by far.
        """
        changed, start = self._spool.changed, time.monotonic()
        before = self._spool.pending

        def ended() -> bool:
            left, spent_s = self._spool.pending, time.monotonic() - start
            if patient or spent_s < _GLANCE_S or left >= before:
                return self._is_empty()
            needed_s = left * spent_s / (before - left)
            return self._is_empty() or needed_s > _FAR_TOO_LONG * (timeout_s - spent_s)

        with changed:
            self._hurry = True
            changed.notify_all()
            changed.wait_for(ended, timeout_s)
            self._hurry = False
            return self._is_empty()

    def _is_empty(self) -> bool:
        return self._spool.acked >= self._spool.end

    def stop(self, timeout_s: float) -> bool:
        """End the thread after the delivery it is in; False when that takes longer."""
        with self._spool.changed:
            self._stopping = True
            self._spool.changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while self._wait_for_events():
            chunk = None
            try:
                chunk = self._spool.read()
                if not chunk.events or self._deliver(chunk):
                    self._spool.acknowledge(chunk)
            # Whatever the store's client throws, training goes on and the events stay on disk.
            except Exception as error:  # noqa: BLE001
                if chunk is not None:
                    self._spool.doubt(chunk)
                self._back_off(error)
            else:
                if self._failures:
                    _log.info("tracking: the store answers again")
                self._failures = 0

    def _wait_for_events(self) -> bool:
        changed = self._spool.changed
        with changed:
            changed.wait_for(lambda: self._stopping or self._spool.acked < self._spool.end)
            if not self._hurry:
                # A moment's wait puts reports that come together into one request.
                changed.wait_for(lambda: self._stopping or self._hurry, _LINGER_S)
            return not self._stopping

    def _back_off(self, error: Exception) -> None:
        if not self._failures:
            _log.warning(
                "tracking: the store does not take events (%s); training goes on, events are kept "
                "in %s and sent when it answers",
                self._describe(error),
                self._spool.path,
            )
        pause_s = min(_BACKOFF_FIRST_S * 2.0**self._failures, _BACKOFF_MAX_S)
        self._failures = min(self._failures + 1, 16)
        with self._spool.changed:
            hurried = self._hurry
            if hurried:
                pause_s = min(pause_s, _BACKOFF_FIRST_S)
            self._spool.changed.wait_for(lambda: self._stopping or self._hurry != hurried, pause_s)
