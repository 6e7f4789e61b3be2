"""Everything that makes a configuration invalid, as rules that know which keys they read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from spaces.constraints import Hint, InputConstraint
from spaces.fields import sections
from spaces.problems import shown
from spaces.wording import explain
from trainables.config import ModelConfig, model_problems, start_problem
from trainables.cost import parameter_count, total_macs
from trainables.data_cards import CARDS


class Point(dict[str, Any]):
    """A complete configuration by dotted key; computes `params_m` and `macs_g` when asked."""

    def __missing__(self, key: str) -> float:
        """Derive a cost that constraints may mention."""
        model = {name: self[f"model.{name}"] for name in ModelConfig.model_fields}
        if key == "params_m":
            return parameter_count(model) / 1e6
        if key == "macs_g":
            card = CARDS[self["data.name"]]
            return total_macs(model, is_sequence=card.is_sequence) / 1e9
        raise KeyError(key)


@dataclass(frozen=True)
class Rule:
    """One condition that a complete configuration must meet.

    Attributes:
        text: how a person knows it.
        keys: the configuration keys it depends on.
        holds: tells whether a point meets it; may raise ArithmeticError for "no".
        index: which of the user's constraints it is, None for the network's own rules.
    """

    text: str
    keys: frozenset[str]
    holds: Callable[[Point], bool] = field(repr=False)
    why: Callable[[Point], str] | None = field(default=None, repr=False)
    index: int | None = None
    hints: tuple[Hint, ...] = field(default=(), repr=False)

    def broken_by(self, point: Point) -> str:
        """Word what must hold and what this point has."""
        if self.why is not None:
            return self.why(point)
        got = ", ".join(f"{key}={shown(point[key])}" for key in sorted(self.keys)[:6])
        return f"`{self.text}` must hold, but got {got}"


class _Recorder(Mapping[str, Any]):
    """A mapping that notes what is read from it."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


def _keys_read(cost: Callable[[Mapping[str, Any]], int]) -> frozenset[str]:
    recorder = _Recorder(ModelConfig().model_dump())
    cost(recorder)
    return frozenset(f"model.{name}" for name in recorder.read)


DERIVED_KEYS = {"params_m": _keys_read(parameter_count), "macs_g": _keys_read(total_macs)}

SECTION = "rules of"  # a whole section of the configuration

# Which fields the network's rules tie together: each group is checked as soon as its keys are
# known, the others standing at values that break no rule.
_MODEL_GROUPS = (
    ("width",),
    ("width", "heads"),
    ("backbone", "attention"),
    ("attention", "timesteps", "block_size"),
)
_NEUTRAL = ModelConfig().model_dump() | {
    "width": 8,
    "heads": 1,
    "attention": "sdt",
    "timesteps": 1,
    "block_size": 1,
}


def _group_rule(group: tuple[str, ...]) -> Rule:
    def found(point: Point) -> list[str]:
        return model_problems(_NEUTRAL | {name: point[f"model.{name}"] for name in group})

    return Rule(
        text=f"network rule on {', '.join(group)}",
        keys=frozenset(f"model.{name}" for name in group),
        holds=lambda point: not found(point),
        why=lambda point: "; ".join(found(point)),
    )


def _section_rule(section: str) -> Rule:
    model = sections()[section]
    keys = [(name, f"{section}.{name}") for name in model.model_fields]

    def why(point: Point) -> str:
        try:
            model(**{name: point[key] for name, key in keys})
        except ValidationError as error:
            return explain(dict(error.errors(include_url=False)[0]))
        return ""

    return Rule(
        text=f"{SECTION} {section}",
        keys=frozenset(key for _, key in keys),
        holds=lambda point: not why(point),
        why=why,
    )


def _start_rule() -> Rule:
    keys = ("train.start_timesteps", "model.timesteps", "data.name")

    def why(point: Point) -> str:
        return start_problem(*(point[key] for key in keys))

    return Rule(
        text="rule on start_timesteps and timesteps",
        keys=frozenset(keys),
        holds=lambda point: not why(point),
        why=why,
    )


def config_rules() -> list[Rule]:
    """List the rules of the configuration classes themselves."""
    rules = [_group_rule(group) for group in _MODEL_GROUPS]
    rules.append(_start_rule())
    rules += [
        _section_rule(name)
        for name, model in sections().items()
        if model.__pydantic_decorators__.model_validators
    ]
    return rules


def constraint_rules(constraints: Sequence[tuple[int, InputConstraint]]) -> list[Rule]:
    """Turn the user's hard constraints into rules."""
    rules = []
    for index, constraint in constraints:
        keys = frozenset[str]().union(
            *(DERIVED_KEYS.get(name, frozenset({name})) for name in constraint.names)
        )
        hints = tuple(hint for hint in constraint.hints if hint.key not in DERIVED_KEYS)
        rules.append(Rule(constraint.text, keys, constraint.evaluate, None, index, hints))
    return rules


def holds(rule: Rule, point: Point) -> bool:
    """Tell whether a point meets a rule; one that cannot be computed is not met."""
    try:
        return bool(rule.holds(point))
    except ArithmeticError:
        return False
