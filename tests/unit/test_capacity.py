"""How far a cluster can grow is said by whoever launches it."""

import pytest

from cluster.resources import LOOK_S, Slots, capacity, concurrent_trials, trial_resources
from spaces.schema import Resources
from trainables.errors import InputError


def test_a_cluster_without_workers_yet_takes_the_trials_it_can_grow_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPIKETUNE_CAPACITY", "CPU=64,GPU=8")
    available = capacity({"CPU": 0.0, "memory": 5.0})
    assert available == {"CPU": 64.0, "GPU": 8.0, "memory": 5.0}
    asked = Resources(cpus=4)
    wanted = trial_resources(asked, available)
    assert wanted == {"cpu": 4.0, "gpu": 1.0}
    assert concurrent_trials(asked, wanted, available) == 8


def test_what_is_there_already_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKETUNE_CAPACITY", "CPU=2")
    assert capacity({"CPU": 6.0}) == {"CPU": 6.0}
    monkeypatch.delenv("SPIKETUNE_CAPACITY")
    assert capacity({"CPU": 6.0}) == {"CPU": 6.0}


@pytest.mark.parametrize("text", ["CPU", "CPU=many", "=3", "CPU=-1", "CPU=nan", "CPU=inf"])
def test_what_is_no_capacity_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SPIKETUNE_CAPACITY", text)
    with pytest.raises(InputError, match="CPU=64,GPU=8"):
        capacity({})


def test_trials_follow_the_cluster_as_machines_come_and_go() -> None:
    now_s, cluster = 0.0, {"CPU": 2.0}
    asked = Resources(cpus=2, gpus=0)
    slots = Slots(asked, trial_resources(asked, cluster), lambda: cluster, lambda: now_s)
    counts = []
    for cpus in (2.0, 8.0, 4.0, 0.0):
        now_s, cluster = now_s + LOOK_S, {"CPU": cpus}
        counts.append(slots())
    assert counts == [1, 4, 2, 1]
    cluster = {"CPU": 8.0}
    assert slots() == 1, "the cluster is not asked at every turn"
    few = Slots(Resources(cpus=2, gpus=0, concurrent=3), {"cpu": 2.0, "gpu": 0.0}, lambda: cluster)
    assert few() == 3
