"""The three kinds of domain a searched parameter can have: int, float, choice."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from spaces.problems import shown
from trainables.config import StrictModel

Scalar = bool | int | float | str
MAX_INT = 2**53  # beyond it neighbouring integers are one float, and logarithms lose values


def _scalar(value: object) -> object:
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"must be a number, text, true or false, but got {shown(value)}")
    return value


def _values(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


ScalarItem = Annotated[Any, BeforeValidator(_scalar)]
WhenValues = Annotated[tuple[ScalarItem, ...], BeforeValidator(_values), Field(min_length=1)]
BoundedInt = Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)]


class _Conditional(StrictModel):
    """What all domains share: the parent values under which the parameter exists."""

    when: dict[str, WhenValues] = Field(default_factory=dict)


class IntDomain(_Conditional):
    """Integers from low to high, both included, `step` apart."""

    form: ClassVar[str] = "int"

    bounds: Annotated[tuple[BoundedInt, BoundedInt], Field(alias="int", strict=False)]
    step: Annotated[int, Field(ge=1, le=MAX_INT)] = 1
    log: bool = False

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        low, high = self.bounds
        _check_order(low, high, self.log)
        if self.log and self.step != 1:
            raise ValueError(f"`step == 1` must hold with log, but got step={self.step}")
        if (high - low) % self.step:
            raise ValueError(
                f"`step` must divide `high - low`, but got low={low}, high={high}, step={self.step}"
            )
        return self

    @property
    def size(self) -> int | float:
        """How many values there are."""
        return (self.bounds[1] - self.bounds[0]) // self.step + 1

    def contains(self, value: object) -> bool:
        """Tell whether the value is one of the domain's."""
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
            return False
        low, high = self.bounds
        return low <= value <= high and (value - low) % self.step == 0

    def draw(self, unit: float) -> int:
        """Map a uniform number of [0, 1) to a value."""
        low, high = self.bounds
        if self.log:
            return min(high, max(low, math.floor(_geometric(low, high + 1, unit))))
        size = (high - low) // self.step + 1
        return low + self.step * min(size - 1, int(unit * size))

    def values(self) -> Iterator[int]:
        """Go through all values, lowest first."""
        return iter(range(self.bounds[0], self.bounds[1] + 1, self.step))

    def nearest(self, number: float) -> int:
        """Return the value closest to a number."""
        low, high = self.bounds
        inside = min(max(number, low), high)
        return low + self.step * round((inside - low) / self.step)

    def ends(self) -> tuple[Scalar, ...]:
        """Return the values whose validity implies that of all others."""
        return self.bounds

    def describe(self) -> str:
        """Write the domain for a person."""
        low, high = self.bounds
        step = f" step {self.step}" if self.step != 1 else ""
        return f"int {low} … {high}{step}{' log' if self.log else ''}"


class FloatDomain(_Conditional):
    """Real numbers from low to high, both included."""

    form: ClassVar[str] = "float"

    bounds: Annotated[tuple[float, float], Field(alias="float", strict=False)]
    log: bool = False

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        low, high = self.bounds
        _check_order(low, high, self.log)
        if math.isinf(high - low):
            raise ValueError(f"`high - low` must be finite, but got low={low}, high={high}")
        return self

    @property
    def size(self) -> int | float:
        """One when low equals high, else infinite."""
        return 1 if self.bounds[0] == self.bounds[1] else math.inf

    def contains(self, value: object) -> bool:
        """Tell whether the value is one of the domain's."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.bounds[0] <= value <= self.bounds[1]

    def draw(self, unit: float) -> float:
        """Map a uniform number of [0, 1) to a value."""
        low, high = self.bounds
        value = _geometric(low, high, unit) if self.log else low + unit * (high - low)
        return min(high, max(low, value))

    def values(self) -> Iterator[float]:
        """Yield the only value of a domain of size one."""
        return iter(self.bounds[:1])

    def nearest(self, number: float) -> float:
        """Return the value closest to a number."""
        return min(max(float(number), self.bounds[0]), self.bounds[1])

    def ends(self) -> tuple[Scalar, ...]:
        """Return the values whose validity implies that of all others."""
        return self.bounds

    def describe(self) -> str:
        """Write the domain for a person."""
        low, high = self.bounds
        return f"float {low:g} … {high:g}{' log' if self.log else ''}"


class ChoiceDomain(_Conditional):
    """One of the listed values."""

    form: ClassVar[str] = "choice"

    choice: Annotated[tuple[ScalarItem, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _values_differ(self) -> Self:
        seen = set()
        for value in self.choice:
            if (type(value), value) in seen:
                raise ValueError(f"choices must differ, but got {shown(value)} twice")
            seen.add((type(value), value))
        return self

    @property
    def size(self) -> int | float:
        """How many values there are."""
        return len(self.choice)

    def contains(self, value: object) -> bool:
        """Tell whether the value is one of the domain's."""
        return any(
            value == item and isinstance(value, bool) == isinstance(item, bool)
            for item in self.choice
        )

    def draw(self, unit: float) -> Scalar:
        """Map a uniform number of [0, 1) to a value."""
        value: Scalar = self.choice[min(len(self.choice) - 1, int(unit * len(self.choice)))]
        return value

    def values(self) -> Iterator[Scalar]:
        """Go through all values in the order given."""
        return iter(self.choice)

    def ends(self) -> tuple[Scalar, ...]:
        """Return the values whose validity implies that of all others: all of them."""
        return self.choice

    def describe(self) -> str:
        """Write the domain for a person."""
        return "choice " + ", ".join(_plain(value) for value in self.choice)


def _plain(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_order(low: float, high: float, log: bool) -> None:  # noqa: FBT001
    if low > high:
        raise ValueError(f"`low <= high` must hold, but got low={low}, high={high}")
    if log and low <= 0:
        raise ValueError(f"`low > 0` must hold with log, but got low={low}")


def _geometric(low: float, high: float, unit: float) -> float:
    return math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))


def _form(value: object) -> str | None:
    if isinstance(value, IntDomain | FloatDomain | ChoiceDomain):
        return f"<{value.form}>"
    if isinstance(value, Mapping):
        forms = [form for form in ("int", "float", "choice") if form in value]
        if len(forms) == 1:
            return f"<{forms[0]}>"
    return None


Domain = Annotated[
    Annotated[IntDomain, Tag("<int>")]
    | Annotated[FloatDomain, Tag("<float>")]
    | Annotated[ChoiceDomain, Tag("<choice>")],
    Discriminator(
        _form,
        custom_error_type="domain_form",
        custom_error_message="must hold exactly one of int, float, choice",
    ),
]
AnyDomain = IntDomain | FloatDomain | ChoiceDomain
