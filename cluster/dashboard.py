"""A cluster's dashboard: whether it is protected, whether we may talk to it, what it answers."""

import ipaddress
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from cluster.connect import prepare_environment
from spaces.redaction import redact
from trainables.errors import InputError, SpiketuneError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

T = TypeVar("T")

_PROBE_S = 10.0


def connect(address: str, *, insecure: bool) -> "JobSubmissionClient":
    """Connect to a cluster's dashboard, with the token where it asks for one.

    Args:
        address: as `checked_address` returns it.
        insecure: also a cluster that asks for no token.

    Raises:
        InputError: the cluster is not protected, or there is no token.
        SpiketuneError: no cluster answers, or it refuses the token.
    """
    # An empty header keeps Ray from sending the token to a cluster that does not ask for it.
    headers = {"Authorization": ""}
    if asks_for_token(address):
        headers = {"Authorization": f"Bearer {read_token()}"}
    elif not insecure:
        raise InputError(
            f"the cluster at {address} must ask for a token (RAY_AUTH_MODE=token), but it runs "
            "what anyone sends; start it with a token, or say --insecure"
        )
    prepare_environment()
    from ray.job_submission import JobSubmissionClient

    with _without_ray_addresses():
        return answered(address, lambda: JobSubmissionClient(address, headers=headers))


def asks_for_token(address: str) -> bool:
    """Whether a cluster refuses who sends no token.

    Raises:
        SpiketuneError: nothing answers there, or something that is no Ray cluster.
    """
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(f"{address}/api/jobs/", timeout=_PROBE_S) as answer:
            jobs = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (401, 403):
                return True
        raise SpiketuneError(
            f"Ray's dashboard must answer at {address}, but got HTTP status {error.code}"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise SpiketuneError(
            f"Ray's dashboard must answer at {address}, but: {redact(str(reason))}; is the tunnel "
            "to the head open (ssh -N -L 8265:127.0.0.1:8265 HEAD)?"
        ) from None
    if not isinstance(jobs, list):
        raise SpiketuneError(f"Ray's dashboard must answer at {address}, but something else does")
    return False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Who sends us elsewhere is not the cluster that was named."""

    def redirect_request(self, *_: Any) -> None:
        return None


def read_token() -> str:
    """The token for clusters, from where Ray itself takes it.

    Raises:
        InputError: there is none.
    """
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not token and path.is_file():
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)  # Ray writes it readable by everyone
        token = path.read_text().strip()
    if not token:
        raise InputError(
            f"the cluster asks for a token, but there is none in RAY_AUTH_TOKEN or {path}; copy "
            "the one that the cluster was started with"
        )
    return token


def checked_address(address: str, *, insecure: bool) -> str:
    """An address to which a token may be sent.

    Args:
        address: `https://host:port`, or `http://127.0.0.1:port` of a tunnel.
        insecure: also `http://` over a network.

    Raises:
        InputError: it is none.
    """
    parts = urlsplit(address)
    try:
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or "@" in parts.netloc or parts.query or parts.fragment:
        raise InputError(
            "--address must be like http://127.0.0.1:8265 (a tunnel) or https://host, but got "
            f"{redact(address)[:120]!r}"
        )
    if parts.scheme == "http" and not insecure and not _is_loopback(parts.hostname or ""):
        raise InputError(
            f"--address must be https://, or http:// of a tunnel on 127.0.0.1, but got {address}: "
            "the token would be readable on the way; --insecure sends it all the same"
        )
    return address.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _without_ray_addresses() -> Iterator[None]:
    """Keep Ray from preferring its variables to the address that was given and checked."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    held = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


def answered(address: str, question: Callable[[], T]) -> T:
    """What Ray answers.

    Raises:
        SpiketuneError: it answers with an error, told in one line.
    """
    try:
        return question()
    except Exception as error:
        from ray.exceptions import AuthenticationError

        if isinstance(error, AuthenticationError):
            raise SpiketuneError(
                f"the cluster at {address} must accept the token of RAY_AUTH_TOKEN or "
                "~/.ray/auth_token, but refuses it; copy the one that it was started with"
            ) from None
        if not isinstance(error, RuntimeError | OSError | ValueError | TypeError | KeyError):
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        told = lines[-1].strip() if lines else type(error).__name__
        raise SpiketuneError(f"the cluster at {address} says: {redact(told)[:300]}") from None
