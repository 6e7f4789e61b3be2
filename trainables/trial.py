"""The Tune adapter: four thin hooks over the training loop; the only file here that imports Ray."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from ray import tune

from trainables import checkpoint as checkpoints
from trainables.config import TrialConfig
from trainables.errors import SpiketuneError, TrialFailedError
from trainables.loop import TrialRun


class SpikingTrial(tune.Trainable):
    """One trial as Ray Tune sees it: an epoch a step.

    `config` holds `number`, `attempt`, `trial` (a TrialConfig as plain mapping), `folder` (where
    checkpoints go), `known_epochs` (those the ledger has) and `threads`. Checkpoints are ours,
    written before the epoch is reported, so a lost worker costs at most one epoch and Tune's own
    checkpointing is not used. A failure that no retry can mend is reported as a result (`failure`,
    `message`), not raised.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take the assignment; work starts at the first step, where errors can be told apart."""
        self._assignment = config
        self._run: TrialRun | None = None

    def step(self) -> dict[str, Any]:
        """Train and evaluate one epoch, checkpoint it, report it."""
        try:
            return self._epoch()
        except TrialFailedError as error:
            return _failure(error.reason, str(error))
        except torch.cuda.OutOfMemoryError as error:
            return _failure("out_of_memory", str(error))
        except SpiketuneError as error:
            return _failure("bad_input", str(error))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next assignment in the same process: imports and data stay loaded."""
        self.setup(new_config)
        return True

    def save_checkpoint(self, _checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: our checkpoints lie in the search's folder."""
        return {"number": self._assignment["number"]}

    def load_checkpoint(self, _checkpoint: dict[str, Any] | None) -> None:
        """Nothing: a restarted trial finds its last good checkpoint itself."""

    def cleanup(self) -> None:
        """Let go of the network before the worker is reused or ends."""
        self._run = None

    def _epoch(self) -> dict[str, Any]:
        start = time.perf_counter()
        restored = self._run is None and self._restore()
        run = self._run or self._fresh()
        opened_s = time.perf_counter() - start
        if restored:
            # The worker may have been lost after the checkpoint and before the report, so the
            # epoch is reported again; the ledger ignores it when it knows it.
            return {**run.metrics, **self._position(run), "opened_s": opened_s}
        metrics, rates = run.step()
        run.save(Path(self._assignment["folder"]))
        position = self._position(run)
        return {**metrics, **position, "opened_s": opened_s, "layer_rates": json.dumps(rates)}

    def _position(self, run: TrialRun) -> dict[str, Any]:
        return {"done": run.done, "num_steps": run.num_steps}

    def _fresh(self) -> TrialRun:
        torch.set_num_threads(max(1, int(self._assignment["threads"])))
        self._run = TrialRun(TrialConfig.model_validate(self._assignment["trial"]))
        return self._run

    def _restore(self) -> bool:
        """Continue from the last good checkpoint of the trial's folder, if there is one."""
        folder = Path(self._assignment["folder"])
        # One epoch may be saved and not reported. Files beyond that are of epochs that the ledger
        # has lost: what came between could never be reported.
        discard_after(folder, self._assignment["known_epochs"] + 1)
        found = checkpoints.last_good(folder)
        if found is not None:
            self._fresh().restore(found)
        return found is not None


def discard_after(folder: Path, epoch: int) -> None:
    """Delete a trial's checkpoints of later epochs; earlier ones stay."""
    last = checkpoints.epoch_path(folder, epoch).name
    later = [path for path in folder.glob(f"epoch-*{checkpoints.SUFFIX}") if path.name > last]
    for path in later:
        path.unlink()
    if later:
        (folder / checkpoints.BEST).unlink(missing_ok=True)


def _failure(reason: str, message: str) -> dict[str, Any]:
    return {"failure": reason, "message": message, "done": True}
