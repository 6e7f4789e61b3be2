"""Secrets of every origin go through a real search and are in nothing that it leaves or shows."""

import base64
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow_server import MlflowServer
from tiny_search import SPACE, command, environment

from cluster.connect import keep_credentials
from search.cli import main

FAKE = Path(__file__).parents[1] / "integration" / "fake_trial.py"
TIMEOUT_S = 300
VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "RAY_AUTH_TOKEN",
    "HF_TOKEN",
    "SERVICE_KEY",
    "DB_PASSWORD",
)
ADDRESSES = ("STORE_ADDRESS", "PROXY_ADDRESS")
COMMENTS = (
    "# uri: postgresql://me:{}@host/db",
    "# http://host/?api_key={}",
    "# password: '{} and more'",
    "# ghp_{}",
    "# Authorization: Basic {}",
    "# STRIPE_KEY={}",
)
VALUES = (
    "tracking.experiment=token={}",
    "trial.data.root=https://me:{}@host/data",
    "tracking.experiment=ghp_{}",
    "tracking.uri=https://host/?access_token={}",
)


def canaries(names: tuple[str, ...]) -> dict[str, str]:
    return {name: secrets.token_hex(16) for name in names}


class Watch:
    """Collects every command line on the machine until the block ends."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(entry.read_bytes())
                except OSError:
                    continue  # it has ended


def found_in(needles: Mapping[str, str], texts: Mapping[str, bytes]) -> list[str]:
    return [
        f"{name} in {where}"
        for where, data in texts.items()
        for name, needle in needles.items()
        if needle.encode() in data
        or base64.b64encode(f"me:{needle}".encode()).rstrip(b"=")[:-1] in data
    ]


def files_below(*folders: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="st", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def searched(
    tmp_path: Path, ray_folder: Path, program: list[str], *arguments: str, store: str
) -> list[str]:
    """Run a search full of canaries; where any of them turned up."""
    hidden = canaries((*VARIABLES, *ADDRESSES, *COMMENTS))
    given, work = tmp_path / "given", tmp_path / "work"
    given.mkdir()
    work.mkdir()
    text = SPACE.replace("experiment: tiny", "experiment: tiny, uri: 'env:STORE_ADDRESS'")
    space = given / "tiny.yaml"
    space.write_text(text + "".join(c.format(hidden[c]) + "\n" for c in COMMENTS))
    variables = {name: hidden[name] for name in VARIABLES}
    variables["STORE_ADDRESS"] = store.format(hidden["STORE_ADDRESS"])
    variables["PROXY_ADDRESS"] = f"http://me:{hidden['PROXY_ADDRESS']}@host:3128"
    with Watch() as watch:
        done = subprocess.run(
            [*program, *(part.format(space=space) for part in arguments)],
            cwd=work,
            env={
                **environment(work),
                "RAY_TMPDIR": str(ray_folder),
                "PYTHONPATH": str(FAKE.parent),
                **variables,
            },
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    assert (work / "runs" / "tiny" / "report.html").is_file()
    assert any(b"ray" in line for line in watch.seen)
    texts = files_below(work, ray_folder) | {"stdout": done.stdout, "stderr": done.stderr}
    assert any("session" in name for name in texts), "Ray's logs are among them"
    return found_in(hidden, texts | {"process list": b"\n".join(watch.seen)})


@pytest.mark.slow
def test_a_search_shows_no_secret(tmp_path: Path, ray_folder: Path) -> None:
    program = [sys.executable, str(FAKE)]
    arguments = ("search", "runs", "tiny", "{space}", "budget.trials=2")
    store = f"sqlite:///{tmp_path / 'work' / 'mlflow.db'}"
    assert searched(tmp_path, ray_folder, program, *arguments, store=store) == []


@pytest.mark.slow
def test_the_command_with_a_server_shows_no_secret(tmp_path: Path, ray_folder: Path) -> None:
    (tmp_path / "server").mkdir()
    server = MlflowServer(tmp_path / "server")
    try:
        arguments = ("-v", "search", "{space}", "--set", "budget.trials=2")
        program = command()
        store = f"http://me:{{}}@127.0.0.1:{server.port}"
        assert searched(tmp_path, ray_folder, program, *arguments, store=store) == []
    finally:
        server.close()
    kept = files_below(tmp_path / "server")
    assert any(name.endswith("report.html") for name in kept)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("way", ["file", "option"])
def test_a_secret_as_value_is_refused_with_its_place(tmp_path: Path, value: str, way: str) -> None:
    canary = secrets.token_hex(16)
    key, _, text = value.format(canary).partition("=")
    space = tmp_path / "tiny.yaml"
    options = ["--set", f"{key}={text!r}"]
    written = SPACE
    if way == "file":
        section, _, name = key.partition(".")
        line = f"  {name}: {text!r}\n"
        written = SPACE.replace("tracking: {experiment: tiny}\n", "")
        written = (
            written.replace("trial:\n", f"trial:\n{line}")
            if section == "trial"
            else f"{written}{section}:\n{line}"
        )
        options = []
    space.write_text(written)
    runs = tmp_path / "runs"
    done = CliRunner().invoke(main, ["search", str(space), "--runs", str(runs), *options])
    assert done.exit_code == 2, done.stderr
    place = "--set:1:" if options else f"{space}:"
    assert done.stderr.startswith(f"Error: {place}")
    assert "must not hold a password or token" in done.stderr
    assert canary not in done.output
    assert not runs.exists()


def test_tune_is_kept_from_handing_credentials_to_command_lines() -> None:
    from ray.tune.execution import class_cache

    keep_credentials()
    assert not [name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")]


@pytest.mark.slow
def test_an_unreachable_ledgers_password_is_not_shown(tmp_path: Path) -> None:
    canary = secrets.token_hex(16)
    space = tmp_path / "tiny.yaml"
    space.write_text(SPACE)
    address = f"postgresql://me:{canary}@127.0.0.1:1/none"
    done = subprocess.run(
        command("-v", "search", str(space)),
        cwd=tmp_path,
        env=environment(tmp_path) | {"SPIKETUNE_LEDGER_URL": address},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert found_in({"ledger": canary}, files_below(tmp_path)) == []
    assert canary not in done.stdout + done.stderr
    assert os.environ.get("SPIKETUNE_LEDGER_URL") != address
