"""Large tensors in a range of addresses of their own: apart, few pages, none kept for nothing."""

import os
import subprocess
import sys

import pytest

from trainables.model import compiled

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux"),
    pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler"),
]
START = """
import os, random, signal, sys, threading
import torch
from trainables.memory import resident_mib
from trainables.model import arena
def resident():
    return resident_mib("VmRSS")
"""


def run(program: str, **environment: str) -> str:
    """What a fresh process prints: the allocator is a process's for its whole life."""
    done = subprocess.run(
        [sys.executable, "-c", START + program],
        capture_output=True, text=True, check=False, env=os.environ | environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_tensors_of_several_threads_lie_apart() -> None:
    program = """
assert arena.use_arena()
def work(seed):
    draw, kept = random.Random(seed), {}
    for number in range(600):
        size = draw.choice([100, 70_000, 300_000, 2_000_000]) + draw.randrange(5_000)
        value = seed * 1_000 + number
        kept[value] = torch.full((size,), value, dtype=torch.int32)
        while len(kept) > 12:
            value = draw.choice(list(kept))
            assert bool((kept.pop(value) == value).all())
    assert all(bool((x == value).all()) for value, x in kept.items())
    done.append(seed)
done = []
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(done))
"""
    assert run(program) == "[1, 2, 3, 4]"


def test_freed_tensors_leave_one_block_and_no_pages_after_a_trim() -> None:
    program = """
assert arena.use_arena()
before = resident()
tensors = [torch.ones(3_000_000 + 70_000 * n) for n in range(20)]
lowest = min(x.data_ptr() for x in tensors)
held = resident() - before
random.Random(0).shuffle(tensors)
while tensors: tensors.pop()
freed = resident() - before
arena.trim_arena()
trimmed = resident() - before
# Blocks have grown together again: one of all their sizes starts where the first did.
print(torch.empty(60_000_000).data_ptr() == lowest, held > 200, freed > 200, trimmed < 20)
"""
    assert run(program) == "True True True True"


def test_a_network_takes_less_than_in_the_heap() -> None:
    program = """
from trainables.config import ModelConfig, TrainConfig
from trainables.memory import peak_memory_mib
from trainables.model import build_model
from trainables.model.selection import use_backend
from trainables.optimization import Optimization
from trainables.parallel import ALONE
model, train, cpu = build_model(ModelConfig(width=128)), TrainConfig(), torch.device("cpu")
assert use_backend(model, train, cpu) == "cpp"
optimization = Optimization(model, train, cpu, ALONE)
x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
before = resident()
for _ in range(3): optimization.step(x, y, 1.0)
print(peak_memory_mib(cpu) - before)
"""
    heap = float(run(program, SPIKETUNE_ARENA="0"))
    assert float(run(program)) < 0.85 * heap


def test_a_child_process_can_allocate_whatever_the_parents_threads_did() -> None:
    program = """
assert arena.use_arena()
torch.ones(200_000).sum()  # a child would wait for ever for what torch sets up at its first use
ended = threading.Event()
def churn():
    while not ended.is_set():
        torch.ones(20_000_000)
        arena.trim_arena()  # holds the lock for long, and Python's not
threads = [threading.Thread(target=churn) for _ in range(2)]
for thread in threads: thread.start()
codes = []
for _ in range(200):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(int(torch.ones(200_000).sum().item() != 200_000))
    codes.append(os.waitpid(child, 0)[1])
ended.set()
for thread in threads: thread.join()
print(set(codes))
"""
    assert run(program, PYTHONWARNINGS="ignore::DeprecationWarning") == "{0}"


@pytest.mark.parametrize("reason", ["no compiler", "switched off", "no addresses"])
def test_tensors_stay_in_the_heap_where_there_is_no_arena(reason: str) -> None:
    environment = {
        "no compiler": {"CXX": "/nowhere/g++", "SPIKETUNE_CACHE": "/nowhere"},
        "switched off": {"SPIKETUNE_ARENA": "0"},
        "no addresses": {},
    }[reason]
    program = f"""
import resource
if {reason == "no addresses"}:
    resource.setrlimit(resource.RLIMIT_AS, (2**36, resource.RLIM_INFINITY))
print(arena.use_arena(), float(torch.ones(1_000_000).sum()))
arena.trim_arena()
"""
    assert run(program, **environment) == "False 1000000.0"


def test_what_does_not_fit_the_range_goes_to_the_heap() -> None:
    program = """
arena._ADDRESSES_PER_MEMORY = 1e-3
arena.os.sysconf = lambda name: 2**16
assert arena.use_arena()
tensors = [torch.full((n,), float(n)) for n in (1_000_000, 1_500_000, 200_000, 9_000_000)]
print(all(bool((x == len(x)).all()) for x in tensors))
"""
    assert run(program) == "True"
