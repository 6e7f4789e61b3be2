"""Seeded search-space files, mostly broken, and what must hold for each of them."""

import random
import resource
import signal
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType

import numpy as np
import yaml

from spaces import SearchSpec, SpaceError, load_search_space
from spaces.fields import searchable_keys, trial_keys
from spaces.metrics import METRICS
from spaces.reading import recipe, recipe_names

SHIPPED = Path(__file__).parents[2] / "spaces"
GIVE_UP_S = 60
PROPOSALS = 3
MEBIBYTE_KIB = 1024
TOKENS = (
    "&a ", "*a", "!!python/object:os.system ", "!!set ", "!x ", "<<: ", "{", "}", "[", "]", ": ",
    "- ", "? ", "| ", ">-\n", "\t", "\0", "\x85", "\u2028", "\ufeff", "#", "'", '"', "\\", "0x1F",
    "---\n", "...\n", "%YAML 1.1\n", "1e-4", "1e999", "-1e-999", ".nan", ".inf", "0o17", "010",
    "1:30", "1_0", "no", "~", "null", "9" * 30, "9" * 5000, '"\\ud800"', '"\\U00110000"', "é", "名",
    "𝔘", "x" * 3000, "[" * 40, "{a: " * 40, "[" * 3000, "(" * 500, "- " * 300, "9**9**9**9",
    "params_m <= 1", "energy_mj < 1", "env:", "env:HOME", "sqlite:///x", "https://u:p@h/",
    "../../x", "{int: [1, 99999999]}", "{choice: []}", "{float: [1, 0]}", "<int>", "model.depth",
    "when: {model.depth: 1}", "train.lr",
)  # fmt: skip
NUMBERS = (
    "0", "1", "2", "3", "4", "8", "16", "-1", "0.5", "1e-3", "1.5", "100", "2147483648", "1e18",
)  # fmt: skip
WORDS = (
    "statten", "sdt", "ssa", "lif", "plif", "true", "false", "adamw", "lamb", "none", "bf16", "x",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What became of one input.

    Attributes:
        seed: which.
        accepted: whether it is a search space.
        load_s: processor seconds that loading took.
        propose_s: processor seconds that its proposals took.
        fault: what is wrong with the product; empty if nothing.
    """

    seed: int
    accepted: bool
    load_s: float
    propose_s: float
    fault: str


@lru_cache(maxsize=1)
def shipped() -> list[bytes]:
    return [path.read_bytes() for path in sorted(SHIPPED.glob("*.yaml"))]


def made(seed: int) -> bytes:
    """The input of a seed."""
    rng = random.Random(seed)
    kind = rng.random()
    if kind < 0.4:
        return mutated(rng.choice(shipped()), rng)
    text = written(rng)
    return text.encode(errors="surrogatepass") if kind < 0.8 else mutated(text.encode(), rng)


def mutated(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        data = rng.choice((_flip, _cut, _insert, _repeat, _line, _number, _splice))(data, rng)
    return data


def _flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 2, 5, 40)) :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(TOKENS).encode() + data[at:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    part = data[start : start + rng.choice((1, 4, 30, 200))]
    return data[:start] + part * rng.choice((2, 3, 30)) + data[start:]


def _line(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    what = rng.choice(("swap", "drop", "double", "indent", "comment"))
    if what == "swap":
        lines[at], lines[other] = lines[other], lines[at]
    elif what == "drop":
        del lines[at]
    elif what == "double":
        lines.insert(other, lines[at])
    else:
        lines[at] = (b"  " if what == "indent" else b"# ") + lines[at]
    return b"\n".join(lines)


def _number(data: bytes, rng: random.Random) -> bytes:
    """Put another number or word where one stands."""
    words = data.split(b" ")
    at = rng.randrange(len(words))
    tail = words[at][-1:] if words[at][-1:] in b",]}\n" else b""
    words[at] = rng.choice((*NUMBERS, *WORDS)).encode() + tail
    return b" ".join(words)


def _splice(data: bytes, rng: random.Random) -> bytes:
    other = rng.choice(shipped())
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


def written(rng: random.Random) -> str:
    """A random space by the format's grammar; a few are valid."""
    keys = rng.sample(searchable_keys(), rng.randint(1, 6))
    if rng.random() < 0.6:
        likely = [
            "model.timesteps", "model.depth", "model.width", "model.attention", "model.block_size",
            "train.lr", "train.weight_decay", "train.batch_size", "model.neuron", "model.mlp_ratio",
        ]  # fmt: skip
        keys = rng.sample(likely, rng.randint(1, 6))
    name = rng.choice(recipe_names())
    lines = [f"name: {rng.choice(('a', 'a', 'a', 'a', 'a', 'b-1', 'x.y', '..', 'é'))}"]
    lines += [f"recipe: {name}", "space:"]
    lines += [f"  {key}: {_domain(key, keys, name, rng)}" for key in keys]
    lines.append(f"budget: {{trials: {rng.choice((1, 8, 64))}}}")
    if rng.random() < 0.3:
        key = rng.choice(trial_keys())
        lines.append(f"trial: {{{key}: {_value(key, name, rng)}}}")
    if rng.random() < 0.4:
        texts = [f"  - '{_constraint(keys, rng)}'" for _ in range(rng.randint(1, 3))]
        lines += ["constraints:", *texts]
    if rng.random() < 0.3:
        metric = rng.choice(METRICS)
        lines.append(f"objectives: [{{metric: {metric}, mode: {rng.choice(('max', 'min'))}}}]")
    if rng.random() < 0.2:
        sampler = rng.choice(("tpe", "random", "grid", "cmaes"))
        lines.append(f"sampler: {{name: {sampler}, seed: {rng.choice(NUMBERS)}}}")
    if rng.random() < 0.2:
        lines.append(f"resources: {{cpus: {rng.choice(NUMBERS)}, gpus: {rng.choice(NUMBERS)}}}")
    return "\n".join(lines) + "\n"


def _domain(key: str, keys: list[str], recipe_name: str, rng: random.Random) -> str:
    form = rng.random()
    when = ""
    if rng.random() < 0.25:
        parent = rng.choice(keys)
        when = f", when: {{{parent}: {_value(parent, recipe_name, rng)}}}"
    if form < 0.6:
        values = [_value(key, recipe_name, rng) for _ in range(rng.randint(1, 4))]
        return f"{{choice: [{', '.join(dict.fromkeys(values))}]{when}}}"
    low, high = sorted((rng.choice((1, 2, 4)), rng.choice((3, 4, 8, 10**6))))
    if form < 0.8:
        return f"{{int: [{low}, {high}]{when}{rng.choice(('', ', log: true', ', step: 2'))}}}"
    return f"{{float: [{low / 1000}, {high / 100}]{when}{rng.choice(('', ', log: true'))}}}"


def _value(key: str, recipe_name: str, rng: random.Random) -> str:
    """Mostly something of the kind that the key holds."""
    section, _, name = key.partition(".")
    known = getattr(getattr(recipe(recipe_name), section), name)
    chance = rng.random()
    if chance < 0.08:
        return rng.choice((*NUMBERS, *WORDS, *TOKENS[:30]))
    if isinstance(known, bool):
        return rng.choice(("true", "false"))
    if isinstance(known, int):
        return str(rng.choice((1, 2, 4, 8, 16, 32, known, known * 2)))
    if isinstance(known, float):
        return repr(rng.choice((0.0, 0.1, 0.5, known, known / 2 + 1e-3)))
    if isinstance(known, str):
        return f"'{known}'" if chance < 0.5 else rng.choice(WORDS[:5])
    return "null" if known is None else rng.choice(NUMBERS)


def _constraint(keys: list[str], rng: random.Random, depth: int = 0) -> str:
    names = (*keys, "params_m", "macs_g", "energy_mj", "model.width", "model.timesteps", "nope")
    left = rng.choice(names)
    for _ in range(rng.choice((0, 0, 1, 2, 30 if depth == 0 else 1))):
        other = rng.choice((*names, *NUMBERS))
        left = f"({left} {rng.choice(('+', '-', '*', '/', '//', '%', '**'))} {other})"
    sign = rng.choice(("==", "<=", "<", ">", ">=", "!=", "in", "is", "="))
    text = f"{left} {sign} {rng.choice((*NUMBERS, *names))}"
    if depth < 3 and rng.random() < 0.2:
        return f"{text} {rng.choice(('and', 'or'))} {_constraint(keys, rng, depth + 1)}"
    return text


def judge(seed: int) -> Verdict:
    """Load an input and try its proposals."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "space.yaml"
        path.write_bytes(made(seed))
        signal.signal(signal.SIGALRM, _give_up)
        signal.alarm(GIVE_UP_S)
        started = time.process_time()
        spec, fault = None, ""
        try:
            spec = load_search_space(path)
        except SpaceError as error:
            fault = "" if error.problems else "refused without a reason"
        except BaseException:  # noqa: BLE001  # nothing else may come, whatever it is
            fault = traceback.format_exc(limit=-4)
        loaded = time.process_time()
        if spec is not None:
            try:
                fault = _propose(spec, seed)
            except BaseException:  # noqa: BLE001  # as above
                fault = traceback.format_exc(limit=-4)
        ended = time.process_time()
        signal.alarm(0)
    return Verdict(seed, spec is not None, loaded - started, ended - loaded, fault)


def judge_all(seeds: range) -> tuple[list[Verdict], int]:
    """Verdicts on many inputs, and the most memory this process ever had (MiB)."""
    verdicts = [judge(seed) for seed in seeds]
    return verdicts, _peak_mib()


def _peak_mib() -> int:
    """Most memory this process ever had; getrusage counts that of its parent too."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // MEBIBYTE_KIB
    return int(status.split("VmHWM:")[1].split()[0]) // MEBIBYTE_KIB


def _propose(spec: SearchSpec, seed: int) -> str:
    for index in range(PROPOSALS):
        params = spec.search_space.sample(np.random.default_rng([seed, index]))
        problems = spec.search_space.problems(params)
        if problems:
            return f"proposes {params}: {problems}"
        spec.trial_config(params)  # raises what pydantic has against it
    written_again = yaml.safe_load(yaml.safe_dump(spec.resolved()))
    if SearchSpec.from_resolved(written_again).resolved() != spec.resolved():
        return "is another space once it has been written and read"
    return ""


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"no end after {GIVE_UP_S} s")
