"""A real PostgreSQL server of a test's own."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest


def server_programs() -> Path:
    """The folder of initdb and pg_ctl; the test is skipped where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL below /usr/lib/postgresql: apt-get install postgresql")
    return found[-1].parent


@contextmanager
def postgresql(password: str, port: int, on: Sequence[str] = ()) -> Iterator[str]:
    """A server on 127.0.0.1 that ends with the test; yields its address without a database.

    Args:
        password: of its one user, `tune`.
        port: where it listens.
        on: words before each command, such as those that enter another host.
    """
    programs = server_programs()
    as_user = [*on]
    folder = Path(f"/tmp/stpg{os.getpid()}")
    folder.mkdir()
    if os.geteuid() == 0:  # it refuses to run as root
        as_user += ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    file = folder / "password"
    file.write_text(password)
    file.chmod(0o644)
    initdb = ["--auth=scram-sha-256", "--username=tune", f"--pwfile={file}", "--no-sync"]
    options = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -p {port}"
    control = [*as_user, str(programs / "pg_ctl"), "-D", str(folder / "data"), "-w"]
    try:
        done = subprocess.run(
            [*as_user, str(programs / "initdb"), "-D", str(folder / "data"), *initdb],
            capture_output=True, text=True, cwd="/", check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        log = str(folder / "log")
        subprocess.run(
            [*control, "-l", log, "-o", options, "start"], stdout=subprocess.DEVNULL, cwd="/",
            check=True,
        )  # fmt: skip
        try:
            yield f"postgresql://tune:{password}@127.0.0.1:{port}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], capture_output=True, check=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
