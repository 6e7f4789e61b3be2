"""Between Ray Tune and the director: what Tune says to users of our command."""

import logging
from types import SimpleNamespace
from typing import Any

from ray.tune.execution.experiment_state import _ExperimentCheckpointManager

import search.adapters  # noqa: F401  # which chooses among Tune's messages


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def test_a_record_that_tune_could_not_copy_is_no_news() -> None:
    def lost() -> None:
        raise FileNotFoundError("a file of the record was renamed while it was copied")

    syncer = SimpleNamespace(wait=lost, sync_up=lambda *_: False)
    storage: Any = SimpleNamespace(
        syncer=syncer, experiment_driver_staging_path="here", experiment_fs_path="there"
    )
    manager = _ExperimentCheckpointManager(storage=storage, checkpoint_period="inf")
    logger, heard = logging.getLogger("ray.tune.execution.experiment_state"), Heard()
    logger.addHandler(heard)
    try:
        manager.sync_up_experiment_state(lambda: None, force=True, wait=True)
        assert heard.messages == []
        logger.error("anything else")
        assert heard.messages == ["anything else"]
    finally:
        logger.removeHandler(heard)
