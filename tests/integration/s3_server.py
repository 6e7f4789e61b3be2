"""A real S3 server (moto) in a process of its own."""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from mlflow_server import free_port, wait_until

BUCKET = "bucket"


class S3Server:
    """An S3 server with one bucket; what it holds is lost with it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._log = (folder / "s3.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            env=os.environ | self.variables,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        try:
            wait_until(self._answers)
            self._ask("PUT", BUCKET)
        except BaseException:
            self.close()
            raise

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """What clients need in their environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def deny(self, *, deny: bool) -> None:
        """Refuse every client, or none."""
        self._ask("POST", "moto-api/reset-auth", b"0" if deny else b"inf")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        if self._process.poll() is None:
            self.kill()
        self._log.close()

    def _answers(self) -> bool:
        assert self._process.poll() is None, "the server ended"
        try:
            self._ask("GET", "moto-api/data.json")
        except OSError:
            return False
        return True

    def _ask(self, method: str, path: str, data: bytes | None = None) -> None:
        kind = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.endpoint}/{path}", data, kind, method=method)
        urllib.request.urlopen(request, timeout=5).close()
