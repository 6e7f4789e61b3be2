"""Shipped launch files keep every rule; a copy that breaks one is refused where it does."""

import random
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import cluster
from cluster.launch_files import LaunchError, read_launch_file
from cluster.launch_rules import FILL_IN, RULES, check_launch_file
from search.cli import main

FOLDER = Path(cluster.__file__).parent
SHIPPED = ("aws.yaml", "gcp.yaml", "local.yaml", "kuberay.yaml", "slurm.sh", "Dockerfile")
DIGEST = "0" * 64


def filled(name: str) -> str:
    """A shipped file with its placeholders filled in."""
    text = (FOLDER / name).read_text().replace("FILL_IN_DIGEST", DIGEST)
    return re.sub(r"FILL_IN_\w+", "example", text)


def problems(tmp_path: Path, name: str, text: str) -> list[tuple[str, int]]:
    """Rule and line of everything that is refused."""
    path = tmp_path / name
    path.write_text(text)
    try:
        check_launch_file(path)
    except LaunchError as error:
        return [(p.key, p.line) for p in error.problems]
    return []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_lacks_only_what_its_user_knows(tmp_path: Path, name: str) -> None:
    text = (FOLDER / name).read_text()
    left = problems(tmp_path, name, text)
    assert {rule for rule, _ in left} <= {"fill-in"}
    lines = text.splitlines()
    assert all(FILL_IN in lines[line - 1] for _, line in left)
    assert problems(tmp_path, name, filled(name)) == []


# Rule, file, what is replaced in it, by what, and what stands in the line that is to be named.
BROKEN = [
    ("fill-in", "aws.yaml", "ImageId: example", "ImageId: FILL_IN_AMI_ID", "FILL_IN_AMI_ID"),
    ("token-auth", "aws.yaml", " RAY_AUTH_MODE=token RAY_USAGE", " RAY_USAGE", "ray start --head"),
    ("token-auth", "gcp.yaml", "RAY_AUTH_MODE=token RAY_U", "RAY_AUTH_MODE=disabled RAY_U", "dis"),
    ("token-auth", "local.yaml", "worker_start_ray_commands", "initialization_commands", ""),
    ("token-auth", "slurm.sh", "export RAY_AUTH_MODE=token ", "export ", "ray start --head"),
    ("token-auth", "Dockerfile", "RAY_AUTH_MODE=token ", "", ""),
    ("token-auth", "kuberay.yaml", "mode: token", "mode: disabled", "mode: disabled"),
    ("token-auth", "kuberay.yaml", "  authOptions: {mode: token, secretName: spiketune-token}\n",
     "", "spec:"),
    ("token-auth", "kuberay.yaml", "{name: RAY_USAGE_STATS_ENABLED, value: \"0\"}",
     "{name: RAY_AUTH_MODE, value: none}", "none"),
    ("token-file", "aws.yaml", "- chmod 600 ~/.ray/auth_token", "- chmod 600", "ray/auth_token:"),
    ("token-file", "slurm.sh", 'chmod 600 "$RAY_AUTH', '# "$RAY_AUTH', "RAY_AUTH_TOKEN_PATH="),
    ("dashboard-host", "aws.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "0.0"),
    ("dashboard-host", "local.yaml", "--dashboard-host=127.0.0.1", "", "ray start --head"),
    ("dashboard-host", "gcp.yaml", "host=127.0.0.1", "host=127.0.0.1.evil.example", "evil"),
    ("dashboard-host", "kuberay.yaml", "dashboard-host: 127.0.0.1", "dashboard-host: 10.0.0.1",
     None),
    ("dashboard-host", "kuberay.yaml", "policyTypes: [Ingress]", "policyTypes: [Egress]",
     "dashboard-host: 0.0.0.0"),
    ("open-address", "slurm.sh", '--node-ip-address="$head_ip"', "--node-ip-address=0.0.0.0",
     "0.0.0.0"),
    ("ssh-open", "aws.yaml", "SecurityGroupIds: [example]\n      SubnetIds: [example]\n      "
     "MetadataOptions: {HttpTokens: required}   #", "#", "node_config"),
    ("ssh-open", "aws.yaml", "203.0.113.7/32.\n", "you.\n      IpRanges: [0.0.0.0/0]\n", "0.0.0.0"),
    ("ssh-open", "gcp.yaml", "subnetwork: example", "subnetwork: a/subnetworks/default",
     "node_config"),
    ("public-service", "kuberay.yaml", "serviceType: ClusterIP", "serviceType: LoadBalancer",
     "LoadBalancer"),
    ("public-service", "kuberay.yaml", "containers:", "hostNetwork: true\n        containers:",
     "hostNetwork"),
    ("unpinned", "kuberay.yaml", f"@sha256:{DIGEST}", ":0.1.0", "example:0.1.0"),
    ("unpinned", "kuberay.yaml", "rayVersion: 2.60.0", "rayVersion: 2.9.0", "2.9.0"),
    ("unpinned", "aws.yaml", "--require-hashes -r ~/spiketune/head.lock", "boto3", "boto3"),
    ("unpinned", "gcp.yaml", "sourceImage: example", "sourceImage: p/images/family/f", "family"),
    ("unpinned", "Dockerfile", "ARG BASE\nFROM", "ARG BASE=python:3.12\nFROM", "FROM"),
    ("unpinned", "Dockerfile", "FROM ${BASE}", "FROM python:latest", "latest"),
    ("unpinned", "slurm.sh", "umask 077", "curl https://example.org/i | sh", "curl"),
    ("secret", "aws.yaml", "SPIKETUNE_RUNS=/mnt", "LEDGER=postgresql://a:b@c/d X=/mnt",
     "postgresql"),
    ("secret", "kuberay.yaml", "RAY_USAGE_STATS_ENABLED, value: \"0\"",
     "MLFLOW_TRACKING_PASSWORD, value: correct-horse", "correct-horse"),
    ("secret", "slurm.sh", "umask 077", "export MLFLOW_TRACKING_PASSWORD=correct-horse", "horse"),
    ("root-user", "Dockerfile", "USER 1000", "USER root", "USER root"),
    ("root-user", "kuberay.yaml", "runAsNonRoot: true, ", "", "securityContext"),
    ("root-user", "kuberay.yaml", "allowPrivilegeEscalation: false", "privileged: true", "priv"),
    ("root-user", "aws.yaml", "ssh_user: ubuntu", "ssh_user: root", "root"),
    ("telemetry", "local.yaml", "--disable-usage-stats", "", "ray start"),
    ("telemetry", "kuberay.yaml", 'disable-usage-stats: "true"', "block: \"true\"",
     "rayStartParams"),
    ("mlflow-server", "local.yaml", "~/venv/bin/python -m cluster.tracking_server", "mlflow server",
     "mlflow server"),
    ("capacity", "aws.yaml", "SPIKETUNE_CAPACITY=CPU=64,GPU=8", "X=1", "node_config"),
    ("schema", "aws.yaml", "max_workers: 8\nup", "max_workers: many\nup", "max_workers: many"),
    ("schema", "local.yaml", "idle_timeout_minutes: 10", "idle_timeout: 10", None),
    ("schema", "kuberay.yaml", "minReplicas: 0", "minReplicas: none", "minReplicas: none"),
    ("schema", "kuberay.yaml", "      maxReplicas: 8\n", "", None),
    ("schema", "kuberay.yaml", "enableInTreeAutoscaling", "enableAutoscaling", "enableAuto"),
    ("schema", "slurm.sh", "finish() {", "finish() { (", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "name", "old", "new", "line"),
    BROKEN,
    ids=[f"{b[0]}-{b[1]}-{b[3][:12]}" for b in BROKEN],
)
def test_a_broken_copy_is_refused_where_it_is_broken(
    tmp_path: Path, rule: str, name: str, old: str, new: str, line: str | None
) -> None:
    text = filled(name)
    assert old in text
    broken = text.replace(old, new, 1)
    if rule == "dashboard-host" and "10.0.0.1" in new:  # allowed only behind the policy
        broken = broken.replace("policyTypes: [Ingress]", "policyTypes: [Egress]")
    found = problems(tmp_path, name, broken)
    assert rule in {found_rule for found_rule, _ in found}
    where = [broken.splitlines()[at - 1] for found_rule, at in found if found_rule == rule]
    assert line is None or any(line in shown for shown in where), where


def test_every_rule_is_broken_once() -> None:
    assert {broken[0] for broken in BROKEN} == {*RULES, "schema"}


@pytest.mark.parametrize("rule", RULES)
def test_without_its_rule_a_broken_copy_would_pass(
    tmp_path: Path, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(RULES, rule)
    for broken, name, old, new, _ in BROKEN:
        if broken == rule:
            found = problems(tmp_path, name, filled(name).replace(old, new, 1))
            assert rule not in {found_rule for found_rule, _ in found}


def test_comments_may_say_what_values_must_not(tmp_path: Path) -> None:
    for name in SHIPPED:
        first, _, rest = filled(name).partition("\n")
        text = f"{first}\n# --dashboard-host=0.0.0.0 password=correct-horse image:latest\n{rest}"
        assert problems(tmp_path, name, text) == []


def test_a_policy_that_lets_everyone_in_guards_nothing(tmp_path: Path) -> None:
    text = filled("kuberay.yaml")
    ours = "matchLabels: {app.kubernetes.io/part-of: spiketune}\n"
    for old, new in (
        (f"    - from:\n        - podSelector:\n            {ours}", "    - {}\n"),
        (f"            {ours}    - from", "    - from"),
        (f"{ours}  policy", "matchLabels: {app: other}\n  policy"),
    ):
        assert old in text
        found = problems(tmp_path, "kuberay.yaml", text.replace(old, new, 1))
        assert "dashboard-host" in {rule for rule, _ in found}, new


@pytest.mark.parametrize("name", SHIPPED)
def test_damaged_files_are_refused_without_a_traceback(tmp_path: Path, name: str) -> None:
    chooser = random.Random(name)
    text = filled(name)
    path = tmp_path / name
    for _ in range(25):
        lines = text.splitlines(keepends=True)
        for _ in range(chooser.randint(1, 4)):
            at = chooser.randrange(len(lines))
            lines[at] = chooser.choice(
                ["", "  " + lines[at], lines[at][: len(lines[at]) // 2] + "\n", "- [\n", "a: *b\n",
                 lines[at].replace(":", ": null #", 1), "? {}\n", "\t- x: !!python/none\n",
                 lines[at].replace(": {", ": [", 1), "---\n", lines[at].lstrip()],
            )  # fmt: skip
        path.write_text("".join(lines))
        last = path.read_text().count("\n") + 2
        assert all(1 <= line <= last for _, line in problems(tmp_path, name, path.read_text()))


@pytest.mark.parametrize("text", ["", "a: 1\n", "[]\n", "kind: Pod\n", "&a [*a]\n", "{" * 5000])
def test_what_launches_nothing_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(text)
    with pytest.raises(LaunchError):
        read_launch_file(path)


def test_the_command_says_where_and_what(tmp_path: Path) -> None:
    path = tmp_path / "aws.yaml"
    path.write_text(filled("aws.yaml"))
    done = CliRunner().invoke(main, ["cluster", "check", str(path)])
    assert done.exit_code == 0
    assert f"ray up {path}" in done.output
    path.write_text(filled("aws.yaml").replace("host=127.0.0.1", "host=0.0.0.0"))
    done = CliRunner().invoke(main, ["cluster", "check", str(path)])
    assert done.exit_code == 2
    line = next(n for n, t in enumerate(path.read_text().splitlines(), 1) if "host=0.0.0.0" in t)
    assert f"{path}:{line}:" in done.output
    assert "dashboard-host: --dashboard-host must be 127.0.0.1, but got '0.0.0.0'" in done.output
    missing = CliRunner().invoke(main, ["cluster", "check", str(tmp_path / "none.yaml")])
    assert missing.exit_code == 2
