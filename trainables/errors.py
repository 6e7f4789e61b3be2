"""Errors that users see without a traceback."""

from typing import Self


class SpiketuneError(Exception):
    """A failure whose message says what must hold, what was got and what to do.

    Attributes:
        exit_code: process exit status the command line ends with (1 failed, 2 bad input).
    """

    exit_code = 1


class InputError(SpiketuneError):
    """Something the user gave (a file, a name, an option) is wrong; nothing was written."""

    exit_code = 2


class CheckpointError(SpiketuneError):
    """A checkpoint is missing, truncated, altered or of another network."""


class TrialFailedError(SpiketuneError):
    """A trial cannot go on and must not be retried.

    Attributes:
        reason: one word for the ledger (`nan_loss`, `out_of_memory`, `bad_data`, ...).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """Survive the way from a worker: pickle would pass the message only."""
        return type(self), (self.reason, str(self))


class StoreError(SpiketuneError):
    """The store of the checkpoints does not answer or refuses; worth another attempt later."""
