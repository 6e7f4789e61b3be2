"""Searches as jobs on a cluster: submit, list, logs, stop."""

import asyncio
import hashlib
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.dashboard import answered, checked_address, connect
from spaces.redaction import redact
from spaces.schema import SearchSpec
from trainables.errors import InputError, SpiketuneError

SEARCH_FILE = "spiketune-search.yaml"
ENV_FILE = "~/.spiketune/env"
SUCCEEDED, FAILED, STOPPED = "SUCCEEDED", "FAILED", "STOPPED"
ENDED = (SUCCEEDED, FAILED, STOPPED)

_SEARCH_KEY, _SPEC_KEY = "spiketune.search", "spiketune.spec"
_STOP_S = 120.0
_OWN_SERVER = "${MLFLOW_TRACKING_URI:+--set tracking.uri=env:MLFLOW_TRACKING_URI}"
_LEFT_OUT = (".git", ".venv", "__pycache__", ".*_cache", "runs", "dist", "build", "*.egg-info")


@dataclass(frozen=True)
class Job:
    """A search that was submitted.

    Attributes:
        id: what Ray calls it.
        search: the search's name.
        spec: digest of what is searched.
        state: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        started_s: Unix time, or None before it starts.
        ended_s: Unix time, or None before it ends.
        exit_code: the driver's, or None.
        message: what Ray says of the state.
    """

    id: str
    search: str
    spec: str
    state: str
    started_s: float | None
    ended_s: float | None
    exit_code: int | None
    message: str

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.state in ENDED


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, address: str, *, insecure: bool = False) -> None:
        """Connect to a cluster's dashboard.

        Args:
            address: `https://host:port`, or `http://127.0.0.1:port` of a tunnel.
            insecure: also a cluster that asks for no token, and one over a network in plain text.

        Raises:
            InputError: the address is none, the cluster is not protected, or there is no token.
            SpiketuneError: no cluster answers, or it refuses the token.
        """
        self.address = checked_address(address, insecure=insecure)
        self._client = connect(self.address, insecure=insecure)

    def submit(self, spec: SearchSpec, working_dir: Path | None = None) -> tuple[Job, bool]:
        """Start a search as a job, or find the one that runs it already.

        Args:
            spec: the search; one of that name that has ended is continued.
            working_dir: a folder whose packages the job uses instead of the installed ones.

        Returns:
            The job, and whether it is a new one.

        Raises:
            InputError: a search of that name runs with another specification.
            SpiketuneError: the cluster does not take it.
        """
        text = search_text(spec)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        known = [job for job in self.all() if job.search == spec.name]
        running = [job for job in known if not job.ended]
        if any(job.spec != digest for job in running):
            raise InputError(
                f"a search named {spec.name!r} must be the same file while it runs, but another "
                f"one runs as {running[0].id}; choose another --name, or stop that"
            )
        if running:
            return running[0], False
        base = f"spiketune-{spec.name}-{digest}"
        attempts = sum(job.spec == digest for job in known)
        job_id = f"{base}-{attempts + 1}" if attempts else base
        try:
            tracked = spec.tracking.uri is not None
            self._start(job_id, spec.name, digest, text, working_dir, tracked=tracked)
        except SpiketuneError as error:
            if "already exists" not in str(error):  # someone else was a moment faster
                raise
            return self.find(job_id), False
        return self.find(job_id), True

    def _start(
        self,
        job_id: str,
        name: str,
        digest: str,
        text: str,
        working_dir: Path | None,
        *,
        tracked: bool,
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="spiketune-submit-") as scratch:
            folder = Path(scratch) / "job"
            if working_dir is None:
                folder.mkdir()
            else:
                shutil.copytree(working_dir, folder, ignore=shutil.ignore_patterns(*_LEFT_OUT))
            (folder / SEARCH_FILE).write_text(text)
            answered(
                self.address,
                lambda: self._client.submit_job(
                    entrypoint=entrypoint(name, tracked=tracked),
                    submission_id=job_id,
                    runtime_env={"working_dir": str(folder)},
                    metadata={_SEARCH_KEY: name, _SPEC_KEY: digest},
                ),
            )

    def all(self) -> list[Job]:
        """Every submitted search, the newest first.

        Raises:
            SpiketuneError: the cluster does not say.
        """
        details = answered(self.address, self._client.list_jobs)
        found = [_job(d) for d in details if d.submission_id and _SEARCH_KEY in (d.metadata or {})]
        return sorted(found, key=lambda job: job.started_s or 0.0, reverse=True)

    def find(self, name: str) -> Job:
        """A job by its id, or the newest of a search by that one's name.

        Raises:
            InputError: there is none.
            SpiketuneError: the cluster does not say.
        """
        known = self.all()
        for job in known:
            if name in (job.id, job.search):
                return job
        names = ", ".join(dict.fromkeys(job.search for job in known)) or "none"
        raise InputError(f"no job or search named {name!r} on {self.address}; searches: {names}")

    def follow(self, job: Job, write: Callable[[str], None]) -> Job:
        """Hand on what a job prints until it has ended, without secrets, a line at a time.

        Raises:
            SpiketuneError: the cluster does not answer any more.
        """
        lines = Lines(write)
        while True:
            try:
                asyncio.run(self._tail(job.id, lines))
            except (RuntimeError, OSError):
                pass  # the connection was cut: the job says below whether it still runs
            except Exception as error:  # aiohttp's, which is not imported for its name
                if type(error).__module__.partition(".")[0] != "aiohttp":
                    raise
            job = self.find(job.id)
            if job.ended:
                lines.replay(self.logs(job))
                lines.close()
                return job
            time.sleep(1.0)  # before asking a cluster again that has just hung up

    async def _tail(self, job_id: str, lines: "Lines") -> None:
        lines.restart()
        async for text in self._client.tail_job_logs(job_id):
            lines.take(text)

    def logs(self, job: Job) -> str:
        """All that a job has printed.

        Raises:
            SpiketuneError: the cluster does not say.
        """
        return str(answered(self.address, lambda: self._client.get_job_logs(job.id)) or "")

    def stop(self, job: Job) -> Job:
        """End a job in order, and wait until it has.

        Raises:
            SpiketuneError: it does not end, or the cluster does not answer.
        """
        if not job.ended:
            answered(self.address, lambda: self._client.stop_job(job.id))
        deadline = time.monotonic() + _STOP_S
        while not job.ended:
            if time.monotonic() > deadline:
                raise SpiketuneError(f"{job.id} must end within {_STOP_S:g} s, but is {job.state}")
            time.sleep(0.3)  # between two questions to the cluster
            job = self.find(job.id)
        return job


class Lines:
    """Text in pieces, handed on in whole lines, each once however often it is told again."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._seen = 0
        self._skip = 0
        self._rest = ""

    def restart(self) -> None:
        """What comes next is told from the beginning."""
        self._skip = self._seen

    def replay(self, text: str) -> None:
        """Hand on what of all the text has not been told yet."""
        self.restart()
        self.take(text)

    def take(self, text: str) -> None:
        """Hand on the lines that a piece completes."""
        new = text[self._skip :]
        self._skip -= len(text) - len(new)
        self._seen += len(new)
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            self._write(redact(line))

    def close(self) -> None:
        """Hand on a last line that has no end."""
        if self._rest:
            self._write(redact(self._rest))
            self._rest = ""


def search_text(spec: SearchSpec) -> str:
    """The YAML that is sent: everything as it is here, defaults too, overrides applied."""
    tree = spec.resolved()
    del tree["base_config"]  # follows from the rest
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def entrypoint(name: str, *, tracked: bool = True) -> str:
    """What the head runs; secrets come from a file there, so that no job carries them.

    Args:
        name: the search's.
        tracked: whether it says itself where MLflow is; else that is the head's server, if any.
    """
    words = ["python", "-m", "search.cli", "search", SEARCH_FILE, "--resume", "--name", name]
    command = shlex.join([*words, "--address", "auto"])
    if not tracked:
        command = f"{command} {_OWN_SERVER}"
    # `exec`: a stop reaches the search itself, once
    return (
        f"set -a; [ ! -f {ENV_FILE} ] || . {ENV_FILE}; set +a; "
        f'exec {command} --runs "${{SPIKETUNE_RUNS:-$HOME/runs}}"'
    )


def _job(details: Any) -> Job:
    return Job(
        id=str(details.submission_id),
        search=str(details.metadata[_SEARCH_KEY]),
        spec=str(details.metadata.get(_SPEC_KEY, "")),
        state=str(getattr(details.status, "value", details.status)),
        started_s=details.start_time / 1000 if details.start_time else None,
        ended_s=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
        message=redact(str(details.message or "")),
    )
