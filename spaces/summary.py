"""What a person wants to know of a search space before starting it."""

import math
from typing import Any

import numpy as np

from spaces.rejections import rejections
from spaces.schema import SearchSpec
from spaces.space import MAX_LISTED_POINTS
from trainables.cost import parameter_count, total_macs
from trainables.data_cards import CARDS
from trainables.footprint import predicted_memory
from trainables.prediction import Calibration, fitting, load, predict_epoch_s
from trainables.samples import images_here

NUM_EXAMPLES = 3
_LOW_SHARE = 0.01
_OF_ACCURACY = frozenset({"val_top1", "val_top5", "val_loss", "train_loss"})


def summarize(spec: SearchSpec) -> dict[str, Any]:
    """Describe a search as a plain JSON-able tree with stable keys.

    Returns:
        `parameters`, `size`, `rejections`, `constraints`, `objectives`, `budget`, `examples`,
        `notes` and `resolved`; a continuous space's counts and an unknown cost are None.
    """
    size = _size(spec)
    measured = load(max(1, int(spec.resources.cpus)))
    examples = _examples(spec, measured)
    return {
        "name": spec.name,
        "recipe": spec.recipe,
        "objectives": [objective.model_dump() for objective in spec.objectives],
        "parameters": [
            {
                "key": key,
                "domain": domain.describe(),
                "when": {parent: list(values) for parent, values in domain.when.items()},
            }
            for key, domain in spec.search_space.domains.items()
        ],
        "size": size,
        "rejections": rejections(spec.search_space, spec.sampler.seed),
        "constraints": {
            "hard": list(spec.input_constraints),
            "outcome": [constraint.text for constraint in spec.outcome_constraints],
        },
        "budget": spec.budget.model_dump(),
        "examples": examples,
        "notes": _notes(spec, size, measured),
        "resolved": spec.resolved(),
    }


def _size(spec: SearchSpec) -> dict[str, Any]:
    space = spec.search_space
    count = space.cardinality()
    share = space.valid_share(np.random.default_rng(spec.sampler.seed))
    exact = count <= MAX_LISTED_POINTS
    return {
        "combinations": None if math.isinf(count) else int(count),
        "valid_share": share,
        "is_exact": exact,
        "valid_points": round(share * count) if exact else None,
    }


def _examples(spec: SearchSpec, measured: Calibration | None) -> list[dict[str, Any]]:
    space = spec.search_space
    rng = np.random.default_rng(spec.sampler.seed)
    examples: dict[str, dict[str, Any]] = {}
    for _ in range(4 * NUM_EXAMPLES):
        params = space.sample(rng)
        examples.setdefault(space.key(params), _example(spec, params, measured))
        if len(examples) == NUM_EXAMPLES:
            break
    return list(examples.values())


def _example(
    spec: SearchSpec, params: dict[str, Any], measured: Calibration | None
) -> dict[str, Any]:
    config = spec.trial_config(params)
    is_sequence = CARDS[config.data.name].is_sequence
    calibration = fitting(measured, config)
    epoch_s = predict_epoch_s(config, images_here(config.data), calibration)
    return {
        "params": params,
        "params_m": parameter_count(config.model) / 1e6,
        "macs_g": total_macs(config.model, is_sequence=is_sequence) / 1e9,
        "cpu_epoch_s": epoch_s,
        "cpu_trial_s": epoch_s * config.train.total_epochs,
        "cpu_memory_mib": predicted_memory(config, "cpu").likely_mib,
    }


def _notes(spec: SearchSpec, size: dict[str, Any], measured: Calibration | None) -> list[str]:
    notes = []
    points, trials = size["valid_points"], spec.budget.trials
    if points is not None and points < trials:
        notes.append(
            f"only {points} valid points for {trials} trials: the search ends when all ran"
        )
    if size["valid_share"] < _LOW_SHARE:
        notes.append("fewer than 1 % of the combinations are valid: narrow the domains if you can")
    if spec.sampler.name == "grid" and size["combinations"] is None:
        notes.append("a grid lists finite spaces only: with a continuous domain it draws at random")
    epochs = spec.base_config.train.total_epochs
    searched = {"train.epochs", "train.cooldown_epochs"} & set(spec.search_space.keys)
    grace = spec.stopping.grace_epochs
    is_asha = spec.stopping.name in ("asha", "asha_promotion")
    if is_asha and not searched and grace != "auto" and grace >= epochs:
        notes.append(
            f"no trial will be stopped early: grace_epochs {grace} covers all {epochs} epochs"
        )
    others = [o.metric for o in spec.objectives if o.metric not in _OF_ACCURACY]
    if spec.screen is not None and others:
        notes.append(
            f"screen scores what promises accuracy and knows nothing of {', '.join(others)}: "
            "it keeps the networks that cost more as well"
        )
    calibration = fitting(measured, spec.base_config)
    if calibration is None:
        notes.append(
            "CPU times are rough estimates, good to a factor of two; `spiketune calibrate` "
            "measures this machine"
        )
    else:
        notes.append(
            "CPU times are predicted from steps measured on this machine: off by "
            f"{100 * calibration.time_error:.0f} % there (median)"
        )
    return notes
