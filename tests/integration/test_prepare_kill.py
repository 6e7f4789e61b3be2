import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked
import numpy as np
import pytest

TIMEOUT_S = 120


def run_preparation(root: Path, pause_s: float) -> None:
    """Prepare, slowly enough to be killed in the middle."""
    from trainables.data.prepare import Wanted, prepare_data

    # Small data are done at once: the pause makes room for a kill between two recordings.
    wanted = Wanted(4, 34, lambda _done, _total: time.sleep(pause_s))
    found = prepare_data("nmnist", root, wanted)
    assert (found.train_samples, found.test_samples, found.classes) == (48, 8, 4)


def write_recordings(root: Path, each: int = 12) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("Train", each), ("Test", 2)):
        for label in range(4):
            folder = root / "nmnist" / "extract" / part / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                events = rng.integers(0, 34, (600, 5), dtype=np.uint8)
                (folder / f"{number:05d}.bin").write_bytes(events.tobytes())


def prepare(root: Path, pause_s: float) -> BaseProcess:
    process = forked.context().Process(target=run_preparation, args=(root, pause_s))
    process.start()
    return process


def finish(process: BaseProcess) -> None:
    process.join(TIMEOUT_S)
    assert process.exitcode == 0


def caches(root: Path) -> list[Path]:
    return [path for path in (root / "nmnist" / "frames").iterdir() if path.name[0] != "."]


def made_frames(root: Path) -> bytes:
    (cache,) = caches(root)
    assert sorted(path.name for path in cache.iterdir()) == ["frames.json", "frames.npy"]
    return (cache / "frames.npy").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("undisturbed")
    write_recordings(root)
    finish(prepare(root, 0.0))
    return made_frames(root)


@pytest.mark.parametrize(
    "num_kills", [6, pytest.param(24, marks=pytest.mark.slow)], ids=["fast", "many"]
)
def test_killed_preparation_blocks_nothing(
    num_kills: int, tmp_path: Path, undisturbed: bytes
) -> None:
    write_recordings(tmp_path)
    draw = random.Random(num_kills)
    for _ in range(num_kills):
        process = prepare(tmp_path, 0.01)
        time.sleep(draw.uniform(0.0, 1.0))  # the random moment is what is tested
        process.kill()
        process.join(TIMEOUT_S)
        for cache in caches(tmp_path) if (tmp_path / "nmnist" / "frames").exists() else []:
            assert (cache / "frames.npy").read_bytes() == undisturbed
    finish(prepare(tmp_path, 0.0))
    assert made_frames(tmp_path) == undisturbed
    left = [path.name for path in (tmp_path / "nmnist" / "frames").iterdir()]
    assert not [name for name in left if name.endswith(".tmp")]


def test_two_at_once_make_one_cache(tmp_path: Path, undisturbed: bytes) -> None:
    write_recordings(tmp_path)
    both = [prepare(tmp_path, 0.002) for _ in range(2)]
    for process in both:
        finish(process)
    assert made_frames(tmp_path) == undisturbed


def test_damaged_cache_is_made_again(tmp_path: Path, undisturbed: bytes) -> None:
    write_recordings(tmp_path)
    finish(prepare(tmp_path, 0.0))
    (cache,) = caches(tmp_path)
    whole = bytearray((cache / "frames.npy").read_bytes())
    whole[5000] ^= 1
    (cache / "frames.npy").write_bytes(whole)
    finish(prepare(tmp_path, 0.0))
    assert made_frames(tmp_path) == undisturbed
