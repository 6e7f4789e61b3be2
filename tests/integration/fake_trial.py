"""A trial that is a formula and misbehaves when told to; run as a program, a search of such.

    python fake_trial.py search|resume RUNS NAME SPACE [KEY=VALUE ...]

What trial 3's next attempt does is the first line of `RUNS/NAME/misbehave/3`, which it takes away:
`hang`, `raise`, `exit` before its next epoch. `SPIKETUNE_FAKE_EPOCH_S` is an epoch's length,
`SPIKETUNE_FAKE_ADDRESS` that of a running Ray cluster.
"""

import hashlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ray import tune

from trainables.files import write_atomically
from trainables.remote import StoredFolder


class FakeTrial(tune.Trainable):
    """Reports, restores and discards as `SpikingTrial` does, without importing torch.

    Its network is a chain of digests, its checkpoints hold one. Beside the runs' folder it keeps a
    record of its own, a durable line a start and an epoch, written before the checkpoint is.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._assignment = config
        self._folder = Path(config["folder"])
        self._epoch: int | None = None
        self._chain = ""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def save_checkpoint(self, _checkpoint_dir: str) -> dict[str, Any]:
        return {}

    def load_checkpoint(self, _checkpoint: dict[str, Any] | None) -> None:
        return None

    def step(self) -> dict[str, Any]:
        self._misbehave()
        if self._epoch is None:
            self._epoch = self._restore()
            self._note("start")
            if self._epoch:
                return self._report(self._epoch)
        threading.Event().wait(float(os.environ.get("SPIKETUNE_FAKE_EPOCH_S", "0.05")))
        self._epoch += 1
        self._chain = digest(self._chain or json.dumps(self._trial, sort_keys=True))
        self._note("epoch", **metrics_of(self._trial, self._epoch, self._chain))
        self._save(self._epoch)
        return self._report(self._epoch)

    @property
    def _trial(self) -> dict[str, Any]:
        return dict(self._assignment["trial"])

    def _report(self, epoch: int) -> dict[str, Any]:
        return {
            "epoch": epoch,
            **metrics_of(self._trial, epoch, self._chain),
            "layer_rates": json.dumps({"head_lif": 0.2}),
            "num_steps": 40 * epoch,
            "done": epoch >= self._trial["train"]["epochs"],
        }

    def _restore(self) -> int:
        if "store" in self._assignment:
            return self._restore_stored(StoredFolder(**self._assignment["store"]))
        files = sorted(self._folder.glob("epoch-*.safetensors"))
        for path in files:
            if int(path.stem[6:]) > self._assignment["known_epochs"] + 1:
                path.unlink()
        for path in reversed(files):
            if path.is_file():
                epoch, self._chain = json.loads(path.read_text())
                return int(epoch)
        return 0

    def _restore_stored(self, store: StoredFolder) -> int:
        is_new = self._assignment["attempt"] == 1
        newest = 0 if is_new else self._assignment["known_epochs"] + 1
        epochs = {int(name[6:10]): name for name in store.names() if name.startswith("epoch-")}
        for epoch in epochs.keys() - set(range(newest + 1)):
            store.remove(epochs.pop(epoch))
        if not epochs:
            return 0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "newest"
            store.get(epochs[max(epochs)], path)
            epoch, self._chain = json.loads(path.read_text())
        return int(epoch)

    def _save_stored(self, store: StoredFolder, epoch: int, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name in ("best.safetensors", f"epoch-{epoch:04d}.safetensors"):
                path = Path(folder) / name
                path.write_bytes(data)
                store.put(path)
        store.remove(f"epoch-{epoch - 2:04d}.safetensors")

    def _save(self, epoch: int) -> None:
        data = json.dumps([epoch, self._chain]).encode()
        if "store" in self._assignment:
            self._save_stored(StoredFolder(**self._assignment["store"]), epoch, data)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._folder / f"epoch-{epoch:04d}.safetensors", data)
        write_atomically(self._folder / "best.safetensors", data)
        (self._folder / f"epoch-{epoch - 2:04d}.safetensors").unlink(missing_ok=True)

    def _note(self, what: str, **values: Any) -> None:
        search = self._folder.parents[1]
        record = side_record(search.parent, search.name)
        record.mkdir(parents=True, exist_ok=True)
        line = {
            "what": what,
            "attempt": self._assignment["attempt"],
            "epoch": self._epoch,
            "known": self._assignment["known_epochs"],
            "time_s": time.time(),
            "pid": os.getpid(),
            **values,
        }
        with (record / f"{self._folder.name}.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

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


def misbehave(runs: Path, name: str, number: int, *what: str) -> None:
    """Say what a trial's next attempts do: `hang`, `raise` or `exit`, one each, or nothing odd."""
    told = runs / name / "misbehave" / str(number)
    told.parent.mkdir(parents=True, exist_ok=True)
    if what:
        told.write_text("\n".join(what))
    else:
        told.unlink(missing_ok=True)


def side_record(runs: Path, name: str) -> Path:
    """Where the trials of a search keep their own record, one file a trial."""
    return runs.parent / "record" / name


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def metrics_of(trial: dict[str, Any], epoch: int, chain: str) -> dict[str, float]:
    """What an epoch measures: better with width and epochs, with ties between trials."""
    width, timesteps = trial["model"]["width"], trial["model"]["timesteps"]
    return {
        "val_top1": 40.0 + width / 2 + epoch + int(chain[:4], 16) % 8,
        "energy_mj": width * timesteps / 100,
        "train_loss": (1.0 + int(chain[4:8], 16) / 2**16) / epoch,
    }


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

    folder = SearchFolder(Path(runs).resolve(), name)
    address = os.environ.get("SPIKETUNE_FAKE_ADDRESS")
    try:
        if what == "resume":
            outcome = resume_search(folder, address, Silent(), FakeTrial)
        else:
            spec = load_search_space(space, overrides).model_copy(update={"name": name})
            text = Path(space).read_text()
            outcome = start_search(spec, folder, text, address, Silent(), FakeTrial)
    except SpiketuneError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    if outcome.exhausted:
        sys.stdout.write("exhausted\n")
    return 128 + outcome.signal_number if outcome.signal_number else 0


if __name__ == "__main__":
    # Workers find the class by its module's name, which is not __main__.
    from fake_trial import main as imported

    sys.exit(imported(*sys.argv[1:]))
