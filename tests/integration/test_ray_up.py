"""`ray up` and `ray down` of cluster/local.yaml over a real sshd, this machine being the head.

It all runs in namespaces of its own, for `ray stop` ends every Ray process that it can see.
"""

import os
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow_server import free_port
from tiny_search import environment

import cluster

ROOT = Path(__file__).parents[2]
LOCAL = Path(cluster.__file__).with_name("local.yaml")
NAMESPACES = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
SSHD_CONFIG = """\
HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
PidFile none
SetEnv PATH={path} RAY_TMPDIR={ray} PYTHONPATH={root}
"""
INSIDE = """\
set -eu
mount --bind {folder}/passwd /etc/passwd
mount -t tmpfs none /run
mkdir /run/sshd
ray up -y --no-config-cache local.yaml
ls -l ~/.ray/auth_token ~/.spiketune/env ~/spiketune
python -m search.cli jobs list --address http://127.0.0.1:{port}
ray down -y local.yaml
cat /proc/[0-9]*/comm 2>&1 | grep -xE 'gcs_server|raylet' || echo Nothing is left.
"""


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"no {name} here: apt-get install openssh-server openssh-client rsync")
    return found


def filled(folder: Path, user: str, port: int) -> str:
    """The shipped file for this machine; what it would install is here already."""
    text = LOCAL.read_text()
    ports = f"--port={free_port()} --ray-client-server-port={free_port()}"
    for old, new in (
        ("FILL_IN_HEAD_ADDRESS", "127.0.0.1"),
        ("[FILL_IN_WORKER_ADDRESS]", "[]"),
        ("FILL_IN_USER", user),
        ("~/.ssh/id_ed25519", f"{folder}/key\n  ssh_proxy_command: {folder}/sshd"),
        ("auth_token: ~/.ray/auth_token", f"auth_token: {folder}/auth_token"),
        ("env: ~/.spiketune/cluster.env", f"env: {folder}/cluster.env"),
        ("spiketune: dist", f"spiketune: {folder}/dist"),
        ("--port=6379", f"{ports} --num-cpus=1"),
        ("--dashboard-port=8265", f"--dashboard-port={port}"),
    ):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    here = f"  - mkdir -p ~/venv && ln -sfn {Path(sys.executable).parent} ~/venv/bin\n"
    text, count = re.subn(r"  - test -x ~/venv.*\n  - ~/venv/bin/pip.*\n.*\n", here, text)
    assert count == 1
    text = re.sub(r"head_setup_commands:\n.*\n", "", text)
    return re.sub(r"  - >-\n    ~/venv/bin/python -m cluster.tracking_server.*\n.*\n", "", text)


@pytest.mark.slow
def test_the_shipped_file_brings_up_a_cluster_that_asks_for_its_token(tmp_path: Path) -> None:
    sshd, _, _ = program("sshd"), program("rsync"), program("ssh")
    if subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no rights to namespaces of its own here")
    user, port, home = pwd.getpwuid(os.geteuid()), free_port(), tmp_path / "home"
    for folder in (home, tmp_path / "dist"):
        folder.mkdir()
    (home / ".bashrc").touch()
    (tmp_path / "dist" / "requirements.lock").touch()
    for name in ("auth_token", "cluster.env"):
        (tmp_path / name).write_text("A=0123456789abcdef")
        (tmp_path / name).chmod(0o644)
    for name in ("host", "key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(command, check=True)
    accounts = re.sub(f"(?m)^({user.pw_name}:.*):[^:]*:[^:]*$", rf"\1:{home}:/bin/bash",
                      Path("/etc/passwd").read_text())  # fmt: skip
    if "\nsshd:" not in accounts:
        accounts += "sshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n"
    (tmp_path / "passwd").write_text(accounts)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = environment(tmp_path)
    config = SSHD_CONFIG.format(folder=tmp_path, path=path, ray=variables["RAY_TMPDIR"], root=ROOT)
    (tmp_path / "sshd_config").write_text(config)
    # ssh's proxy is the server itself, so that no port is opened
    (tmp_path / "sshd").write_text(f"#!/bin/sh\nexec {sshd} -i -f {tmp_path}/sshd_config\n")
    (tmp_path / "sshd").chmod(0o755)
    (tmp_path / "local.yaml").write_text(filled(tmp_path, user.pw_name, port))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "auth_token")}
    done = subprocess.run(
        [*NAMESPACES, "bash", "-c", INSIDE.format(folder=tmp_path, port=port)],
        cwd=tmp_path, env={**variables, **token, "HOME": str(home), "PATH": path,
                           "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # Refused by the command unless the cluster asks for a token, and takes this one.
    assert "No searches were submitted" in done.stdout
    assert "Nothing is left." in done.stdout
    private = [line for line in done.stdout.splitlines() if line.endswith(("auth_token", "/env"))]
    assert len([line for line in private if line.startswith("-rw-------")]) == 2, done.stdout
    assert "requirements.lock" in done.stdout
