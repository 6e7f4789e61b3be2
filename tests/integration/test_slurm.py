"""The Slurm script as Slurm would run it, on one node; Slurm's own commands are stood in for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow_server import free_port
from processes import kill_all
from tiny_search import GONE_S, environment, write_space

from cluster import launch_files
from search.folder import SearchFolder
from search.recorded import open_ledger

ROOT = Path(__file__).parents[2]
SCRIPT = Path(launch_files.__file__).with_name("slurm.sh")
# `srun OPTIONS COMMAND` on this machine: what a step runs ends with the step.
SRUN = '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n'
HOSTNAME = "#!/bin/sh\necho 127.0.0.1\n"
SCONTROL = "#!/bin/sh\necho node1\n"


@pytest.mark.slow
def test_a_search_runs_in_an_allocation_and_leaves_nothing(tmp_path: Path) -> None:
    programs, home = tmp_path / "bin", tmp_path / "home"
    programs.mkdir()
    (home / ".spiketune").mkdir(parents=True)
    (home / ".spiketune" / "env").write_text(f"SPIKETUNE_RUNS={tmp_path / 'kept'}\n")
    for name, text in (("srun", SRUN), ("hostname", HOSTNAME), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    # What the virtual environment would have first: this working tree's command.
    command = f'#!/bin/sh\nexec {sys.executable} -m search.cli "$@"\n'
    (programs / "spiketune").write_text(command)
    (programs / "spiketune").chmod(0o755)
    (programs / "ray").symlink_to(Path(sys.executable).with_name("ray"))
    variables = {
        "HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "SPIKETUNE_VENV": str(tmp_path / "none"), "SLURM_JOB_ID": str(free_port() % 10000),
        "SLURM_JOB_NODELIST": "node1", "SLURM_CPUS_PER_TASK": "2", "SLURM_GPUS_ON_NODE": "0",
    }  # fmt: skip
    small = (
        "--set",
        "budget.trials=1",
        "--set",
        "trial.train.epochs=1",
        "--set",
        "stopping.name=none",
    )
    process = subprocess.Popen(
        ["bash", str(SCRIPT), str(write_space(tmp_path)), *small],
        cwd=tmp_path, env={**environment(tmp_path), **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
    finally:
        kill_all(process.pid)
        process.wait(timeout=GONE_S)
    assert "Leaderboard" in output
    assert not list(home.glob(".spiketune-job-*"))  # the token went with the job
    assert (home / ".spiketune" / "env").stat().st_mode & 0o777 == 0o600
    _, ledger = open_ledger(SearchFolder(tmp_path / "kept", "tiny"))
    assert [record.state for record in ledger.records] == ["finished"]
    ledger.close()
