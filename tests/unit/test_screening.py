"""Screening: the score of an untrained network, and which proposal it makes a trial."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ledgers import SPACE, made_search, made_spec
from records import record
from test_director import SEVEN, Clock, Recorder, Silent, direct, history, run_serially, start

from search.director import Director
from search.propose import make_proposer
from search.recorded import open_ledger
from search.records import TrialRecord
from search.screening import Chooser, ScreenError, check_screen
from spaces import SearchSpec, SpaceError
from trainables.config import TrialConfig, with_overrides
from trainables.errors import InputError
from trainables.model import build_model
from trainables.model.neurons import SpikingNeuron
from trainables.screening import hamming, log_determinant, sparsity_aware, spike_diversity

SCREEN = ("screen.candidates=4", "sampler.name=random")
NMNIST = ("recipe=nmnist", "trial.model.block_size=1")
CONFIG = TrialConfig.model_validate(
    {
        "model": {
            "width": 16, "heads": 2, "depth": 1, "timesteps": 2, "image_size": 8,
            "in_channels": 1, "pooling": "0010", "drop_path": 0.5,
        },
    }
)  # fmt: skip


def test_similarities_are_those_of_their_formulas() -> None:
    spikes = torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]])
    assert hamming(spikes).tolist() == [
        [4, 4, 2, 1],
        [4, 4, 2, 1],
        [2, 2, 4, 1],
        [1, 1, 1, 4],
    ]
    # Unrelated samples that spike at a quarter of the places differ at 2 · 1/4 · 3/4 of them.
    assert sparsity_aware(spikes)[0].tolist() == pytest.approx([4, 4, 4 - 2 / 0.375, 0])
    assert sparsity_aware(torch.zeros(2, 4)).tolist() == [[4, 4], [4, 4]]


def test_a_kernel_of_different_samples_scores_above_one_of_like_ones() -> None:
    unlike = torch.eye(8, dtype=torch.float64)
    assert log_determinant(unlike) == pytest.approx(0.0, abs=1e-4)
    scores = [log_determinant(unlike * (1 - a) + a) for a in (0.0, 0.3, 0.9, 1.0)]
    assert scores == sorted(scores, reverse=True)
    assert math.isfinite(scores[-1])


def test_a_score_depends_on_its_arguments_only_and_leaves_torch_as_it_was() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(1)
    first, drawn = spike_diversity(CONFIG, 7), torch.rand(3)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)
    assert spike_diversity(CONFIG, 7) == first
    assert spike_diversity(CONFIG, 8) != first
    assert torch.is_grad_enabled()


def test_deep_layers_are_calibrated() -> None:
    """Without the batch's statistics little fires behind the first layers, and all look alike."""
    from trainables import screening

    deep = TrialConfig.model_validate(with_overrides(CONFIG.model_dump(), {"model.depth": 3}))
    torch.manual_seed(0)
    model = screening._calibrated(build_model(deep.model))
    rates: list[float] = []
    for module in model.modules():
        if isinstance(module, SpikingNeuron):
            module.register_forward_hook(lambda _m, _a, out: rates.append(float(out.mean())))
    with torch.no_grad():
        model(screening._samples(deep, 0))
    assert len(rates) == 4 + 3 * 7 + 1
    assert sum(rate > 0.01 for rate in rates) > 20


def spec_of(tmp_path: Path, *overrides: str) -> SearchSpec:
    return made_spec(tmp_path, *SCREEN, *overrides)


def test_the_best_scored_of_several_proposals_is_kept(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    chooser = Chooser(spec, (2,))
    assert chooser._proposers[0].propose([]) == make_proposer(spec, (2,)).propose([])
    choice = chooser.choose([])
    assert choice is not None
    proposed = [p.propose([]) for p in chooser._proposers]
    assert len({json.dumps(p) for p in proposed}) == 4
    from search.screening import _number, score

    scores = [score(spec.trial_config(p or {}), _number(4, 0, 0)) for p in proposed]
    assert choice.params == proposed[scores.index(max(scores))]
    assert choice.screen["score"] == max(scores)
    assert sorted([*choice.screen["dropped"], max(scores)]) == sorted(scores)


@pytest.mark.parametrize("sampler", ["random", "grid", "gp", "tpe", "nsga2", "qmc"])
def test_what_is_dropped_leaves_no_trace(tmp_path: Path, sampler: str) -> None:
    """Choosing again, by the same samplers or new ones, or of a longer ledger, is the same."""
    spec = made_spec(tmp_path, "screen.candidates=3", f"sampler.name={sampler}")
    warm, records = Chooser(spec, (2,)), list[TrialRecord]()
    for number in range(6):
        choice = warm.choose(records)
        assert choice is not None
        assert warm.choose(records) == choice
        assert Chooser(spec, (2,)).choose(records) == choice
        records.append(record(number, [50.0 + number] * 4, state="finished", params=choice.params))
    assert len({spec.search_space.key(dict(r.params)) for r in records}) == 6


def test_every_point_is_tried_in_the_end(tmp_path: Path) -> None:
    text = SPACE.replace("  train.lr: {float: [2.0e-3, 2.0e-2], log: true}\n", "")
    spec = made_spec(tmp_path, *SCREEN, text=text)
    chooser, records = Chooser(spec, (2,)), list[TrialRecord]()
    while (choice := chooser.choose(records)) is not None:
        assert not choice.screen or len(records) < 5, "the last point has no rival"
        records.append(record(len(records), [50.0], state="finished", params=choice.params))
    assert len({spec.search_space.key(dict(r.params)) for r in records}) == len(records) == 6


def test_given_points_are_not_screened(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "sampler.points=[{model.width: 24}]")
    choice = Chooser(spec, (2,)).choose([])
    assert choice is not None
    assert (choice.params["model.width"], choice.screen) == (24, {})


def test_an_interrupted_search_chooses_the_same_and_remembers_why(tmp_path: Path) -> None:
    found = []
    for name, cuts in (("whole", [10**6]), ("cut", [2, 5, 10**6])):
        spec, folder, ledger = made_search(tmp_path / name, *SCREEN, *SEVEN)
        for cut in cuts:
            torch.rand(len(name))  # what else the process draws must not matter
            run_serially(direct(spec, folder, ledger, Clock()), cut)
            ledger.close()
            spec, ledger = open_ledger(folder, write=True)
        ledger.close()
        screens = [r.extra["screen"] for r in ledger.records]
        assert all(len(s["dropped"]) == 3 and s["score"] >= max(s["dropped"]) for s in screens)
        found.append((history(ledger), screens))
    assert found[0] == found[1]


def test_the_score_is_tracked(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path, *SCREEN)
    tracker: Any = Recorder()
    start(Director(spec, folder, ledger, tracker, Silent(), Clock()))
    tags = next(body for kind, body in tracker.events if kind == "trial_start")["tags"]
    screen = ledger.record(0).extra["screen"]
    assert float(tags["spiketune.screen_score"]) == screen["score"]
    assert tags["spiketune.screen_dropped"] == "3"
    ledger.close()


def without_data(tmp_path: Path) -> tuple[str, ...]:
    return (*SCREEN, *NMNIST, f"trial.data.root={tmp_path}")


def test_what_cannot_be_scored_is_said_before_the_search(tmp_path: Path) -> None:
    check_screen(spec_of(tmp_path))
    check_screen(made_spec(tmp_path, *NMNIST))  # without a screen nothing is looked at
    with pytest.raises(InputError, match=r"screen: a network of .* must be scored .*N-MNIST"):
        check_screen(made_spec(tmp_path, *without_data(tmp_path)))
    with pytest.raises(InputError, match=r"trial_timeout_s must be at least .* 4 large candidates"):
        check_screen(spec_of(tmp_path, "stopping.trial_timeout_s=1.0e-6"))
    huge = "space.model.width.choice=[16, 64000000]"
    with pytest.raises(InputError, match=r"width 64000000 and .* must be scored .*memory"):
        check_screen(spec_of(tmp_path, huge))


def test_what_cannot_be_scored_later_ends_the_search_resumably(tmp_path: Path) -> None:
    spec, folder, ledger = made_search(tmp_path, *without_data(tmp_path))
    director = direct(spec, folder, ledger, Clock())
    assert director.next_assignment() is None
    assert director.ending
    assert isinstance(director.failure, ScreenError)
    assert ledger.records == []
    ledger.close()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["screen.candidates=1"], "screen.candidates: must be >= 2, but got 1"),
        (["screen.candidates=4.0"], "screen.candidates: must be an integer"),
        (["screen={}"], "screen.candidates: must be set, but it is missing"),
        (["screen={candidate: 4}"], "did you mean candidates?"),
        (["screen=4"], "screen: must be a mapping"),
        (
            ["screen.candidates=4", "space={train.lr: {float: [0.001, 0.01]}}"],
            "screen: must have a parameter of the network in `space`",
        ),
    ],
)
def test_a_screen_is_checked_with_its_place(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(SpaceError) as raised:
        made_spec(tmp_path, *overrides)
    assert message in str(raised.value)
    assert "--set:1:" in str(raised.value)


def test_a_search_without_screen_loads_no_network_code() -> None:
    code = (
        "import sys; from pathlib import Path; from spaces import load_search_space;"
        "from search.screening import Chooser, check_screen; import spaces;"
        "spec = load_search_space(Path(spaces.__file__).parent / 'digits.yaml');"
        "check_screen(spec); Chooser(spec, (2,)).choose([]);"
        "print([m for m in ('torch', 'spikingjelly') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
