"""Searches submitted to a Ray cluster of their own that asks for a token, from other processes."""

import json
import os
import secrets
import shutil
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import pytest
from click.testing import CliRunner
from mlflow_server import free_port
from processes import ray_node, wait_for
from tiny_search import running, spiketune, write_space

from search.cli import main
from search.folder import SearchFolder
from search.recorded import open_ledger

ROOT = Path(__file__).parents[2]
SMALL = ("--set", "budget.trials=2", "--set", "trial.train.epochs=2", "--set", "stopping.name=none")
CANARY = "canary-" + secrets.token_hex(8)


@dataclass(frozen=True)
class Head:
    address: str
    runs: Path
    process: Popen[str]


def status_of(address: str) -> int:
    """What the job interface answers to someone without a token; 0 for nothing yet."""
    try:
        with urllib.request.urlopen(f"{address}/api/jobs/", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


@contextmanager
def head_node(folder: Path, variables: Mapping[str, str]) -> Iterator[Head]:
    """A head with its dashboard on loopback; its secrets come from a file in its home."""
    port, home = free_port(), folder / "home"
    (home / ".spiketune").mkdir(parents=True)
    secret = home / ".spiketune" / "env"
    secret.write_text(f"SPIKETUNE_RUNS={folder / 'runs'}\nMY_PASSWORD={CANARY}\n")
    secret.chmod(0o600)
    ports = ("--port", "--ray-client-server-port", "--dashboard-agent-listen-port")
    arguments = [
        "--head", "--num-cpus=2", "--disable-usage-stats", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={port}", *(f"{name}={free_port()}" for name in ports),
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT), **variables}
    with ray_node(folder, arguments, own) as process:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: status_of(address) in (200, 401), process)
        yield Head(address, folder / "runs", process)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The token's file, as whoever submits has it."""
    path = tmp_path_factory.mktemp("token") / "auth_token"
    path.write_text(secrets.token_hex(32))
    path.chmod(0o644)  # as Ray leaves it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
        # Neither may lead elsewhere than --address.
        patch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
        patch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
        yield path


@pytest.fixture(scope="module")
def head(
    tmp_path_factory: pytest.TempPathFactory, token: Path, empty_store: Path
) -> Iterator[Head]:
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS")
        patch.delenv("RAY_API_SERVER_ADDRESS")
        with head_node(tmp_path_factory.mktemp("head"), variables) as head:
            patch.undo()
            head.runs.mkdir()
            shutil.copy(empty_store, head.runs / "mlflow.db")
            yield head


def asked(*arguments: str, code: int = 0) -> str:
    """What a command in this process says."""
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == code, done.output
    return done.output


def attempts(head: Head, name: str) -> list[tuple[str, int]]:
    """State and number of attempts of every trial in the ledger."""
    _, ledger = open_ledger(SearchFolder(head.runs, name))
    records = ledger.records
    ledger.close()
    return [(r.state, r.attempt) for r in records]


def test_a_search_runs_as_a_job_and_again_changes_nothing(tmp_path: Path, head: Head) -> None:
    assert status_of(head.address) == 401
    assert Path(os.environ["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o777 == 0o644
    arguments = ("submit", str(write_space(tmp_path)), *SMALL, "--address", head.address)
    done = spiketune(tmp_path, *arguments)
    assert "Submitted: spiketune-tiny-" in done.stdout
    assert "Leaderboard" in done.stdout
    assert "SUCCEEDED" in done.stderr
    assert done.stdout.count("Leaderboard") == 1
    assert Path(os.environ["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o777 == 0o600
    before = attempts(head, "tiny")
    assert [state for state, _ in before] == ["finished"] * 2

    again = spiketune(tmp_path, *arguments)
    assert "-2\n" in again.stdout.partition("Running entrypoint")[0]
    assert attempts(head, "tiny") == before

    jobs = json.loads(asked("jobs", "list", "--address", head.address, "--format", "json"))
    assert [(job["search"], job["state"]) for job in jobs] == [("tiny", "SUCCEEDED")] * 2
    assert jobs[0]["id"] == jobs[1]["id"] + "-2"
    logs = asked("jobs", "logs", "tiny", "--address", head.address)
    assert "Leaderboard" in logs
    assert CANARY not in logs + done.stdout + json.dumps(jobs)


@pytest.mark.slow
def test_who_submits_may_leave_come_back_and_stop(tmp_path: Path, head: Head) -> None:
    long = ("--name", "long", "--set", "budget.trials=200", "--set", "resources.concurrent=1")
    arguments = ("submit", str(write_space(tmp_path)), *long, "--address", head.address)
    with running(tmp_path, *arguments) as process:
        wait_for(lambda: any((head.runs / "long").glob("trials/00000/*")), process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"spiketune jobs stop long --address {head.address}" in output
    assert "Traceback" not in output

    other = asked(*arguments, "--set", "sampler.seed=5", code=2)
    assert "another one runs" in other
    with running(tmp_path, *arguments) as process:
        assert process.stdout is not None
        assert "Runs already: spiketune-long-" in process.stdout.readline()
        assert "STOPPED" in asked("jobs", "stop", "long", "--address", head.address)
        process.communicate(timeout=60)
    assert process.returncode == 143
    listed = asked("jobs", "list", "--address", head.address)
    assert listed.count("long ") == 1
    assert "STOPPED" in listed
    assert "has ended already" in asked("jobs", "stop", "long", "--address", head.address)


@pytest.mark.slow
def test_a_folder_of_development_runs_instead_of_the_installed_packages(
    tmp_path: Path, head: Head
) -> None:
    tree = tmp_path / "tree"
    for name in ("trainables", "spaces", "cluster", "search"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    told = "sys.stdout.write(f'{__name__} of {pathlib.Path(__file__).parents[1].name}\\n')\n"
    for name in ("search", "trainables"):
        with (tree / name / "__init__.py").open("a") as source:
            source.write(f"import pathlib, sys\n{told}")
    words = ("submit", str(write_space(tmp_path)), "--name", "tree", *SMALL)
    done = spiketune(tmp_path, *words, "--working-dir", str(tree), "--address", head.address)
    assert "SUCCEEDED" in done.stderr
    # The driver's packages and, as Ray prefixes what workers print, those of the trials.
    driver = [line for line in done.stdout.splitlines() if line.startswith("search of ")]
    assert driver
    assert all("_ray_pkg_" in line for line in driver)
    sent = done.stdout.split("trainables of ")[1].split()[0]
    assert sent.startswith("_ray_pkg_")
    assert [state for state, _ in attempts(head, "tree")] == ["finished"] * 2


def test_a_wrong_token_and_a_job_that_is_not_there(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = asked("jobs", "logs", "none", "--address", head.address, code=2)
    assert "no job or search named 'none'" in nothing
    monkeypatch.setenv("RAY_AUTH_TOKEN", CANARY)
    refused = asked("jobs", "list", "--address", head.address, code=1)
    assert "refuses it" in refused
    assert len(refused.splitlines()) == 1
    assert CANARY not in refused


def test_a_cluster_without_token_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with head_node(tmp_path, {}) as open_head:
        assert status_of(open_head.address) == 200
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        space = str(write_space(tmp_path))
        refused = asked("submit", space, "--address", open_head.address, code=2)
        assert "must ask for a token" in refused
        assert len(refused.splitlines()) == 1
        # Not in this process, whose Ray knows a token: this one must not be told.
        done = spiketune(tmp_path, "jobs", "list", "--address", open_head.address, "--insecure")
        assert "No searches were submitted" in done.stdout
        assert "--insecure" in done.stderr
