"""A trial that is a formula and misbehaves when told to; run as a program, a search of such.

    python fake_trial.py search|resume RUNS NAME SPACE [KEY=VALUE ...]

What trial 3's next attempt does is the first line of `RUNS/NAME/misbehave/3`, which it takes away:
`hang`, `raise`, `exit` before its next epoch. `SPIKETUNE_FAKE_EPOCH_S` is an epoch's length.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from ray import tune

from trainables.files import write_atomically


class FakeTrial(tune.Trainable):
    """Reports as `SpikingTrial` does; its checkpoint is the number of the epoch."""

    def setup(self, config: dict[str, Any]) -> None:
        self._assignment = config
        self._folder = Path(config["folder"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def save_checkpoint(self, _checkpoint_dir: str) -> dict[str, Any]:
        return {}

    def load_checkpoint(self, _checkpoint: dict[str, Any] | None) -> None:
        return None

    def step(self) -> dict[str, Any]:
        self._misbehave()
        threading.Event().wait(float(os.environ.get("SPIKETUNE_FAKE_EPOCH_S", "0.05")))
        self._folder.mkdir(parents=True, exist_ok=True)
        saved = self._folder / "epoch-0000.safetensors"
        epoch = 1 + (int(saved.read_text()) if saved.is_file() else 0)
        write_atomically(saved, str(epoch).encode())
        trial = self._assignment["trial"]
        width, timesteps = trial["model"]["width"], trial["model"]["timesteps"]
        return {
            "epoch": epoch,
            "val_top1": 40.0 + width / 2 + epoch,
            "energy_mj": width * timesteps / 100,
            "train_loss": 1.0 / epoch,
            "layer_rates": json.dumps({"head_lif": 0.2}),
            "num_steps": 40 * epoch,
            "done": epoch >= trial["train"]["epochs"],
        }

    def _misbehave(self) -> None:
        told = self._folder.parents[1] / "misbehave" / str(self._assignment["number"])
        if not told.is_file():
            return
        first, *rest = told.read_text().split()
        write_atomically(told, "\n".join(rest).encode()) if rest else told.unlink()
        if first == "hang":
            threading.Event().wait()
        if first == "raise":
            raise OSError(28, "No space left on device")
        os.kill(os.getpid(), signal.SIGKILL)


class Silent:
    def trial_changed(self, record: object) -> None:
        """Nobody looks."""


def main(what: str, runs: str, name: str, space: str, *overrides: str) -> int:
    from cluster.connect import prepare_environment

    prepare_environment()
    from search.folder import SearchFolder
    from search.runner import resume_search, start_search
    from spaces import load_search_space
    from trainables.errors import SpiketuneError

    folder = SearchFolder(Path(runs), name)
    try:
        if what == "resume":
            outcome = resume_search(folder, None, Silent(), FakeTrial)
        else:
            spec = load_search_space(space, overrides).model_copy(update={"name": name})
            text = Path(space).read_text()
            outcome = start_search(spec, folder, text, None, Silent(), FakeTrial)
    except SpiketuneError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    return 128 + outcome.signal_number if outcome.signal_number else 0


if __name__ == "__main__":
    # Workers find the class by its module's name, which is not __main__.
    from fake_trial import main as imported

    sys.exit(imported(*sys.argv[1:]))
