"""Several hosts that are a cluster as cluster/local.yaml starts it, and one that uses it."""

import importlib.util
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hosts import ROOT, Host, hosts, program
from postgresql import postgresql
from processes import wait_for
from sqlalchemy import create_engine, text

from search.database import driver_url

# Without it MLflow's server does not start; runs then lie in SQLite beside the search.
HAS_LOGIN = importlib.util.find_spec("flask_wtf") is not None
LOCAL = ROOT / "cluster" / "local.yaml"
POSTGRESQL_PORT = 5432
DASHBOARD, MLFLOW = "http://127.0.0.1:8265", "http://127.0.0.1:5000"
TINY = "--num-cpus=1 --object-store-memory=80000000"
# A lost node is found within about 5 s instead of a minute.
LIVELY = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
SSHD = """\
ListenAddress {address}
HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
PidFile none
"""
DATABASES = {
    "ledger": "SPIKETUNE_LEDGER_URL",
    "mlflow": "MLFLOW_BACKEND_STORE_URI",
    "users": "MLFLOW_AUTH_DATABASE_URI",
}
TUNNEL = (
    "-N", "-T", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes",
    "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
    "-L", "8265:127.0.0.1:8265", "-L", "5000:127.0.0.1:5000",
)  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """What runs.

    Attributes:
        head: also takes trials.
        workers: the others, which run nothing before they `join`.
        laptop: whoever submits, through an SSH tunnel to the head.
        shared: the folder that all of the cluster see at /mnt/shared.
        secrets: what the head's file of secrets says.
    """

    head: Host
    workers: Sequence[Host]
    laptop: Host
    shared: Path
    secrets: dict[str, str]


@contextmanager
def shipped_cluster(folder: Path, num_workers: int = 2) -> Iterator[Cluster]:
    """A head, its databases and a tunnel to it, and hosts that are to join; gone at the end."""
    sshd, ssh = program("sshd"), program("ssh")
    shared = folder / "shared"
    shared.mkdir()
    names = ["laptop", "head", *(f"worker{n}" for n in range(1, num_workers + 1))]
    with ExitStack() as stack:
        laptop, head, *workers = stack.enter_context(hosts(folder, names, shared))
        password = "canary-" + secrets.token_hex(12)
        server = stack.enter_context(postgresql(password, POSTGRESQL_PORT, head.entry))
        known = head_secrets(server, password)
        head.call(make_databases, server)
        token = secrets.token_hex(32)
        for host in (laptop, head, *workers):
            write_secret(host.home / ".ray" / "auth_token", token)
        write_secret(
            head.home / ".spiketune" / "env", "".join(f"{k}={v}\n" for k, v in known.items())
        )
        for words in started("head_start_ray_commands"):
            head.run(words, **LIVELY)
        stack.enter_context(tunnel(folder, sshd, ssh, head, laptop))
        yield Cluster(head, workers, laptop, shared, known)


def join(worker: Host, head: Host) -> None:
    """Start Ray on a worker."""
    for words in started("worker_start_ray_commands"):
        worker.run(words, RAY_HEAD_IP=head.address, **LIVELY)


def started(key: str) -> list[str]:
    """The file's own commands, for hosts that are tiny and that nobody is to start again."""
    commands = yaml.safe_load(LOCAL.read_text())[key]
    if not HAS_LOGIN:
        commands = [words for words in commands if "cluster.tracking_server" not in words]
    text = "\n".join(commands).replace("--autoscaling-config=~/ray_bootstrap_config.yaml", "")
    assert text.count("--disable-usage-stats") == 1
    return text.replace("--disable-usage-stats", f"--disable-usage-stats {TINY}").splitlines()


def write_secret(path: Path, value: str) -> None:
    path.touch(mode=0o600)
    path.write_text(value)


def head_secrets(server: str, password: str) -> dict[str, str]:
    """The form cluster/secrets.env, filled in."""
    form = (ROOT / "cluster" / "secrets.env").read_text().splitlines()
    found = dict(line.split("=", 1) for line in form if line and not line.startswith("#"))
    found |= {variable: f"{server}/{name}" for name, variable in DATABASES.items()}
    found |= {
        "MLFLOW_TRACKING_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }
    assert not [value for value in found.values() if "FILL_IN" in value]
    if not HAS_LOGIN:
        del found["MLFLOW_TRACKING_URI"]
    return found


def make_databases(server: str) -> None:
    engine = create_engine(driver_url(f"{server}/postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for name in DATABASES:
            connection.execute(text(f"create database {name}"))
    engine.dispose()


@contextmanager
def tunnel(folder: Path, sshd: str, ssh: str, head: Host, laptop: Host) -> Iterator[None]:
    """The SSH tunnel of the instructions, from the laptop to the head's loopback."""
    for name in ("host", "key"):
        made = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(made, check=True)
    (folder / "sshd_config").write_text(SSHD.format(address=head.address, folder=folder))
    head.run(f"{sshd} -f {folder}/sshd_config")
    words = [ssh, *TUNNEL, "-i", str(folder / "key"), head.address]
    with laptop.start(words) as process:
        try:
            wait_for(lambda: ("127.0.0.1", 8265) in listening(laptop), process)
            yield
        finally:
            process.kill()


def listening(host: Host) -> set[tuple[str, int]]:
    """Address and port of every TCP socket that listens there, and of every UDP socket."""
    lines = host.run("ss -H -lntu").splitlines()
    places: list[Any] = [line.split()[4].rpartition(":") for line in lines]
    return {(address.strip("[]"), int(port)) for address, _, port in places}


def listening_everywhere(host: Host) -> set[tuple[str, int]]:
    """Program and port of every socket that listens on all addresses there."""
    found = set()
    for line in host.run("ss -H -lntup").splitlines():
        address, _, port = line.split()[4].rpartition(":")
        if address in ("*", "0.0.0.0", "[::]"):
            found.add((line.split('(("')[1].partition('"')[0], int(port)))
    return found
