"""What a search tries first: points of the file, the papers' ones, earlier searches' best."""

from pathlib import Path

import pytest
from records import record

from search.first import first_points, with_warm_points
from search.folder import SearchFolder
from search.propose import distributions, make_proposer
from search.recorded import check_same, create_ledger, open_ledger
from search.records import Outcome
from spaces import SearchSpec, load_search_space
from trainables.errors import InputError

SPACE = """
name: first
recipe: cifar10_2_512
space:
  model.timesteps: {int: [1, 8]}
  model.depth: {choice: [1, 2, 4]}
  model.attention: {choice: [statten, sdt]}
  model.block_size: {choice: [1, 2], when: {model.attention: statten}}
  train.lr: {float: [1.0e-4, 1.0e-2], log: true}
constraints: ["model.timesteps * model.depth <= 8"]
budget: {trials: 12}
"""


def load(tmp_path: Path, *overrides: str, text: str = SPACE) -> SearchSpec:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return load_search_space(path, overrides)


def test_given_points_come_first_completed_from_the_recipe(tmp_path: Path) -> None:
    points = "[{model.depth: 1}, {model.timesteps: 8, model.attention: sdt, train.lr: 1.0e-3}]"
    spec = load(tmp_path, f"sampler.points={points}")
    recipe = spec.search_space.base
    proposer = make_proposer(spec, ())
    first = proposer.propose([])
    assert first is not None
    assert first["model.depth"] == 1
    assert first["model.timesteps"] == recipe["model.timesteps"]
    assert first["train.lr"] == recipe["train.lr"]
    second = proposer.propose([record(0, [], params=first)])
    assert second is not None
    assert {k: second[k] for k in ("model.timesteps", "model.attention", "train.lr")} == {
        "model.timesteps": 8,
        "model.attention": "sdt",
        "train.lr": 1e-3,
    }
    assert second["model.depth"] == 1, "the only depth that the constraint leaves"
    assert "model.block_size" not in second
    third = proposer.propose([record(0, [], params=first), record(1, [], params=second)])
    plain = make_proposer(load(tmp_path), ())
    assert third == plain.propose([record(0, [], params=first), record(1, [], params=second)])


def test_the_papers_configurations_are_tried_first(tmp_path: Path) -> None:
    spec = load(tmp_path, "sampler.start_from=paper")
    found = first_points(spec)
    assert found[0]["model.attention"] == "statten"
    assert found[0]["model.depth"] == spec.search_space.base["model.depth"]
    assert any(point["model.attention"] == "sdt" for point in found)
    keys = [spec.search_space.key(point) for point in found]
    assert len(set(keys)) == len(keys)
    assert not any(spec.search_space.problems(point) for point in found)
    assert make_proposer(spec, ()).propose([]) == found[0]


def ended_search(tmp_path: Path, name: str = "early", lr: float = 1e-3) -> None:
    """An earlier search of an overlapping space: trial 2 is the best one, 3 was stopped."""
    text = SPACE.replace("name: first", f"name: {name}").replace("[1, 8]", "[1, 16]")
    spec = load(tmp_path, text=text.replace("<= 8", "<= 16"))
    folder = SearchFolder(tmp_path / "runs", name)
    ledger = create_ledger(spec, folder, text)
    trials = [(4, 50.0, "finished"), (2, 60.0, "finished"), (16, 70.0, "finished")]
    for steps, top1, state in [*trials, (3, 99.0, "stopped"), (1, 5.0, "failed")]:
        params = {
            "model.timesteps": steps,
            "model.depth": 1,
            "model.attention": "sdt",
            "train.lr": lr,
        }
        described = distributions(spec.search_space, params)
        number = ledger.add(params, described, {}, f"{steps}").number
        ledger.report(number, 1, {"val_top1": top1}, None, Outcome(state, "made"))  # type: ignore[arg-type]
    ledger.close()


def test_earlier_searches_best_are_tried_first_within_the_new_space(tmp_path: Path) -> None:
    ended_search(tmp_path)
    folder = SearchFolder(tmp_path / "runs", "first")
    spec = load(tmp_path, "sampler.warm_start=[early]", "budget.trials=16")
    warm = with_warm_points(spec, folder)
    # Best first; what is outside the new space's domain is left to the recipe.
    steps = [point.get("model.timesteps") for point in warm.sampler.warm_points]
    assert steps == [None, 2, 4, 3]
    found = first_points(warm)
    assert [p["model.timesteps"] for p in found][1:] == [2, 4, 3]
    assert all(p["model.attention"] == "sdt" and p["train.lr"] == 1e-3 for p in found)
    few = with_warm_points(load(tmp_path, "sampler.warm_start=[early]"), folder)
    assert len(few.sampler.warm_points) == 3


def test_several_earlier_searches_take_turns(tmp_path: Path) -> None:
    for name in ("early", "other"):
        ended_search(tmp_path, name)
    spec = load(tmp_path, "sampler.warm_start=[early, other]", "budget.trials=100")
    warm = with_warm_points(spec, SearchFolder(tmp_path / "runs", "first"))
    assert len(warm.sampler.warm_points) == 4, "the same points are tried once"
    ended_search(tmp_path, "third", lr=2e-3)
    spec = load(tmp_path, "sampler.warm_start=[early, third]")
    warm = with_warm_points(spec, SearchFolder(tmp_path / "runs", "first"))
    assert [point["train.lr"] for point in warm.sampler.warm_points] == [1e-3, 2e-3, 1e-3]


def test_a_started_search_depends_on_the_earlier_ones_no_more(tmp_path: Path) -> None:
    ended_search(tmp_path)
    folder = SearchFolder(tmp_path / "runs", "first")
    spec = load(tmp_path, "sampler.warm_start=[early]")
    warm = with_warm_points(spec, folder)
    create_ledger(warm, folder, SPACE).close()
    again, ledger = open_ledger(folder)
    ledger.close()
    assert again.sampler.warm_points == warm.sampler.warm_points
    assert first_points(again) == first_points(warm)
    check_same(again, spec, "first")
    with pytest.raises(InputError, match=r"warm_start"):
        check_same(again, load(tmp_path), "first")


@pytest.mark.parametrize(
    ("name", "message"), [("nothing", "must be a search in"), ("unlike", "same parameters")]
)
def test_what_cannot_be_started_from_is_named(tmp_path: Path, name: str, message: str) -> None:
    ended_search(tmp_path)
    folder = SearchFolder(tmp_path / "runs", "first")
    text = SPACE[: SPACE.index("space:")] + "space: {model.heads: {choice: [1, 8]}}\n"
    other = load(tmp_path, text=text.replace("name: first", "name: unlike") + "budget: {trials: 4}")
    create_ledger(other, SearchFolder(tmp_path / "runs", "unlike"), text).close()
    spec = load(tmp_path, f"sampler.warm_start=[{name}]")
    with pytest.raises(InputError, match=message):
        with_warm_points(spec, folder)
