"""Where runs are tracked: the address, whether it answers, how it is shown without secrets."""

import hashlib
import os
import re
import socket
import ssl
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from spaces.redaction import redact as redact
from trainables.errors import InputError, SpiketuneError

_PROBE_S = 3.0
_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433, "http": 80, "https": 443}


class TrackingError(SpiketuneError):
    """The tracking store cannot be used."""


@dataclass(frozen=True)
class TrackerConfig:
    """Where a search is tracked.

    Attributes:
        uri: MLflow address; `sqlite:///…` for the embedded store.
        search: the search's name, also the parent run's.
        search_id: what tells this search from others of the same name.
        spool_dir: folder of the spool, `runs/NAME/spool`.
        required: refuse to start when the store does not answer, instead of sending later.
    """

    uri: str
    experiment: str
    search: str
    search_id: str
    spool_dir: Path
    required: bool = True


def tracking_key(config: TrackerConfig) -> str:
    """Name the destination: events confirmed by another one have to be sent again."""
    where = f"{redact(config.uri)}|{config.experiment}|{config.search_id}"
    return hashlib.sha256(where.encode()).hexdigest()[:16]


def default_uri(runs_dir: Path) -> str:
    """Address of the SQLite store that lies beside the searches."""
    return f"sqlite:///{runs_dir.resolve() / 'mlflow.db'}"


def resolve_uri(uri: str | None, runs_dir: Path) -> str:
    """Turn the YAML's `tracking.uri` into an address.

    Args:
        uri: None for the embedded store, `env:NAME` for a variable's value, else the address.
        runs_dir: folder of all searches.

    Raises:
        InputError: the variable is not set.
    """
    if uri is None:
        return default_uri(runs_dir)
    return environment_value("tracking.uri", uri, "the MLflow address")


def environment_value(key: str, value: str, what: str) -> str:
    """Follow `env:NAME`; any other value is itself.

    Args:
        key: the YAML's key, for the message.
        value: what it holds.
        what: what the variable must hold.

    Raises:
        InputError: the variable is not set.
    """
    scheme, _, name = value.partition(":")
    if scheme != "env":
        return value
    found = os.environ.get(name, "")
    if not found:
        raise InputError(
            f"{key} is `{value}`, but the environment variable {name} is not set; "
            f"set it to {what}, or leave {key} out for the embedded store"
        )
    return found


def artifact_root(uri: str, runs_dir: Path) -> str | None:
    """Where a new experiment keeps its artifacts; None leaves it to the server."""
    if not is_sql(uri):
        return None
    database = uri.removeprefix("sqlite:///")
    home = Path(database).parent if database != uri else runs_dir
    return str(home.resolve() / "mlartifacts")


def is_sql(uri: str) -> bool:
    """Whether the store is a database that this process writes to itself."""
    return urlsplit(uri).scheme.partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql")


def unusable(uri: str, error: Exception) -> TrackingError:
    """The error for a store that answers, but not as it should; without the address's secrets."""
    return TrackingError(
        f"the tracking store {redact(uri)} must be usable, but: {redact(str(error))}"
    )


def check_reachable(uri: str) -> None:
    """Find out within a few seconds whether something answers at an address.

    Raises:
        TrackingError: nothing does; the message names the address without its secrets.
    """
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    try:
        if scheme in ("http", "https"):
            _probe_http(uri)
        elif scheme in _DEFAULT_PORTS and parts.hostname:
            port = parts.port or _DEFAULT_PORTS[scheme]
            socket.create_connection((parts.hostname, port), timeout=_PROBE_S).close()
    except (OSError, ValueError) as error:
        raise TrackingError(
            f"the tracking store must answer, but {redact(uri)} does not: {redact(str(error))}; "
            "start it, correct tracking.uri, or set `tracking.required: false` to send later"
        ) from None


def _probe_http(uri: str) -> None:
    # Only asks whether a server is there, and sends no credentials, so certificates are left to
    # MLflow's own requests (which know the user's settings for them).
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    address = re.sub(r"://[^/?#]*@", "://", uri).rstrip("/") + "/health"
    try:
        urllib.request.urlopen(address, timeout=_PROBE_S, context=context).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            raise OSError(f"HTTP status {error.code}") from None


def ui_command(uri: str, port: int) -> list[str]:
    """Command line of MLflow's own pages on 127.0.0.1; run it with `ui_environment`.

    Args:
        uri: a database address; it travels in the environment, as others may read a command line.
        port: TCP port.

    Raises:
        InputError: the store is a server, which has its pages already.
    """
    if not is_sql(uri):
        raise InputError(f"runs are tracked on a server: open {redact(uri)} in a browser")
    hosts = f"127.0.0.1:{port},localhost:{port}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--allowed-hosts",
        hosts,
        "--cors-allowed-origins",
        f"http://127.0.0.1:{port},http://localhost:{port}",
    ]
    if uri.startswith("sqlite:"):
        root = artifact_root(uri, Path()) or ""
        command += ["--artifacts-destination", root]
    return command


def ui_environment(uri: str) -> dict[str, str]:
    """Environment for `ui_command`: no telemetry, no job execution, no unpickling."""
    return dict(os.environ) | {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
