"""Compiling the kernels: once, safely by several processes, and torch where it cannot be."""

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch

from trainables.cache import CACHE_VARIABLE, cache_folder
from trainables.config import ModelConfig, TrainConfig
from trainables.model import build_model, compiled, launched
from trainables.model.backends import TORCH, Backed
from trainables.model.selection import pick_backend, use_backend

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler")


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and nothing loaded yet."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    compiled._library.cache_clear()
    yield tmp_path / "cache"
    compiled._library.cache_clear()


def fake_compiler(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "fake-g++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKETUNE_CACHE", "/a")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("SPIKETUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/b/spiketune")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert cache_folder() == Path("/c/.cache/spiketune")


def test_an_equal_library_is_compiled_once(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    links = f'echo >> {log}\nwhile [ "$1" != -o ]; do shift; done\necho library > "$2"'
    script = f'case " $* " in *" -c "*) exit 0;; esac\n{links}'
    fake_compiler(tmp_path, script, monkeypatch)
    first = compiled.build(fresh)
    assert compiled.build(fresh) == first
    assert log.read_text() == "\n"
    monkeypatch.setattr(compiled, "FLAGS", (*compiled.FLAGS, "-g"))
    assert compiled.build(fresh) != first
    assert len(list(fresh.iterdir())) == 2  # nothing half-made is left


@needs_compiler
def test_processes_that_compile_at_once_all_get_it(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real one, at its quickest: how fast the library is does not matter here.
    fake_compiler(tmp_path, f'exec {compiled.compiler()} "$@" -O0', monkeypatch)
    program = (
        "from trainables.model import compiled; import torch;"
        "assert compiled.available();"
        "assert compiled.spike_count(torch.ones(300, dtype=torch.uint8)) == 300"
    )
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert [path.suffix for path in fresh.iterdir()] == [".so"]


def waiting(pids: set[int]) -> bool:
    """Whether one of them waits for a lock, as Linux tells."""
    blocked = [
        line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" in line
    ]
    return any(int(words[5]) in pids for words in blocked)


def two_began(log: Path) -> bool:
    return log.exists() and log.read_text().count("\n") > 1


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux says who waits")
def test_processes_that_ask_at_once_wait_for_the_one_that_compiles(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    script = (
        f"echo >> {begun}\nuntil [ -e {go} ]; do sleep 0.05; done\n"
        'case " $* " in *" -c "*) exit 0;; esac\nwhile [ "$1" != -o ]; do shift; done\necho > "$2"'
    )
    fake_compiler(tmp_path, script, monkeypatch)
    program = (
        "import sys; from pathlib import Path; from trainables.model import compiled;"
        "compiled.SOURCES = Path(sys.argv[1]); compiled.build(Path(sys.argv[2]))"
    )
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "one.cpp").write_text("")
    command = [sys.executable, "-c", program, str(sources), str(fresh)]
    running = [subprocess.Popen(command) for _ in range(2)]
    deadline = time.monotonic() + 120.0
    while not (waiting({process.pid for process in running}) or two_began(begun)):
        assert time.monotonic() < deadline
        time.sleep(0.02)  # nobody is told who begins to wait for a lock
    go.touch()
    assert [process.wait() for process in running] == [0, 0]
    assert begun.read_text() == "\n\n", "compiled and linked once"


@pytest.mark.parametrize("kind", ["no compiler", "a broken one", "no folder", "no library"])
def test_torch_is_used_where_nothing_can_be_compiled(
    kind: str,
    fresh: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if kind == "no compiler":
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", "/nowhere")
    elif kind == "a broken one":
        fake_compiler(tmp_path, "echo no such flag >&2; exit 1", monkeypatch)
    elif kind == "no folder":
        fresh.write_text("a file")
    else:
        script = 'while [ "$1" != -o ]; do shift; done\necho garbage > "$2"'
        fake_compiler(tmp_path, script, monkeypatch)
    model = build_model(ModelConfig(width=16, heads=2, depth=1, image_size=8, timesteps=2))
    with caplog.at_level(logging.WARNING):
        for name in ("auto", "cpp"):
            train = TrainConfig.model_validate({"neuron_backend": name})
            assert use_backend(model, train, CPU) == "torch"
    assert cast(Backed, model).backend is TORCH
    (line,) = caplog.records
    assert "cpp is not available, torch is used" in line.getMessage()
    assert kind != "a broken one" or "no such flag" in line.getMessage()


def test_the_device_and_compilation_decide(caplog: pytest.LogCaptureFixture) -> None:
    cuda = torch.device("cuda")
    assert pick_backend(TrainConfig(neuron_backend="torch"), CPU) == "torch"
    assert pick_backend(TrainConfig(compile=True), CPU) == "torch"
    assert pick_backend(TrainConfig(neuron_backend="torch"), cuda) == "torch"
    assert pick_backend(TrainConfig(), torch.device("meta")) == "torch"
    assert not caplog.records
    assert pick_backend(TrainConfig(neuron_backend="cpp"), cuda) == "torch"
    assert "cpp does not run on cuda" in caplog.text
    assert pick_backend(TrainConfig(neuron_backend="cuda"), CPU) == "torch"
    assert "cuda does not run on cpu" in caplog.text
    with pytest.raises(ValueError, match="must be auto or torch with compile=true"):
        TrainConfig(neuron_backend="cpp", compile=True)
    unknown = TrainConfig().model_copy(update={"neuron_backend": "abacus"})
    with pytest.raises(ValueError, match=r"cpp.*torch.*'abacus'"):
        pick_backend(unknown, CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_torch_is_used_without_a_gpu_and_one_line_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    launched.available.cache_clear()
    for name in ("auto", "cuda", "auto"):
        train = TrainConfig.model_validate({"neuron_backend": name})
        assert pick_backend(train, torch.device("cuda")) == "torch"
    (line,) = caplog.records
    assert "cuda is not available, torch is used: torch sees no CUDA device" in line.getMessage()
