"""SIGINT and SIGTERM: the first ends a search in order, a second one at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from trainables.errors import SpiketuneError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedEarlyError(SpiketuneError):
    """A signal came before the first trial or after the last one."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class _Stop(BaseException):
    """Unwinds what runs while no search listens yet."""


class Interruption:
    """What has been received; until `listen`, a signal unwinds the start.

    Attributes:
        number: the first signal; 0 for none.
        resume: the command that continues, once there is something to continue.
    """

    def __init__(self) -> None:
        self.number = 0
        self.resume = ""
        self._listener: Callable[[], None] | None = None

    def listen(self, listener: Callable[[], None]) -> None:
        """Call this at the first signal from now on, instead of unwinding."""
        self._listener = listener
        self.install()
        if self.number:
            listener()

    def install(self) -> None:
        """Handle the signals, which Ray's start has taken over."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
        if self._listener is None:
            raise _Stop
        self._listener()


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Handle signals from here to the end, closing included.

    Raises:
        InterruptedEarlyError: one came while nothing listened.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    received = Interruption()
    received.install()
    try:
        yield received
    except (_Stop, SystemExit) as error:  # Ray's own handler exits while it starts
        if isinstance(error, SystemExit) and not received.number:
            received.number = signal.SIGTERM
        message = "interrupted; nothing was started"
        if received.resume:
            message = f"interrupted; continue with:  {received.resume}"
        raise InterruptedEarlyError(received.number, message) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
