"""Connecting to Ray: a private local cluster, or one that runs already."""

import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainables.errors import InputError, SpiketuneError

# Read when ray is imported: no call home, no loggers that we do not use, our own progress display.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # its record at the start and the end, which it insists on
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "30",
}
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
OBJECT_STORE_BYTES = 256 * 2**20
AUTO = "auto"  # the cluster that this machine is part of
ANSWER_S = 10.0


def prepare_environment() -> None:
    """Set what Ray reads at import, unless the user has set it."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def protect_token() -> None:
    """Make Ray's authentication token readable by its owner only; Ray itself lets everyone."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(stream, secrets.token_hex(32).encode())
        finally:
            os.close(stream)
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


def keep_credentials() -> None:
    """Keep Tune from writing cloud credentials into workers' command lines and Ray's logs.

    Workers of a local cluster inherit the environment; elsewhere a machine has its own.
    """
    from ray.tune.execution import class_cache

    named = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in named if not name.startswith("AWS_")}


def check_address(address: str) -> tuple[str, int] | None:
    """Host and port of a cluster's address; None for `auto`.

    Raises:
        InputError: it is neither `auto` nor host:port.
    """
    if address == AUTO:
        return None
    host, _, port = address.rpartition(":")
    names_port = port.isascii() and port.isdecimal() and 0 < int(port) < 2**16
    if not (host and "/" not in host and names_port):
        raise InputError(
            f"--address must be `auto` or host:port of a running Ray cluster, but got {address!r}"
        )
    return host.strip("[]"), int(port)


@contextmanager
def ray_session(
    address: str | None, num_cpus: int | None = None, *, dashboard: bool = False
) -> Iterator[None]:
    """Connect to Ray and leave nothing running behind.

    Args:
        address: `auto` or `host:port` of a running cluster; None starts a local one for this
            process, reachable with its authentication token only.
        num_cpus: CPUs of the local cluster; None for all.
        dashboard: start Ray's dashboard too. Ray Train asks it whether a trial is still alive, to
            free the CPUs and GPUs of one whose process was killed.

    Raises:
        ConnectionError: no cluster answers at the address.
        InputError: it is none.
        SpiketuneError: Ray's own processes do not come up here.
    """
    prepare_environment()
    # Ray asks for its token at every new local cluster, unless the user has said otherwise.
    if address is None and os.environ.get("RAY_AUTH_MODE", "token") == "token":
        protect_token()
    import ray

    keep_credentials()
    try:
        if address is None:
            _start_local(num_cpus, dashboard=dashboard)
        else:
            _must_answer(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        yield
    finally:
        ray.shutdown()


def _must_answer(address: str) -> None:
    """Ray itself waits for minutes where nothing answers, and ends the process after that."""
    place = check_address(address)
    if place is None:
        return
    try:
        socket.create_connection(place, ANSWER_S).close()
    except OSError as error:
        raise ConnectionError(
            f"a Ray cluster must answer at {address}, but: {error}; is it started (`ray status` "
            "on its head), and is this its address, as `ray start --head` printed it?"
        ) from error


def _start_local(num_cpus: int | None, *, dashboard: bool) -> None:
    import ray

    # Processes that share a trial talk over this machine, whatever its name resolves to.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    try:
        ray.init(
            address="local",  # a new one, whatever runs here already
            num_cpus=num_cpus,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
        )
    except Exception as error:  # Ray raises bare ones when its processes do not come up
        reason = str(error).strip().partition("\n")[0]
        raise SpiketuneError(
            f"Ray must start on this machine, but: {reason}; try again when it is less busy, or "
            "set RAY_TMPDIR to a folder with space"
        ) from error
