"""What the ledger's records say as pandas tables, to the last digit."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from search.records import TrialRecord
from search.report_data import STATES
from search.results import pareto, rank
from spaces.domains import AnyDomain, ChoiceDomain, IntDomain
from spaces.schema import SearchSpec

_STATE = pd.CategoricalDtype(list(STATES))


def trials_frame(spec: SearchSpec, records: Sequence[TrialRecord]) -> pd.DataFrame:
    """A row a trial, indexed by number.

    Columns: `state`, `reason`, `epochs`, `rank` (missing for what has no result), `on_pareto`; the
    metrics of the last epoch, objectives first; the parameters under the YAML's names, missing
    where a parameter does not exist for a trial; `started`, `ended`.
    """
    places = {r.number: place for place, r in enumerate(rank(records, spec.objectives), start=1)}
    front = {r.number for r in pareto(records, spec.objectives)}
    index = pd.Index([r.number for r in records], dtype="int64", name="trial")
    columns: dict[str, Any] = {
        "state": pd.Categorical([r.state for r in records], dtype=_STATE),
        "reason": pd.array([r.reason for r in records], dtype="str"),
        "epochs": pd.array([len(r.epochs) for r in records], dtype="int64"),
        "rank": pd.array([places.get(r.number) for r in records], dtype="Int64"),
        "on_pareto": pd.array([r.number in front for r in records], dtype="bool"),
    }
    for metric in _metrics(spec, (r.last for r in records)):
        columns[metric] = pd.array([r.last.get(metric) for r in records], dtype="float64")
    for key, domain in spec.search_space.domains.items():
        columns[key] = pd.array([r.params.get(key) for r in records], dtype=dtype_of(domain))
    columns["started"] = _times([r.started_s for r in records])
    columns["ended"] = _times([r.ended_s for r in records])
    return pd.DataFrame(columns, index=index)


def epochs_frame(spec: SearchSpec, records: Sequence[TrialRecord]) -> pd.DataFrame:
    """A row an epoch of a trial: `trial`, `epoch`, every metric, `time` of the report."""
    rows = [(r.number, entry) for r in records for entry in r.epochs]
    columns: dict[str, Any] = {
        "trial": pd.array([number for number, _ in rows], dtype="int64"),
        "epoch": pd.array([entry.epoch for _, entry in rows], dtype="int64"),
    }
    for metric in _metrics(spec, (entry.metrics for _, entry in rows)):
        if metric not in columns:
            values = [entry.metrics.get(metric) for _, entry in rows]
            columns[metric] = pd.array(values, dtype="float64")
    columns["time"] = _times([entry.time_s for _, entry in rows])
    return pd.DataFrame(columns)


def dtype_of(domain: AnyDomain) -> Any:
    """The column type that holds a domain's values as they are, and none."""
    if isinstance(domain, IntDomain):
        return "Int64"
    if not isinstance(domain, ChoiceDomain):
        return "float64"
    kinds = {type(value) for value in domain.choice}
    if kinds == {str}:
        return pd.CategoricalDtype(list(domain.choice))
    plain = {bool: "boolean", int: "Int64", float: "float64"}
    return plain[kinds.pop()] if len(kinds) == 1 and kinds <= plain.keys() else "object"


def _metrics(spec: SearchSpec, told: Iterable[Any]) -> list[str]:
    """Every metric once, objectives first."""
    first = dict.fromkeys(objective.metric for objective in spec.objectives)
    return list(first | dict.fromkeys(name for metrics in told for name in metrics))


def _times(seconds: Sequence[float | None]) -> Any:
    return pd.to_datetime(pd.array(seconds, dtype="float64"), unit="s", utc=True)
