"""Hosts on one machine: namespaces with a network, processes, files and a name of their own.

They hang on a switch that is a namespace too, so that nothing of this machine's own network is
touched, and all of it is gone with the processes that hold it.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import TypeVar

import pytest
from tiny_search import GONE_S, RAY_FOLDER, environment

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
NETWORK = "10.77.0"
ROOT = Path(__file__).parents[2]
# Holds the namespaces until the test lets go of its end of the pipe, also by dying; a shell takes
# in whoever loses its parent, as an init does.
INIT = "echo ready; read -r _"
# Ray asks the routing table which address is its own: a host has a way out, though to nowhere.
# A disk of its own below /tmp for Ray, its own /dev/shm, and the shared folder where all see it.
HOST = """\
set -eu
hostname {name}
ip link set lo up
mount -t tmpfs none {ray}
mount -t tmpfs none /dev/shm
mount -t tmpfs none /run
mkdir /run/sshd
mount -t tmpfs none /mnt
mkdir /mnt/shared
mount --bind {shared} /mnt/shared
mount --bind {passwd} /etc/passwd
"""
CABLE = """\
set -eu
ip link add {name} type veth peer name eth0 netns {pid}
ip link set {name} master switch up
"""
PLUGGED = """\
set -eu
ip address add {address}/24 dev eth0
ip link set eth0 up
ip route add default dev eth0
"""


@dataclass(frozen=True)
class Host:
    """A machine, as far as its processes can tell.

    Attributes:
        name: also its host name.
        address: in the hosts' network.
        home: of its user.
        pid: of its first process, in this process's namespace.
        holder: the process that ends it.
        switch: pid of the switch's first process.
        variables: environment of its processes.
    """

    name: str
    address: str
    home: Path
    pid: int
    holder: Popen[str]
    switch: int
    variables: Mapping[str, str]

    @property
    def entry(self) -> list[str]:
        """Words before a command that is to run there."""
        return ["nsenter", f"--target={self.pid}", *NAMESPACES, "--"]

    def start(self, words: Sequence[str]) -> Popen[str]:
        """Start a process there."""
        return Popen(
            [*self.entry, *words],
            env=dict(self.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, text: str, given: str = "", **more: str) -> str:
        """What a line of shell prints there; `given` is its input."""
        done = subprocess.run(
            [*self.entry, "bash", "-c", f"cd; {text}"],
            env={**self.variables, **more},
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{self.name}: {text}\n{done.stdout}"
        return done.stdout

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function of this process in the host's network."""
        with ThreadPoolExecutor(1, initializer=self._enter) as thread:
            return thread.submit(function, *arguments).result()

    def _enter(self) -> None:
        with Path(f"/proc/{self.pid}/ns/net").open() as network:
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def cut_off(self) -> None:
        """Take its link down: its processes go on and hear from nobody."""
        words = ["nsenter", f"--target={self.switch}", "--net", "--"]
        subprocess.run([*words, "ip", "link", "set", self.name, "down"], check=True)

    def kill(self) -> None:
        """End all that runs there at once."""
        self.holder.send_signal(signal.SIGKILL)
        self.holder.wait(GONE_S)


NAMESPACES = ["--net", "--mount", "--pid", "--uts"]


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"no {name} here: apt-get install openssh-server openssh-client iproute2")
    return found


@contextmanager
def hosts(folder: Path, names: Sequence[str], shared: Path) -> Iterator[list[Host]]:
    """Hosts on one switch, gone at the end.

    Args:
        folder: holds their homes.
        names: one a host.
        shared: what each has at /mnt/shared.
    """
    program("ip")
    with ExitStack() as stack:
        switch = stack.enter_context(_held(["--net"]))
        inside = ["nsenter", f"--target={_first(switch)}", "--net", "--"]
        made = "ip link add switch type bridge && ip link set switch up"
        subprocess.run([*inside, "sh", "-c", made], check=True)
        found = []
        for number, name in enumerate(names, 1):
            holder = stack.enter_context(_held([*NAMESPACES, "--mount-proc"]))
            found.append(_host(folder / name, f"{NETWORK}.{number}", holder, switch, shared))
            text = CABLE.format(name=name, pid=found[-1].pid)
            subprocess.run([*inside, "sh", "-c", text], check=True)
            found[-1].run(PLUGGED.format(address=found[-1].address))
        yield found


@contextmanager
def _held(namespaces: Sequence[str]) -> Iterator[Popen[str]]:
    """A process that holds new namespaces; with it ends all that is in them."""
    holder = Popen(
        ["unshare", *namespaces, "--fork", "--kill-child", "bash", "-c", INIT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        said = holder.stdout.readline()
        if said != "ready\n":
            pytest.skip(f"no rights to namespaces of its own here: {said}")
        yield holder
    finally:
        holder.kill()
        holder.wait(GONE_S)
        holder.stdin.close()
        holder.stdout.close()


def _first(holder: Popen[str]) -> int:
    return int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()[0])


def _host(home: Path, address: str, holder: Popen[str], switch: Popen[str], shared: Path) -> Host:
    (home / ".ray").mkdir(parents=True)
    (home / ".spiketune").mkdir()
    (home / "venv").symlink_to(sys.prefix)
    lines = Path("/etc/passwd").read_text().splitlines()
    ours = [line for line in lines if not line.startswith(("root:", "sshd:"))]
    ours += [f"root:x:0:0:root:{home}:/bin/bash", "sshd:x:105:65534::/run/sshd:/usr/sbin/nologin"]
    (home / "passwd").write_text("\n".join(ours) + "\n")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
    kept = {k: v for k, v in environment(home).items() if not k.startswith("RAY_AUTH")}
    found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {**kept, "HOME": str(home), "PATH": path, "PYTHONPATH": found}
    host = Host(home.name, address, home, _first(holder), holder, _first(switch), variables)
    host.run(HOST.format(name=host.name, ray=RAY_FOLDER, shared=shared, passwd=home / "passwd"))
    return host
