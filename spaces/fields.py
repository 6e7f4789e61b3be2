"""What each dotted key of a TrialConfig accepts."""

from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from spaces.problems import did_you_mean, shown
from spaces.wording import explain
from trainables.config import StrictModel, TrialConfig

Kind = Literal["number", "text", "bool", "other"]

# Searching these would compare trials that saw different data or were measured differently.
FIXED_KEYS = frozenset(
    {
        "model.num_classes",
        "model.in_channels",
        "model.event_data",
        "data.name",
        "data.root",
        "data.val_frac",
        "data.test_frac",
        "data.split_seed",
        "energy.first_conv_once",
    }
)


@lru_cache(maxsize=1)
def sections() -> dict[str, type[StrictModel]]:
    """Map each section of a TrialConfig to its class."""
    return {
        name: info.annotation
        for name, info in TrialConfig.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, StrictModel)
    }


@lru_cache(maxsize=1)
def trial_keys() -> tuple[str, ...]:
    """List the dotted keys that `trial:` may set."""
    return tuple(
        f"{section}.{name}" for section, model in sections().items() for name in model.model_fields
    )


@lru_cache(maxsize=1)
def _field_keys() -> frozenset[str]:
    return frozenset(trial_keys())


@lru_cache(maxsize=1)
def searchable_keys() -> tuple[str, ...]:
    """List the dotted keys that `space:` may hold."""
    return tuple(key for key in trial_keys() if key not in FIXED_KEYS)


def field_type(key: str) -> Any:
    """The annotation of a field, with what it says of the value's range."""
    section, _, name = key.partition(".")
    info = sections()[section].model_fields[name]
    annotation: Any = info.annotation
    for extra in info.metadata:
        annotation = Annotated[annotation, extra]
    return annotation


@lru_cache(maxsize=256)
def _adapter(key: str) -> TypeAdapter[Any]:
    return TypeAdapter(field_type(key), config=ConfigDict(strict=True, allow_inf_nan=False))


@lru_cache(maxsize=256)
def kind_of(key: str) -> Kind:
    """Name what a field holds, as constraints see it."""
    section, _, name = key.partition(".")
    default = sections()[section].model_fields[name].default
    if isinstance(default, bool):
        return "bool"
    if isinstance(default, int | float):
        return "number"
    return "text" if isinstance(default, str) else "other"


def convert(key: str, value: object) -> Any:
    """Return the value as the field stores it (an int becomes a float in a float field).

    A key that names no field, as in a table of learning curves, leaves it as it is.

    Raises:
        ValueError: the field refuses the value; the message says what must hold.
    """
    if key not in _field_keys():
        return value
    try:
        return _adapter(key).validate_python(value)
    except ValidationError as error:
        raise ValueError(explain(dict(error.errors(include_url=False)[0]))) from None


def unknown_key(key: object, valid: tuple[str, ...]) -> str:
    """Word that a key is unknown, with the closest valid one."""
    return f"must be a known key, but got {shown(key)}{did_you_mean(key, valid)}"
