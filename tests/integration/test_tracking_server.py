"""MLflow's server as a head starts it: behind a login, for its own name only."""

import base64
import importlib.util
import os
import secrets
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow_server import free_port, wait_until

from cluster.tracking_server import NEEDED, main, read_environment
from trainables.errors import InputError

PASSWORD = "canary-" + secrets.token_hex(12)


def write_secrets(folder: Path) -> Path:
    values = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_AUTH_DATABASE_URI": f"sqlite:///{folder / 'users.db'}",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }
    path = folder / "env"
    path.write_text("# secrets\n\n" + "".join(f"{k}={v}\n" for k, v in values.items()))
    path.chmod(0o600)
    return path


def status(port: int, password: str = "", host: str = "") -> int:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0"
    )
    if password:
        login = base64.b64encode(f"admin:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {login}")
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


@contextmanager
def tracking_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "cluster.tracking_server", "--env", str(write_secrets(folder))]
    process = subprocess.Popen(
        [*command, "--artifacts", str(folder / "artifacts"), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.skipif(
    importlib.util.find_spec("flask_wtf") is None,
    reason="MLflow's login needs Flask-WTF: pip install --require-hashes -r cluster/head.lock",
)
def test_nobody_gets_in_without_the_password_or_under_another_name(tmp_path: Path) -> None:
    port = free_port()
    with tracking_server(tmp_path, port) as process:

        def answers() -> bool:
            assert process.poll() is None, "the server ended"
            return status(port) > 0

        wait_until(answers)
        assert status(port) == 401
        assert status(port, "wrong-password-1") == 401
        assert status(port, PASSWORD) == 200
        assert status(port, PASSWORD, host="10.evil.example") == 403
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert PASSWORD.encode() not in shown
    settings = tmp_path / "mlflow_auth.ini"
    assert settings.stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in settings.read_text()
    assert "NO_PERMISSIONS" in settings.read_text()


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = write_secrets(tmp_path)
    assert read_environment(path).keys() == set(NEEDED)
    path.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        read_environment(path)


@pytest.mark.parametrize("line", ["A=FILL_IN_URL", "no equals", "=x", "A B=c"])
def test_a_line_that_says_nothing_is_named(
    tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_secrets(tmp_path)
    path.write_text(path.read_text() + line + "\n")
    assert main(["--env", str(path), "--artifacts", str(tmp_path)]) == 2
    assert f"{path}:8:" in capsys.readouterr().err


def test_a_missing_secret_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_secrets(tmp_path)
    path.write_text("MLFLOW_TRACKING_USERNAME=admin\n")
    assert main(["--env", str(path), "--artifacts", str(tmp_path)]) == 2
    assert "MLFLOW_TRACKING_PASSWORD" in capsys.readouterr().err


def test_a_server_that_runs_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = ["--env", str(write_secrets(tmp_path)), "--artifacts", str(tmp_path)]
        assert main([*arguments, "--port", port, "--detach"]) == 0
    assert "already" in capsys.readouterr().err
