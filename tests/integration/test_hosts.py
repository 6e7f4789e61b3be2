"""A search on several hosts that are brought up as shipped, submitted through an SSH tunnel.

One host joins while it runs, another is cut off and dies. The ledger and MLflow are on PostgreSQL.
"""

import http.client
import logging
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

import optuna
import pytest
import torch
from fake_search import OBJECTIVES, SPACE, assert_rule_followed, assert_tracked
from hosts import Host
from processes import PATIENCE_S
from shipped_cluster import (
    DASHBOARD,
    HAS_LOGIN,
    MLFLOW,
    Cluster,
    join,
    listening_everywhere,
    shipped_cluster,
)
from test_submit import status_of
from test_tracking_server import status

from search.database import close_storage, open_storage
from search.folder import SearchFolder
from search.recorded import open_ledger
from search.records import TrialRecord
from search.results import pareto
from search.retries import num_charged
from trainables.config import TrialConfig
from trainables.launch import train_alone

logger = logging.getLogger(__name__)

pytestmark = pytest.mark.slow

TRIALS = 12
NAME = "chaos"
SET = (
    f"budget.trials={TRIALS}", "trial.train.batch_size=16", "resources.concurrent=null",
    "trial.train.cooldown_epochs=0",
)  # fmt: skip
RAY = {"gcs_server", "raylet"}
METRICS = {44217, 44227}  # of Ray's autoscaler and dashboard
LOST = {"node_lost", "worker_unreachable"}
needs_login = pytest.mark.skipif(
    not HAS_LOGIN,
    reason="MLflow's login needs Flask-WTF: pip install --require-hashes -r cluster/head.lock",
)


@dataclass
class Story:
    """What was seen of the search.

    Attributes:
        cluster: where it ran.
        everywhere: programs that listened on every address, with their ports, by host.
        open_metrics: those of the ports that tell a stranger Ray's metrics.
        answers: HTTP status by what was asked for.
        with_password: hosts some process of which knew a password.
        joined_s: Unix time at which the last host joined.
        cut_s: Unix time at which one was cut off.
        found_s: seconds until that was noticed.
        moved: the trial that ran there.
        output: what `submit` printed.
        records: the trials at the end.
    """

    cluster: Cluster
    everywhere: dict[str, set[tuple[str, int]]] = field(default_factory=dict)
    open_metrics: dict[str, set[int]] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    with_password: set[str] = field(default_factory=set)
    joined_s: float = 0.0
    cut_s: float = 0.0
    found_s: float = 0.0
    moved: int = -1
    output: str = ""
    records: list[TrialRecord] = field(default_factory=list)

    @property
    def hosts(self) -> Sequence[Host]:
        return (self.cluster.laptop, self.cluster.head, *self.cluster.workers)

    def ask(self) -> None:
        """Knock at the doors as a stranger and as the owner."""
        laptop, head = self.cluster.laptop, self.cluster.head
        self.answers["dashboard, no token"] = laptop.call(status_of, DASHBOARD)
        agent = f"http://{head.address}:52365"
        self.answers["agent, no token"] = laptop.call(status_of, agent)
        for port in (8265, 5000):
            self.answers[f"{port} from elsewhere"] = laptop.call(
                status_of, f"http://{head.address}:{port}"
            )
        # Its own home has a token, another one has none.
        knock = f"ray status --address {head.address}:6379 >/dev/null 2>&1; echo $?"
        said = laptop.run(knock, HOME="/run", RAY_AUTH_MODE="disabled")
        self.answers["cluster, no token"] = int(said)
        if HAS_LOGIN:
            password = self.cluster.secrets["MLFLOW_TRACKING_PASSWORD"]
            self.answers["mlflow, nobody"] = laptop.call(status, 5000)
            self.answers["mlflow, owner"] = laptop.call(status, 5000, password)
            evil = laptop.call(status, 5000, password, "10.evil.example")
            self.answers["mlflow, another name"] = evil

    def look(self) -> None:
        """Who listens where, and who knows the password."""
        password = self.cluster.secrets["MLFLOW_TRACKING_PASSWORD"]
        for host in self.hosts:
            self.everywhere[host.name] = listening_everywhere(host)
            self.open_metrics[host.name] = {
                port
                for _, port in self.everywhere[host.name]
                if self.cluster.laptop.call(tells_metrics, f"{host.address}:{port}")
            }
            # Given as input, so that no command line of ours has it before it is looked for.
            found = host.run('grep -lF "$(cat)" /proc/[0-9]*/environ || true', given=password)
            if found:
                self.with_password.add(host.name)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("hosts")
    with shipped_cluster(folder) as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPIKETUNE_LEDGER_URL", cluster.secrets["SPIKETUNE_LEDGER_URL"])
        told = Story(cluster)
        lost, late = cluster.workers
        join(lost, cluster.head)
        (cluster.laptop.home / "search.yaml").write_text(SPACE)
        words = ["python", "-m", "search.cli", "submit", str(cluster.laptop.home / "search.yaml")]
        words += [word for pair in SET for word in ("--set", pair)]
        with cluster.laptop.start([*words, "--address", DASHBOARD]) as submitted:
            try:
                follow(told, submitted, lost, late)
                told.output, _ = submitted.communicate(timeout=600)
            finally:
                submitted.kill()
        assert submitted.returncode == 0, told.output
        told.records = records_of(cluster)
        yield told


def follow(told: Story, submitted: "Popen[str]", lost: Host, late: Host) -> None:
    """A host joins; when all three train, one is cut off and, once that is noticed, killed."""
    cluster = told.cluster
    told.ask()

    def until(condition: Callable[[list[TrialRecord]], bool]) -> list[TrialRecord]:
        deadline = time.monotonic() + PATIENCE_S
        while not condition(seen := records_of(cluster)):
            assert submitted.poll() is None, submitted.communicate()[0]
            assert time.monotonic() < deadline, "the condition was not met in time"
            time.sleep(0.2)  # between two looks at the ledger
        return seen

    until(lambda records: bool(trained_by(lost, records)))
    told.joined_s = time.time()
    join(late, cluster.head)
    until(lambda records: bool(trained_by(late, records)))
    told.look()
    there = until(lambda records: bool(trains_on(lost, records)))
    told.moved = trains_on(lost, there)[0].number
    told.cut_s = time.time()
    lost.cut_off()
    until(
        lambda records: (
            records[told.moved].attempts[-1].reason != ""
            or records[told.moved].attempt > there[told.moved].attempt
        )
    )
    told.found_s = time.time() - told.cut_s
    logger.info("a host that was cut off was missed after %.1f s", told.found_s)
    lost.kill()


def records_of(cluster: Cluster) -> list[TrialRecord]:
    """The ledger as it is, or nothing before it is made."""
    folder = SearchFolder(cluster.shared / "runs", NAME)
    if not folder.exists:
        return []

    def read() -> list[TrialRecord]:
        ledger = open_ledger(folder)[1]
        ledger.close()
        return ledger.records

    return cluster.head.call(read)


def tells_metrics(place: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{place}/metrics", timeout=5) as answer:
            return b"# HELP" in answer.read()
    except (OSError, http.client.HTTPException):
        return False


def trained_by(host: Host, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if host.name in record.hosts]


def trains_on(host: Host, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials that have reported from there, and run."""
    return [
        r for r in records if r.state == "running" and r.epochs and r.epochs[-1].host == host.name
    ]


def test_nothing_answers_a_stranger(story: Story) -> None:
    assert story.answers["dashboard, no token"] == 401
    assert story.answers["agent, no token"] == 401
    assert story.answers["8265 from elsewhere"] == 0
    assert story.answers["5000 from elsewhere"] == 0


@needs_login
def test_mlflow_lets_in_its_owner_under_its_own_name(story: Story) -> None:
    assert story.answers["mlflow, nobody"] == 401
    assert story.answers["mlflow, owner"] == 200
    assert story.answers["mlflow, another name"] == 403


def test_every_host_trained_and_the_search_is_whole(story: Story) -> None:
    records = story.records
    assert "Leaderboard" in story.output
    assert [r.number for r in records] == list(range(TRIALS))
    assert {r.state for r in records} <= {"finished", "stopped"}
    hosts = {name for record in records for name in record.hosts}
    assert hosts == {"head", "worker1", "worker2"}
    for record in records:
        assert [e.epoch for e in record.epochs] == list(range(1, len(record.epochs) + 1))
    assert_rule_followed(records)


def test_the_lost_host_s_trial_went_on_elsewhere_uncharged(story: Story) -> None:
    record = story.records[story.moved]
    reasons = [a.reason for r in story.records for a in r.attempts if a.reason]
    assert reasons
    assert set(reasons) <= LOST
    assert sum(num_charged(r.attempts) for r in story.records) == 0
    assert record.attempts[0].reason in LOST
    assert record.hosts[0] == "worker1"
    late = [e for r in story.records for e in r.epochs if e.time_s > story.cut_s + 1.0]
    assert {e.host for e in late} == {"head", "worker2"}


def test_a_trial_that_moved_has_the_values_of_one_that_did_not(
    story: Story, tmp_path: Path
) -> None:
    record = story.records[story.moved]
    assert len(record.epochs) > 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a trial of one CPU has
    try:
        again = train_alone(TrialConfig.model_validate(record.config), tmp_path)
        for epoch, result in zip(record.epochs, again, strict=False):
            for name in ("val_top1", "energy_mj", "train_loss"):
                assert epoch.metrics[name] == result[name], (epoch.epoch, name)
    finally:
        torch.set_num_threads(threads)


def test_as_many_trials_run_as_the_hosts_have_room_for(story: Story) -> None:
    assert most_at_once(story.records, 0.0, story.joined_s) == 2
    assert most_at_once(story.records, story.joined_s, story.cut_s) == 3


def most_at_once(records: Sequence[TrialRecord], start_s: float, end_s: float) -> int:
    """The most attempts that were open at a moment between."""
    spans = [(a.started_s, a.ended_s or r.ended_s or end_s) for r in records for a in r.attempts]
    moments = [max(begun, start_s) for begun, _ in spans if begun < end_s]
    return max(sum(begun <= at < ended for begun, ended in spans) for at in moments)


def test_mlflow_tells_what_the_ledger_does(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{story.cluster.shared / 'runs' / 'mlflow.db'}"
    if HAS_LOGIN:
        uri = MLFLOW
        for name in ("USERNAME", "PASSWORD"):
            variable = f"MLFLOW_TRACKING_{name}"
            monkeypatch.setenv(variable, story.cluster.secrets[variable])
    story.cluster.laptop.call(assert_tracked, uri, story.records, "chaos")


def test_optuna_reads_the_same_from_the_server(story: Story) -> None:
    url = story.cluster.secrets["SPIKETUNE_LEDGER_URL"]

    def best_trials() -> set[int]:
        storage = open_storage(url, create=False)
        try:
            study = optuna.load_study(study_name=NAME, storage=storage)
            return {trial.number for trial in study.best_trials}
        finally:
            close_storage(storage)

    found = story.cluster.head.call(best_trials)
    assert found == {r.number for r in pareto(story.records, OBJECTIVES)}


def test_passwords_stay_on_the_head(story: Story) -> None:
    assert story.with_password == {"head"}
    password = story.cluster.secrets["MLFLOW_TRACKING_PASSWORD"].encode()
    files = [path for path in story.cluster.shared.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if password in path.read_bytes()]


def test_only_ray_listens_on_every_address(story: Story) -> None:
    assert not story.everywhere["laptop"]
    for host in (story.cluster.head, *story.cluster.workers):
        # Ray has no option for these; whoever they do not know they ask for the token.
        listens = story.everywhere[host.name]
        strange = {name for name, _ in listens if name not in RAY and "ray::" not in name}
        assert strange <= {"python"}, "the driver, and Ray's own two of the head"
        assert not {port for _, port in listens} & {22, 5000, 5432, 8265, 10001, 52365}
    assert story.answers["cluster, no token"] != 0
    # All but its metrics: two of fixed ports on the head, one of an agent on each.
    assert story.open_metrics["head"] >= METRICS
    counts = {name: len(ports - METRICS) for name, ports in story.open_metrics.items()}
    assert counts == {"laptop": 0, "head": 1, "worker1": 1, "worker2": 1}
