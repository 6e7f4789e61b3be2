"""MLflow's server on a head node: behind a login, on loopback, on PostgreSQL.

python -m cluster.tracking_server --env ~/.spiketune/env --artifacts /mnt/shared/mlartifacts
"""

import argparse
import configparser
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from spaces.redaction import redact
from trainables.errors import InputError, SpiketuneError

NEEDED = (
    "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_AUTH_DATABASE_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
)
PORT = 5000


def read_environment(path: Path) -> dict[str, str]:
    """Read a file of `NAME=value` lines that is its owner's alone.

    Raises:
        InputError: others may read it, or a line is not filled in.
    """
    if path.stat().st_mode & 0o077:
        raise InputError(f"{path} must be its owner's alone, but others may read it: chmod 600")
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        value = value.strip().strip("'\"")
        if not equals or not name.isidentifier() or "FILL_IN" in value:
            raise InputError(f"{path}:{number}: must be NAME=value, filled in")
        found[name] = value
    return found


def server(
    given: Mapping[str, str], folder: Path, artifacts: Path, port: int
) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of the server; no secret is in the command line.

    Args:
        given: what the file of secrets says.
        folder: where the login's settings go, readable by their owner only.
        artifacts: where runs' files go.
        port: TCP port on loopback.

    Raises:
        InputError: a secret is missing.
    """
    missing = [name for name in NEEDED if not given.get(name)]
    if missing:
        raise InputError(f"MLflow's server needs {', '.join(missing)} in the file of secrets")
    settings = configparser.ConfigParser(interpolation=None)
    settings["mlflow"] = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": given["MLFLOW_AUTH_DATABASE_URI"],
        "admin_username": given["MLFLOW_TRACKING_USERNAME"],
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "mlflow_auth.ini"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        settings.write(stream)
    names = [f"127.0.0.1:{port}", f"localhost:{port}"]
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", ",".join(names)]
    command += ["--cors-allowed-origins", ",".join(f"http://{name}" for name in names)]
    command += ["--artifacts-destination", str(artifacts)]
    environment = dict(os.environ) | {
        "MLFLOW_BACKEND_STORE_URI": given["MLFLOW_BACKEND_STORE_URI"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": given["MLFLOW_FLASK_SERVER_SECRET_KEY"],
        "MLFLOW_AUTH_CONFIG_PATH": str(path),
        "MLFLOW_AUTH_ADMIN_USERNAME": given["MLFLOW_TRACKING_USERNAME"],
        "MLFLOW_AUTH_ADMIN_PASSWORD": given["MLFLOW_TRACKING_PASSWORD"],
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    return command, environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server, or leave one alone that runs already."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--env", type=Path, default=Path("~/.spiketune/env"))
    parser.add_argument("--artifacts", type=Path, required=True)
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--detach", action="store_true", help="go on without this terminal")
    options = parser.parse_args(arguments)
    env = options.env.expanduser()
    try:
        command, environment = server(
            read_environment(env), env.parent, options.artifacts, options.port
        )
        if _taken(options.port):
            sys.stderr.write(f"Something listens on 127.0.0.1:{options.port} already.\n")
            return 0
        if not options.detach:
            os.execve(command[0], command, environment)
        with (env.parent / "mlflow.log").open("ab") as log:
            subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
    except (SpiketuneError, OSError) as error:
        sys.stderr.write(f"Error: {redact(str(error))}\n")
        return error.exit_code if isinstance(error, SpiketuneError) else 1
    return 0


def _taken(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
