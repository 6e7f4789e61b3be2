"""How large a trial's share is, what fits together, and what a share that was too small teaches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from ledgers import made_search, made_spec
from test_director import Clock, direct, result, start

from cluster.packing import MIB, Machine, card_share, memory_bytes, together
from search.cli import main
from search.director import WAIT, Director
from search.packing import GROWTH, Packing, correction, make_packing
from search.recorded import open_ledger
from search.records import Attempt
from search.retries import loss_of
from spaces import SearchSpec
from spaces.memory import extremes
from trainables.errors import InputError, TrialFailedError
from trainables.footprint import CUDA_CONTEXT_MIB, WORKER_MIB, predicted_memory
from trainables.memory import allocator_share, is_out_of_memory
from trainables.trial import SpikingTrial

FULL: dict[str, Any] = {"failure": "out_of_memory", "message": "CUDA out of memory"}
KILLED = loss_of("Task was killed due to the node running low on memory.")
GIB = 2.0**30


def test_a_share_is_rounded_up_to_sixteenths_of_a_card() -> None:
    assert card_share(1.0, 16_000.0) == 1 / 16
    assert card_share(1000.0, 16_000.0) == 1 / 16
    assert card_share(1001.0, 16_000.0) == 2 / 16
    assert card_share(15_001.0, 16_000.0) == 1.0
    assert card_share(40_000.0, 16_000.0) == 1.0
    assert card_share(1000.0, 16_000.0, steps=2) == 3 / 16
    assert card_share(16_000.0, 16_000.0, steps=1) == 1.0


def test_memory_is_rounded_up_and_never_more_than_the_machine_has() -> None:
    assert memory_bytes(1.0, GIB) == 256 * MIB
    assert memory_bytes(257.0, GIB) == 512 * MIB
    assert memory_bytes(257.0, GIB, steps=1) == 768 * MIB
    assert memory_bytes(5000.0, GIB) == GIB


@pytest.mark.parametrize(
    ("requests", "machines", "fits"),
    [
        ([(1, 0.5, 0), (1, 0.5, 0)], [Machine(4, 1)], True),
        ([(1, 0.5, 0), (1, 0.5, 0), (1, 0.0625, 0)], [Machine(4, 1)], False),
        # Free halves of two cards are no card.
        ([(1, 0.625, 0), (1, 0.625, 0), (1, 0.5, 0)], [Machine(4, 2)], False),
        ([(1, 1.0, 0), (1, 0.5, 0), (1, 0.5, 0)], [Machine(4, 2)], True),
        ([(1, 2.0, 0), (1, 0.5, 0)], [Machine(4, 2)], False),
        ([(2, 0, 3), (2, 0, 3)], [Machine(2, 0, 5), Machine(2, 0, 5)], True),
        ([(1, 0, 3), (1, 0, 3)], [Machine(2, 0, 5)], False),
        ([(2, 0, 0), (1, 0, 0)], [Machine(2)], False),
    ],
)
def test_what_fits_together(
    requests: list[tuple[float, float, float]], machines: list[Machine], *, fits: bool
) -> None:
    named = [dict(zip(("cpu", "gpu", "memory"), request, strict=True)) for request in requests]
    assert together(named, machines) == fits


def on_cards(spec: SearchSpec, card_mib: float | None, cards: int = 1) -> Packing:
    return make_packing(
        spec, {"CPU": 32.0, "GPU": float(cards)}, [Machine(32, cards, 64 * GIB)], card_mib
    )


def test_a_trial_asks_for_the_share_that_it_is_predicted_to_need(tmp_path: Path) -> None:
    spec = made_spec(tmp_path)
    packing = on_cards(spec, 4_000.0)
    found = extremes(spec, "cuda")
    wanted_mib = predicted_memory(found.largest, "cuda").safe_mib + CUDA_CONTEXT_MIB
    assert packing.request(found.largest)["gpu"] == card_share(wanted_mib, 4_000.0)
    assert packing.request(found.largest)["gpu"] < 0.5
    assert packing.request(found.largest, 1.5)["gpu"] > packing.request(found.largest)["gpu"]
    assert packing.smallest == packing.request(found.smallest)
    assert packing.most == int(1 / packing.smallest["gpu"])
    assert "memory" not in packing.smallest
    assert on_cards(spec, None).request(found.largest) == {"cpu": 1.0, "gpu": 1.0}
    half = made_spec(tmp_path, "resources.gpus=0.5")
    assert on_cards(half, 24_000.0).request(found.largest) == {"cpu": 1.0, "gpu": 0.5}


def test_too_large_for_a_card_is_said_before_the_first_trial(tmp_path: Path) -> None:
    spec = made_spec(tmp_path)
    with pytest.raises(InputError, match=r"card of 0\.5 GiB.*model\.width=.*resources\.gpus: 1"):
        on_cards(spec, 512.0)


def on_cpus(spec: SearchSpec, memory: float) -> Packing:
    return make_packing(spec, {"CPU": 8.0, "memory": memory}, [Machine(8, 0, memory)], None)


def test_a_usual_machine_runs_as_many_trials_as_it_has_cpus(tmp_path: Path) -> None:
    packing = on_cpus(made_spec(tmp_path), 8 * GIB)
    found = extremes(made_spec(tmp_path), "cpu")
    assert packing.most == 8
    # All ask for the same, so that one's worker serves the next.
    assert packing.request(found.smallest) == packing.request(found.largest) == packing.smallest
    assert together([packing.smallest] * 8, packing.machines)


def test_scarce_memory_is_shared_by_size(tmp_path: Path) -> None:
    spec = made_spec(tmp_path, "space.model.width.choice=[16, 512]")
    found = extremes(spec, "cpu")
    packing = on_cpus(spec, 4 * GIB)
    small, large = packing.request(found.smallest), packing.request(found.largest)
    assert small["memory"] < large["memory"]
    needed_mib = predicted_memory(found.largest, "cpu").safe_mib + WORKER_MIB
    assert 0 <= large["memory"] / MIB - needed_mib < 256
    assert packing.smallest["memory"] == small["memory"]
    with pytest.raises(InputError, match=r"machine of 0\.5 GiB.*predicted to need"):
        on_cpus(spec, GIB / 2)


def attempt(started_s: float, ended_s: float, reason: str = "share_too_small") -> Attempt:
    return Attempt(started_s, 0, reason, ended_s)


def test_predictions_are_corrected_by_what_the_ledger_says(tmp_path: Path) -> None:
    spec, _, ledger = made_search(tmp_path)
    record = replace(_added(direct(spec, _, ledger, Clock())), attempts=())
    ledger.close()

    def factor(*attempts: Attempt) -> float:
        return correction([replace(record, attempts=(one,)) for one in attempts])

    assert factor() == factor(attempt(0, 1, "worker_lost")) == 1.0
    assert factor(attempt(0, 1)) == GROWTH
    # Two that ran at once say the same; one that was given more says more.
    assert factor(attempt(0, 2), attempt(1, 3)) == GROWTH
    assert factor(attempt(0, 1), attempt(2, 3)) == GROWTH**2
    assert factor(attempt(2, 3), attempt(0, 1)) == GROWTH**2


def _added(director: Director) -> Any:
    return director.ledger.record(start(director).number)


def packed(spec: SearchSpec, folder: Any, ledger: Any, clock: Clock, mib: float) -> Director:
    director = direct(spec, folder, ledger, clock)
    director.shares.packing = on_cards(spec, mib)
    return director


def test_one_larger_share_and_then_the_end(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path, "stopping.name=none")
    clock = Clock()
    director = packed(spec, folder, ledger, clock, 4_000.0)
    first = start(director)
    assert not director.report(0, result(first, 1), 1)
    assert director.report(0, FULL, 1)
    again = start(director)
    assert (again.number, again.config["attempt"], again.config["known_epochs"]) == (0, 2, 1)
    assert again.config["resources"]["gpu"] > first.config["resources"]["gpu"]
    assert director.report(0, FULL, 2)
    record = ledger.record(0)
    assert (record.state, record.reason) == ("failed", "out_of_memory")
    assert [a.reason for a in record.attempts] == ["share_too_small", ""]
    assert not any(a.charged for a in record.attempts)
    ledger.close()
    # Whoever resumes the search knows it.
    _, opened = open_ledger(folder, write=True)
    resumed = packed(spec, folder, opened, clock, 4_000.0)
    config = resumed.shares.packing
    assert correction(opened.records) == GROWTH
    later = start(resumed)
    trial = spec.trial_config(dict(opened.record(later.number).params))
    assert config is not None
    assert later.config["resources"] == config.request(trial, GROWTH)
    assert later.config["resources"] != config.request(trial)
    opened.close()


def test_a_worker_killed_for_memory_is_given_more_once(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path)
    director = direct(spec, folder, ledger, Clock())
    director.shares.packing = on_cpus(spec, 64 * GIB)
    first = start(director)
    director.lost(0, KILLED, 1)
    again = start(director)
    assert again.number == 0
    assert again.config["resources"]["memory"] > first.config["resources"]["memory"]
    director.lost(0, KILLED, 2)
    assert (ledger.record(0).state, ledger.record(0).reason) == ("failed", "out_of_memory")
    ledger.close()


def test_a_trial_that_had_a_whole_card_is_not_tried_again(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path)
    director = packed(spec, folder, ledger, Clock(), 960.0)
    assert start(director).config["resources"]["gpu"] == 1.0
    assert director.report(0, FULL, 1)
    assert ledger.record(0).state == "failed"
    ledger.close()


def test_one_trial_waits_for_its_share_and_the_next_is_chosen_after(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path)
    director = direct(spec, folder, ledger, Clock())
    director.shares.packing = replace(on_cards(spec, 24_000.0), smallest={"cpu": 1.0, "gpu": 0.5})
    first, second = start(director), start(director)
    share = first.config["resources"]["gpu"] + second.config["resources"]["gpu"]
    assert 0.0 < share < 0.5 + 1e-9
    running = 2
    while director.next_assignment() != WAIT:
        running += 1
    assert 2 <= running < 16
    director.report(first.number, FULL | {"failure": "nan_loss"}, 1)
    assert start(director).number == running
    ledger.close()


def test_trials_are_chosen_for_machines_that_are_there_now(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path)
    director = direct(spec, folder, ledger, Clock())
    packing = replace(on_cards(spec, 24_000.0), smallest={"cpu": 1.0, "gpu": 1.0})
    there = [Machine(4.0, 1)]
    director.shares.use(packing, lambda: there)
    start(director)
    assert director.next_assignment() == WAIT
    there.append(Machine(4.0, 1))
    start(director)
    there.clear()
    assert director.next_assignment() == WAIT
    ledger.close()


class Outgrowing(SpikingTrial):
    error: BaseException = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def _start(self) -> Any:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_told_whoever_says_it(error: BaseException) -> None:
    trial = Outgrowing.__new__(Outgrowing)
    trial.setup({"number": 0})
    trial.error = error
    told = trial.step()
    assert (told["failure"], told["done"]) == ("out_of_memory", True)


def test_other_errors_are_raised() -> None:
    trial = Outgrowing.__new__(Outgrowing)
    trial.setup({"number": 0})
    trial.error = RuntimeError("shapes do not fit")
    with pytest.raises(RuntimeError, match="shapes"):
        trial.step()
    assert not is_out_of_memory(TrialFailedError("nan_loss", "out of memory"))


def test_a_process_may_allocate_its_share_less_its_context() -> None:
    assert allocator_share(0.5, 10 * CUDA_CONTEXT_MIB) == pytest.approx(0.4)
    assert allocator_share(1 / 16, CUDA_CONTEXT_MIB) == 0.01


def test_check_tells_memory_and_packing(tmp_path: Path) -> None:
    made_spec(tmp_path)
    told = CliRunner().invoke(main, ["check", str(tmp_path / "made.yaml")])
    assert told.exit_code == 0, told.output
    assert "Predicted memory of a trial" in told.output
    assert "a card's 24 GiB: 16 trials at once" in told.output
    given = ["check", str(tmp_path / "made.yaml"), "--set", "resources.gpu_memory_gib=4"]
    assert "a card's 4 GiB: " in CliRunner().invoke(main, given).output


def test_a_plan_counts_trials_that_share_cards(tmp_path: Path) -> None:
    made_spec(tmp_path)
    plan = ["plan", str(tmp_path / "made.yaml"), "--gpus", "2"]
    assert "2 trials at once" in CliRunner().invoke(main, plan).output
    shared = [*plan, "--set", "resources.gpu_memory_gib=24"]
    assert "32 trials at once" in CliRunner().invoke(main, shared).output
