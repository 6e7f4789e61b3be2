"""The Pareto set against the recipe: what the search gained on the configuration it began from."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search.records import TrialRecord
from search.results import pareto
from spaces.reading import recipe, recipe_names
from spaces.schema import SearchSpec
from trainables.config import TrialConfig, flatten
from trainables.cost import parameter_count, total_macs
from trainables.data_cards import CARDS

_ACCURACIES = ("val_top1", "val_top5")


@dataclass(frozen=True)
class Difference:
    """One setting that a trial has differently."""

    key: str
    value: Any
    reference: Any


@dataclass(frozen=True)
class Member:
    """One trial of the Pareto set against the reference.

    Attributes:
        record: the trial.
        params_ratio: parameters, times the reference's.
        macs_ratio: dense MACs an image over all timesteps, times the reference's.
        points: by metric, percentage points of accuracy above the reference's trial.
        ratios: by metric, times the reference's trial.
        differences: settings that differ, searched ones first.
    """

    record: TrialRecord
    params_ratio: float
    macs_ratio: float
    points: Mapping[str, float]
    ratios: Mapping[str, float]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Against:
    """The Pareto set against one configuration.

    Attributes:
        recipe: whose network that is.
        trial: which trained it; None where none did, and nothing measured can be compared.
        members: of the Pareto set, in its order.
    """

    recipe: str
    trial: TrialRecord | None
    members: tuple[Member, ...]

    def tree(self) -> dict[str, Any]:
        """As plain JSON-able values, in full precision."""
        return {
            "recipe": self.recipe,
            "trial": None if self.trial is None else self.trial.number,
            "members": [
                {
                    "number": member.record.number,
                    "params_ratio": member.params_ratio,
                    "macs_ratio": member.macs_ratio,
                    "points": dict(member.points),
                    "ratios": dict(member.ratios),
                    "differences": [vars(found) for found in member.differences],
                }
                for member in self.members
            ],
        }


def against_recipe(spec: SearchSpec, records: Sequence[TrialRecord]) -> Against | None:
    """Compare the Pareto set with the recipe, or with another published network that was trained.

    A trial has trained a recipe's network where its network and all searched parameters are the
    recipe's; all else is the same in every trial. None without a Pareto set.
    """
    front = pareto(records, spec.objectives)
    if not front:
        return None
    name, trial = next(_trained(spec, records), (spec.recipe, None))
    reference = flatten(recipe(name).model_dump())
    if trial is not None:
        reference = flatten(trial.config)
    members = tuple(_member(spec, record, reference, trial) for record in front)
    return Against(name, trial, members)


def _trained(spec: SearchSpec, records: Sequence[TrialRecord]) -> Iterator[tuple[str, TrialRecord]]:
    """Published configurations for these data with the trial that has trained them longest."""
    first = recipe(spec.recipe)
    others = [name for name in recipe_names() if name != spec.recipe]
    same = [name for name in others if recipe(name).data.name == first.data.name]
    for name in (spec.recipe, *same):
        config = recipe(name)
        found = [r for r in records if r.counts and _is_network_of(spec, r, config)]
        if found:
            yield name, max(found, key=lambda r: len(r.epochs))


def _is_network_of(spec: SearchSpec, record: TrialRecord, config: TrialConfig) -> bool:
    ours, theirs = flatten(record.config), flatten(config.model_dump())
    keys = {key for key in theirs if key.startswith("model.")} | set(spec.search_space.keys)
    return all(ours.get(key) == theirs[key] for key in keys - _unread(ours, theirs))


def _unread(*configs: Mapping[str, Any]) -> set[str]:
    """Settings without effect in each of some configurations."""
    is_statten = any(config["model.attention"] == "statten" for config in configs)
    return set() if is_statten else {"model.block_size"}


def _member(
    spec: SearchSpec, record: TrialRecord, reference: Mapping[str, Any], trial: TrialRecord | None
) -> Member:
    config = flatten(record.config)
    searched = dict.fromkeys(spec.search_space.keys)
    keys = [*searched, *(k for k in config if k.startswith("model.") and k not in searched)]
    unread = _unread(config) | _unread(reference)
    pairs = [(key, config.get(key), reference.get(key)) for key in keys if key not in unread]
    points: dict[str, float] = {}
    ratios: dict[str, float] = {}
    shown = dict.fromkeys(("val_top1", "energy_mj", *(o.metric for o in spec.objectives)))
    for metric in shown if trial is not None else ():
        theirs = trial.last.get(metric, math.nan) if trial is not None else math.nan
        ours = record.last.get(metric, math.nan)
        if metric in _ACCURACIES and math.isfinite(ours - theirs):
            points[metric] = ours - theirs
        elif metric not in _ACCURACIES and theirs > 0 and math.isfinite(ours / theirs):
            ratios[metric] = ours / theirs
    costs = [_costs(which) for which in (config, reference)]
    return Member(
        record=record,
        params_ratio=costs[0][0] / costs[1][0],
        macs_ratio=costs[0][1] / costs[1][1],
        points=points,
        ratios=ratios,
        differences=tuple(Difference(*pair) for pair in pairs if pair[1] != pair[2]),
    )


def _costs(config: Mapping[str, Any]) -> tuple[int, int]:
    model = {
        key.removeprefix("model."): value
        for key, value in config.items()
        if key.startswith("model.")
    }
    is_sequence = CARDS[config["data.name"]].is_sequence
    return parameter_count(model), total_macs(model, is_sequence=is_sequence)
