"""Fake trials that share cards: some wait for each other, one needs more than was predicted.

python packed_trial.py RUNS SPACE ADDRESS
"""

import sys
import threading
import time
from pathlib import Path
from typing import Any

from fake_trial import FakeTrial, Silent, side_record

NEEDS = 0.6  # of a card, by a trial of so many timesteps
GREEDY_TIMESTEPS = 4
PAIR = (1, 2)  # timesteps of two trials, each of which waits for the other to run
LOOK_S = 0.05
WAIT_S = 60.0


class PackedTrial(FakeTrial):
    """Notes what it asked for, and runs out of memory where that is too little."""

    def step(self) -> dict[str, Any]:
        timesteps = self._trial["model"]["timesteps"]
        share = self._assignment["resources"]["gpu"]
        self._note("step", share=share, timesteps=timesteps)
        if timesteps == GREEDY_TIMESTEPS and share < NEEDS:
            return {"failure": "out_of_memory", "message": "CUDA out of memory", "done": True}
        if self._assignment["number"] < len(PAIR):
            self._wait_for_the_other()
        result = super().step()
        self._note("stepped")
        return result

    def _wait_for_the_other(self) -> None:
        search = self._folder.parents[1]
        other = side_record(search.parent, search.name) / f"{1 - self._assignment['number']:05d}"
        until = time.monotonic() + WAIT_S
        while not other.with_suffix(".jsonl").exists():
            if time.monotonic() > until:
                raise TimeoutError("the other trial does not run beside this one")
            threading.Event().wait(LOOK_S)


def main(runs: str, space: str, address: str) -> int:
    from cluster.connect import prepare_environment

    prepare_environment()
    from search.folder import SearchFolder
    from search.runner import start_search
    from spaces import load_search_space
    from trainables.errors import SpiketuneError

    folder = SearchFolder(Path(runs).resolve(), "packed")
    spec = load_search_space(Path(space))
    try:
        start_search(spec, folder, Path(space).read_text(), address, Silent(), PackedTrial)
    except SpiketuneError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    # Workers find the class by its module's name, which is not __main__.
    from packed_trial import main as imported

    sys.exit(imported(*sys.argv[1:]))
