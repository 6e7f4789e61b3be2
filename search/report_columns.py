"""A large search's table as columns that the page's script makes rows of, a page at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from search.records import TrialRecord
from search.report_plots import number
from search.results import ObjectiveLike
from search.wording import duration

Column = dict[str, Any]
_MOST_DISTINCT = 1 / 3  # of the rows: then each value is kept once
SIZE = "params_m"
_EXACT = 2**53  # larger integers are no numbers of a browser's


def columns_of(
    table: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    keys: Sequence[str],
    took_s: Sequence[float | None],
    hide: Callable[[str], str],
) -> dict[str, Any]:
    """Every row of the table of trials, without its markup.

    Args:
        table: the rows, in their order.
        metrics: columns of the last epoch's metrics.
        keys: columns of the parameters.
        took_s: seconds that each trial took.
        hide: takes secrets out of a text.

    Returns:
        `fates` with each row's state, `front` with the places of the rows of the Pareto set, and
        `columns`. A column is its `values`, or the distinct ones and each row's place `at` among
        them; `look` says how the script writes a value: `rank` (as many
        rows as there are values have one, from 1 on), `name`, `percent`, `digits` (four of
        them), `plain`, or, where no rule gives the text, `told` with the column `texts`.
    """
    reasons = [row["reason"] for row in table]
    shown = ["" if reason in ("", "completed") else hide(f" ({reason})") for reason in reasons]
    ended = [row["state"] + reason for row, reason in zip(table, shown, strict=True)]
    times = [None if seconds is None else duration(seconds) for seconds in took_s]
    return {
        "fates": _coded(row["state"] for row in table),
        "front": [place for place, row in enumerate(table) if row["on_pareto"]],
        "columns": [
            {"look": "rank", "values": sum(row["rank"] is not None for row in table)},
            _column("name", (row["number"] for row in table)),
            _column("plain", ended),
            _column("plain", (row["epochs"] for row in table)),
            *(_column(_look(m), (row["metrics"].get(m) for row in table)) for m in metrics),
            *(_given([row["params"].get(key) for row in table], hide) for key in keys),
            _column("plain", (row["attempt"] for row in table)),
            _column("told", (s if s is None else round(s, 3) for s in took_s))
            | {"texts": _coded(times)},
        ],
    }


def shown_metrics(records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]) -> list[str]:
    """Metrics that the table has a column for."""
    metrics = [o.metric for o in objectives]
    sized = SIZE not in metrics and any(SIZE in record.last for record in records)
    return [*metrics, SIZE] if sized else metrics


def _look(metric: str) -> str:
    return "percent" if number(metric, 1.0) == "1.00" else "digits"


def _given(values: Sequence[Any], hide: Callable[[str], str]) -> Column:
    """A parameter's column; what the script could write otherwise than we do has texts."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {float}:
        return _column("digits", values)
    texts = [None if value is None else hide(plain_value(value)) for value in values]
    if not kinds <= {int, float}:
        return _column("plain", texts)
    exact = [v if v is None or abs(v) < _EXACT or isinstance(v, float) else str(v) for v in values]
    return (
        _column("told", exact) | {"texts": _coded(texts)}
        if float in kinds
        else (_column("plain", exact))
    )


def plain_value(value: object) -> str:
    """A parameter's value for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _column(look: str, values: Iterable[Any]) -> Column:
    return {"look": look} | _coded(values)


def _coded(values: Iterable[Any]) -> Column:
    found = list(values)
    # 1 is not true, nor is it 1.0.
    kinds = [(type(value), value) for value in found]
    distinct = list(dict.fromkeys(kinds))
    if len(distinct) > len(found) * _MOST_DISTINCT:
        return {"values": found}
    places = {kind: place for place, kind in enumerate(distinct)}
    return {"values": [value for _, value in distinct], "at": [places[kind] for kind in kinds]}
