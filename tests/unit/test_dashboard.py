"""Where a token may be sent, and who answers: real servers that are no cluster."""

import http.server
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.dashboard import asks_for_token, checked_address, connect, read_token
from cluster.submit import Lines, entrypoint, search_text
from spaces import load_search_space
from trainables.errors import InputError, SpiketuneError

DIGITS = Path(__file__).parents[2] / "spaces" / "digits.yaml"


@contextmanager
def server(status: int, body: bytes = b"", location: str = "") -> Iterator[tuple[str, list[str]]]:
    """A server that answers the same to everyone, and what it was sent as Authorization."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}", seen
        finally:
            listening.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8265", "http://localhost:8265/", "http://[::1]:8265", "https://ray.example"],
)
def test_a_token_may_go_through_a_tunnel_or_tls(address: str) -> None:
    assert checked_address(address, insecure=False) == address.rstrip("/")


@pytest.mark.parametrize(
    "address",
    ["http://10.0.0.4:8265", "http://127.0.0.1.example:8265", "http://localhost.example", "http://0.0.0.0:1"],
)  # fmt: skip
def test_plain_text_over_a_network_must_be_asked_for(address: str) -> None:
    with pytest.raises(InputError, match="readable on the way"):
        checked_address(address, insecure=False)
    assert checked_address(address, insecure=True) == address


@pytest.mark.parametrize(
    "address",
    ["auto", "127.0.0.1:8265", "ray://h:10001", "ftp://h", "http://", "http://h:99999",
     "http://me:hunter22@127.0.0.1:1", "os://x", "http://127.0.0.1:1/?a=b"],
)  # fmt: skip
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="--address must be like") as refused:
        checked_address(address, insecure=True)
    assert "hunter22" not in str(refused.value)


@pytest.mark.parametrize("status", [401, 403])
def test_who_refuses_strangers_asks_for_a_token(status: int) -> None:
    with server(status) as (address, _):
        assert asks_for_token(address)


def test_who_answers_strangers_does_not_get_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary-token")
    with server(200, b"[]") as (address, seen):
        assert not asks_for_token(address)
        with pytest.raises(InputError, match="must ask for a token"):
            connect(address, insecure=False)
        with pytest.raises(SpiketuneError):  # no version: no cluster after all
            connect(address, insecure=True)
        assert not any("canary" in header for header in seen)


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>"), (200, b"{}"), (404, b""), (500, b"")]
)
def test_something_else_than_a_cluster_is_named(status: int, body: bytes) -> None:
    with server(status, body) as (address, _), pytest.raises(SpiketuneError, match="must answer"):
        asks_for_token(address)


def test_nobody_sends_us_elsewhere() -> None:
    with server(401) as (elsewhere, seen), server(302, location=elsewhere) as (address, _):
        with pytest.raises(SpiketuneError, match="302"):
            asks_for_token(address)
        assert seen == []


def test_the_token_comes_from_where_ray_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with pytest.raises(InputError, match="there is none"):
        read_token()
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("one\n")
    path.chmod(0o644)
    assert read_token() == "one"
    assert path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("RAY_AUTH_TOKEN", "two")
    assert read_token() == "two"


def test_what_is_sent_is_the_same_search(tmp_path: Path) -> None:
    spec = load_search_space(DIGITS, ["budget.trials=3"])
    path = tmp_path / "sent.yaml"
    path.write_text(search_text(spec))
    assert load_search_space(path).resolved() == spec.resolved()
    assert search_text(load_search_space(path)) == search_text(spec)


def test_a_name_is_no_command() -> None:
    assert "--name 'a; rm -rf ~'" in entrypoint("a; rm -rf ~")


@pytest.mark.parametrize("uri", ["", "http://127.0.0.1:5000"])
def test_a_job_logs_to_its_head_s_own_server_unless_it_names_another(
    tmp_path: Path, uri: str
) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    variables["MLFLOW_TRACKING_URI"] = uri
    option = "--set tracking.uri=env:MLFLOW_TRACKING_URI"
    for tracked in (False, True):
        command = ["sh", "-c", entrypoint("mine", tracked=tracked)]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        assert (option in done.stdout) == (bool(uri) and not tracked)
        assert "--runs" in done.stdout


def test_lines_are_whole_without_secrets_and_told_once() -> None:
    written: list[str] = []
    lines = Lines(written.append)
    for part in ("on", "e\npassword=hun", "ter2\nthr"):
        lines.take(part)
    assert written == ["one", "password=***"]
    lines.restart()  # the connection was cut: it is all told again
    lines.take("one\npassw")
    lines.take("ord=hunter2\nthree\nfour")
    lines.close()
    assert written == ["one", "password=***", "three", "four"]
