"""What a search is: the one definition that YAML, ledger and reports share."""

import math
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from spaces.constraints import InputConstraint, OutcomeConstraint, compile_constraint
from spaces.domains import Domain
from spaces.metrics import BETTER, Metric, Mode
from spaces.problems import shown
from spaces.reading import recipe
from spaces.semantics import Finding, Semantics, spec_findings
from spaces.space import SearchSpace
from trainables.config import StrictModel, TrialConfig, flatten, with_overrides

NAME_PATTERN = "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$"
_STORES = ("s3", "gs", "hdfs")
_ENVIRONMENT = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*")
_SECRET_PARAMETER = re.compile(
    r"[?&](\w*(password|passwd|pwd|token|secret|api_?key|access_?key|signature|credential)|sig)=",
    re.IGNORECASE,
)

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Points = Annotated[tuple[dict[str, Any], ...], Field(max_length=1000, strict=False)]


class SpecError(ValueError):
    """Parts of a search space are each well-formed but do not fit together."""

    def __init__(self, findings: list[Finding]) -> None:
        """Join the first messages; `findings` keeps all."""
        super().__init__("; ".join(finding.message for finding in findings[:5]))
        self.findings = findings


def _without_secret(
    value: str, advice: str = "put the URL into an environment variable and write `env:NAME` here"
) -> str:
    if value.startswith("env:"):
        if not _ENVIRONMENT.fullmatch(value):
            raise ValueError(f"must be env:NAME of an environment variable, but got {shown(value)}")
        return value
    try:
        password = urlsplit(value).password
    except ValueError:
        raise ValueError("must be a URL or path, but it cannot be read as one") from None
    if password is not None or _SECRET_PARAMETER.search(value):
        raise ValueError(f"must not hold a password: {advice}")
    return value


def checkpoint_place(value: str) -> str:
    """Pass a store's URL, an absolute path or `env:NAME`.

    Raises:
        ValueError: it is none of these, or holds a secret.
    """
    _without_secret(value, "credentials come from the environment (AWS_ACCESS_KEY_ID, …) alone")
    if value.startswith("env:"):
        return value
    parts = urlsplit(value)
    is_remote = parts.scheme in _STORES and bool(parts.hostname)
    is_path = parts.scheme in ("", "file") and not parts.netloc and parts.path.startswith("/")
    if not is_remote and not is_path:
        raise ValueError(
            "must be s3://BUCKET/PREFIX, gs://…, hdfs://…, file:///… or an absolute path, "
            f"but got {shown(value)}"
        )
    return value


def _gpus(value: object) -> object:
    if value == "auto" and isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise ValueError(f"must be `auto` or a number >= 0, but got {shown(value)}")
    return float(value)


Uri = Annotated[str, Field(min_length=1), AfterValidator(_without_secret)]
CheckpointPlace = Annotated[str, Field(min_length=1), AfterValidator(checkpoint_place)]


class Objective(StrictModel):
    """One metric to make as large or as small as possible."""

    metric: Metric
    mode: Mode


class Sampler(StrictModel):
    """Who proposes trials, and what is tried first.

    First come `points`, which may leave parameters out; then with `start_from: paper` the published
    configurations for the recipe's data set, as near as the space has them; then the best trials
    of the earlier searches in `warm_start`. `warm_points` are these, written down when the search
    starts, so that it does not depend on the others any more. With `cost_aware` what a trial may
    gain is weighed against the seconds that it is predicted to take.
    """

    name: Literal["gp", "tpe", "nsga2", "qmc", "random", "grid"] = "gp"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    cost_aware: bool = False
    points: Points = ()
    start_from: Literal["paper"] | None = None
    warm_start: Annotated[tuple[Name, ...], Field(max_length=20, strict=False)] = ()
    warm_points: Points = ()


class Screen(StrictModel):
    """Scores proposals before they are trained: of so many for a trial the best-scored is kept.

    The score is of the untrained network, so it tells nothing of training's parameters.
    """

    candidates: Annotated[int, Field(ge=2, le=64)]


class Stopping(StrictModel):
    """When a trial ends early.

    `metric` is the first objective's unless set; `mode` follows from the metric where it can.
    `grace_epochs: auto` is a tenth of a full training, and longer as soon as the ranks there prove
    to say nothing of later ones.
    `check_share` of the trials that would be stopped run on, so that the report can say how often
    stopping is wrong. `patience_epochs` is for `plateau`; `auto` is a fifth of a full training.
    `trial_timeout_s` is the time without a report after which a trial counts as hanging;
    `max_retries` is how often a trial may start again after it hung or its worker was lost.

    With `asha_promotion` a trial waits at every rung, its worker free for others, and goes on from
    its checkpoint once it is among the best there; those that still wait when nothing is left to
    run are stopped. `check_share` is then of the trials that would wait.

    A trial whose network does not fit into the device's memory has failed; with `out_of_memory:
    accumulate` it is tried once more with its batches worked through in twice as many parts
    (`train.accumulate`), if that happened before its first epoch was over. Batch norm then sees
    half as many samples at a time, so the configuration that its results carry says so.
    """

    name: Literal["asha", "asha_promotion", "mo_asha", "hyperband", "median", "plateau", "none"] = (
        "asha"
    )
    metric: Metric | None = None
    mode: Mode | None = None
    grace_epochs: PositiveInt | Literal["auto"] = "auto"
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    patience_epochs: PositiveInt | Literal["auto"] = "auto"
    check_share: Annotated[float, Field(ge=0.0, le=0.5)] = 0.02
    trial_timeout_s: PositiveFloat | None = None
    max_retries: Annotated[int, Field(ge=0, le=20)] = 2
    out_of_memory: Literal["fail", "accumulate"] = "fail"


class Budget(StrictModel):
    """When the search ends, whichever comes first."""

    trials: PositiveInt
    hours: PositiveFloat | None = None

    @property
    def most_s(self) -> float:
        """Seconds that it may take; infinite without hours."""
        return math.inf if self.hours is None else 3600.0 * self.hours


class Resources(StrictModel):
    """What each trial occupies, and how many run at once (None: as many as fit).

    `processes` share a trial's batches and its CPUs and GPUs; `auto` is one a whole GPU.
    `gpus: auto` gives a trial the share of a card that its predicted memory needs, where there are
    cards; `gpu_memory_gib` says how much a card has where it is not to be asked (None).
    """

    cpus: PositiveFloat = 1.0
    gpus: Annotated[float | Literal["auto"], BeforeValidator(_gpus)] = "auto"
    gpu_memory_gib: PositiveFloat | None = None
    processes: PositiveInt | Literal["auto"] = "auto"
    concurrent: PositiveInt | None = None


class Tracking(StrictModel):
    """Where MLflow is; without `required` a search goes on when it cannot be reached."""

    uri: Uri | None = None
    experiment: Annotated[str, Field(min_length=1, max_length=128)] = "spiketune"
    required: bool = True


class Storage(StrictModel):
    """Where ledger and checkpoints are.

    `ledger` is a database URL, `env:NAME` if it holds a password, None for a file.
    `checkpoints` is a store that every machine reaches (`s3://bucket/prefix`, `gs://…`, `hdfs://…`,
    `file:///…`, an absolute path, or `env:NAME` of one); None for the search's folder, which every
    machine must then see.
    """

    ledger: Uri | None = None
    checkpoints: CheckpointPlace | None = None


class SearchSpec(StrictModel):
    """A whole search.

    Raises:
        pydantic.ValidationError: a part has the wrong type, or parts do not fit; then its
            context holds a SpecError that lists every finding.
    """

    name: Name
    recipe: str
    trial: dict[str, Any] = Field(default_factory=dict)
    objectives: Annotated[
        tuple[Objective, ...], Field(min_length=1, max_length=3, strict=False)
    ] = (Objective(metric="val_top1", mode="max"),)
    space: dict[str, Domain]
    constraints: Annotated[tuple[str, ...], Field(strict=False)] = ()
    sampler: Sampler = Sampler()
    screen: Screen | None = None
    stopping: Stopping = Stopping()
    budget: Budget
    resources: Resources = Resources()
    tracking: Tracking = Tracking()
    storage: Storage = Storage()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        findings = spec_findings(self.as_given())
        if findings:
            raise SpecError(findings)
        return self

    @classmethod
    def from_resolved(cls, tree: Mapping[str, Any]) -> Self:
        """Read back what `resolved` wrote.

        Raises:
            pydantic.ValidationError: it no longer fits this version or its recipes.
        """
        return cls.model_validate({k: v for k, v in tree.items() if k != "base_config"})

    def as_given(self) -> dict[str, Any]:
        """Return the plain tree of the file, defaults filled in."""
        return self.model_dump(mode="json", by_alias=True)

    def resolved(self) -> dict[str, Any]:
        """Return a plain JSON-able tree of everything, with the full base configuration."""
        tree = self.as_given()
        tree["stopping"] |= {"metric": self.stopping_metric, "mode": self.stopping_mode}
        return tree | {"base_config": self.base_config.model_dump(mode="json")}

    @property
    def stopping_metric(self) -> Metric:
        """The metric by which trials are stopped early."""
        return self.stopping.metric or self.objectives[0].metric

    @property
    def stopping_mode(self) -> Mode:
        """Which way the stopping metric is better."""
        modes = {objective.metric: objective.mode for objective in self.objectives}
        metric = self.stopping_metric
        return self.stopping.mode or modes.get(metric) or BETTER[metric]

    @cached_property
    def search_space(self) -> SearchSpace:
        """The points that may be proposed."""
        return Semantics(self.as_given()).search_space()

    @cached_property
    def outcome_constraints(self) -> tuple[OutcomeConstraint, ...]:
        """Bounds on measured metrics."""
        compiled = (compile_constraint(text) for text in self.constraints)
        return tuple(item for item in compiled if isinstance(item, OutcomeConstraint))

    @property
    def input_constraints(self) -> tuple[str, ...]:
        """Texts of the constraints that no proposal ever breaks."""
        compiled = (compile_constraint(text) for text in self.constraints)
        return tuple(item.text for item in compiled if isinstance(item, InputConstraint))

    @cached_property
    def base_config(self) -> TrialConfig:
        """Recipe and `trial` merged: the value of every parameter that is not searched.

        Where these alone do not fit together without the searched ones, those take the values
        of one valid point.
        """
        try:
            return self.trial_config({})
        except ValidationError:
            return self.trial_config(self.search_space.sample(np.random.default_rng(0)))

    def trial_config(self, params: Mapping[str, Any]) -> TrialConfig:
        """Set parameters on the base configuration.

        Raises:
            pydantic.ValidationError: the result is not a valid configuration.
            KeyError: a parameter is no key of a trial configuration.
        """
        tree = recipe(self.recipe).model_dump()
        values = {**self.trial, **params}
        unknown = values.keys() - flatten(tree).keys()
        if unknown:
            raise KeyError(min(unknown))
        return TrialConfig.model_validate(with_overrides(tree, values))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is compiled on demand: closures cannot be pickled."""
        state = super().__getstate__()
        kept = {k: v for k, v in state["__dict__"].items() if k in type(self).model_fields}
        return state | {"__dict__": kept}
