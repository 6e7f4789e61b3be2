"""The numbers of a report: pure functions over the ledger's records."""

import heapq
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from html import unescape
from re import sub
from typing import Any

from search.insight import Insight
from search.records import Attempt, TrialRecord
from search.report_choice import Pick, headline, picks_of
from search.results import (
    ObjectiveLike,
    StoppingCheck,
    hypervolume,
    pareto,
    rows,
    saved_epochs,
    still_leading,
    values,
    worst,
)
from search.tracking_uri import redact
from spaces.redaction import redactor

STATES = ("finished", "stopped", "paused", "failed", "running")
_MOST_NETWORKS = 6  # lines of firing rates that can be told apart


@dataclass(frozen=True)
class Moment:
    """A search when a trial had ended or paused.

    Attributes:
        time_s: since the first trial's start.
        trial: its number.
        value: of its first objective.
        best: of the first objective so far.
        hypervolume: of the front so far; None with one objective.
    """

    time_s: float
    trial: int
    value: float
    best: float
    hypervolume: float | None


@dataclass(frozen=True)
class Span:
    """One attempt's time on a worker.

    Attributes:
        lane: the first place that was free; the ledger does not name workers.
        trial: its number.
        attempt: from 1.
        of: attempts of the trial.
        start_s: since the first trial's start.
        end_s: since then.
        fate: the trial's state, `failed` for an attempt that was lost.
        reason: why the attempt, or the trial with it, ended.
    """

    lane: int
    trial: int
    attempt: int
    of: int
    start_s: float
    end_s: float
    fate: str
    reason: str


def history(
    records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]
) -> tuple[Moment, ...]:
    """Best value and hypervolume over time; the reference is the worst value ever seen."""
    start_s = min((r.started_s for r in records), default=0.0)
    reference, modes = worst(records, objectives), [o.mode for o in objectives]
    better = max if objectives[0].mode == "max" else min
    ended = sorted(
        (_known_s(r), r.number, found)
        for r in records
        if (found := values(r, objectives)) is not None
    )
    moments: list[Moment] = []
    front: list[tuple[float, ...]] = []
    volume = None
    for time_s, number, found in ended:
        left = still_leading(front, found, modes)
        if left is not None:
            front = [*left, found]
            volume = hypervolume(front, reference, modes) if len(objectives) > 1 else None
        best = better(found[0], moments[-1].best) if moments else found[0]
        moments.append(Moment(time_s - start_s, number, found[0], best, volume))
    return tuple(moments)


def turns(moments: Sequence[Moment]) -> list[Moment]:
    """The moments at which the best value or the hypervolume changed, and the last one.

    A line through them is the line through all.
    """
    found: list[Moment] = []
    for moment in moments:
        last = found[-1] if found else None
        if last is None or (last.best, last.hypervolume) != (moment.best, moment.hypervolume):
            found.append(moment)
    if found and found[-1] is not moments[-1]:
        found.append(moments[-1])
    return found


def spans(records: Sequence[TrialRecord]) -> tuple[Span, ...]:
    """Every attempt as a bar: as many lanes as attempts ever ran at once."""
    start_s = min((r.started_s for r in records), default=0.0)
    attempts = sorted(
        (
            (attempt.started_s, _end_s(record, place, attempt), record.number, place, record)
            for record in records
            for place, attempt in enumerate(_attempts(record))
        ),
        key=lambda entry: entry[:4],
    )
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    found = []
    for begun_s, end_s, number, place, record in attempts:
        while busy and busy[0][0] <= begun_s:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (end_s, lane))
        known = _attempts(record)
        last = place == len(known) - 1
        lost = known[place].reason not in ("", "paused")
        fate = "failed" if lost else record.state if last else "paused"
        reason = known[place].reason or (record.reason if last else "")
        found.append(
            Span(
                lane,
                number,
                place + 1,
                len(known),
                begun_s - start_s,
                end_s - start_s,
                fate,
                reason,
            )
        )
    return tuple(found)


def epochs_by_state(records: Sequence[TrialRecord]) -> dict[str, int]:
    """Epochs that the trials of each state took."""
    counts = {s: sum(len(r.epochs) for r in records if r.state == s) for s in STATES}
    return {state: count for state, count in counts.items() if count}


def rates_of(
    chosen: Sequence[Pick],
) -> tuple[list[tuple[str, Mapping[str, float]]], list[str]]:
    """Firing rates of chosen networks by name, and every layer in the order of the deepest."""
    known = [
        (record.name, record.extra["layer_rates"])
        for _, record in chosen
        if record.extra.get("layer_rates")
    ][:_MOST_NETWORKS]
    return known, _layers([list(rates) for _, rates in known])


def retrain_command(search: str, record: TrialRecord, runs_option: str) -> str:
    """What trains a trial's network again."""
    return redact(f"spiketune train --from {search}:{record.number}{runs_option}")


def report_tree(
    search: str,
    info: Mapping[str, str],
    records: Sequence[TrialRecord],
    objectives: Sequence[ObjectiveLike],
    full_epochs: int | None = None,
    check: StoppingCheck | None = None,
    insight: Insight | None = None,
    runs_option: str = "",
    *,
    running: bool = False,
    moments: Sequence[Moment] | None = None,
    table: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """What `report.json` holds: the report's numbers in full precision, without secrets.

    Args:
        search: its name.
        info: what a reader needs to reproduce it.
        records: every trial.
        objectives: what was searched for, the first one leading.
        full_epochs: epochs of a trial that is not stopped; None leaves the saving out.
        check: how often early stopping was wrong.
        insight: what mattered; None with too few trials.
        runs_option: what commands need beside the name to find the search.
        running: whether a driver still runs it.
        moments: its history, where it is known already.
        table: its rows, likewise.
    """
    moments = history(records, objectives) if moments is None else moments
    front = pareto(records, objectives)
    picks = picks_of(front, objectives)
    table = rows(records, objectives) if table is None else table
    by_number = {row["number"]: dict(row) for row in table}
    for record in records:
        by_number[record.number] |= {
            "started_s": record.started_s,
            "ended_s": record.ended_s,
            "attempts": [{**vars(attempt)} for attempt in record.attempts],
            "hosts": record.hosts,
        }
    spent, full = saved_epochs(records, full_epochs or 0)
    saved = {"trained": spent, "without_stopping": full, "left_out": full - spent}
    tree = {
        "search": search,
        "running": running,
        "info": dict(info),
        "objectives": [{"metric": o.metric, "mode": o.mode} for o in objectives],
        "headline": _plain(headline(picks, front, objectives)),
        "picks": [{"why": why, "trial": record.number} for why, record in picks],
        "pareto": [
            by_number[record.number]
            | {
                "command": retrain_command(search, record, runs_option),
                "config": record.config,
                "layer_rates": dict(record.extra.get("layer_rates") or {}),
            }
            for record in front
        ],
        "epochs": epochs_by_state(records),
        "savings": saved if full_epochs else None,
        "stopping_check": None if check is None else asdict(check),
        "hypervolume_reference": list(worst(records, objectives)),
        "history": [{**vars(moment)} for moment in moments],
        "insight": insight.tree() if insight else None,
        "trials": list(by_number.values()),
    }
    shown: dict[str, Any] = _without_secrets(tree, cache(redactor()))
    return shown


def plain_headline(records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]) -> str:
    """Which network to pick, in a sentence without markup."""
    front = pareto(records, objectives)
    return _plain(headline(picks_of(front, objectives), front, objectives))


def json_text(tree: Mapping[str, Any]) -> str:
    """A tree as JSON, a trial or a moment a line: for people, and for line-wise tools."""
    parts = []
    for key, value in tree.items():
        if isinstance(value, list) and value:
            lines = ",\n  ".join(json.dumps(item, allow_nan=False) for item in value)
            text = f"[\n  {lines}\n ]"
        else:
            text = json.dumps(value, allow_nan=False)
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _plain(markup: str) -> str:
    return unescape(sub(r"<[^>]*>", "", markup))


def _layers(networks: Sequence[list[str]]) -> list[str]:
    """Every layer once, each after the one that it follows in its own network."""
    deepest = max(networks, key=len, default=[])
    found = list(deepest)
    for network in networks:
        for before, layer in itertools.pairwise(["", *network]):
            if layer not in found:
                found.insert(found.index(before) + 1 if before else 0, layer)
    return found


def _without_secrets(value: Any, hide: Callable[[str], str]) -> Any:
    """The tree with no secrets and no infinities."""
    kind = type(value)
    # Most of a large search are plain numbers: they are to cost nothing.
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is str:
        return hide(value)
    if kind is dict or isinstance(value, Mapping):
        return {hide(str(key)): _without_secrets(item, hide) for key, item in value.items()}
    if kind is list or isinstance(value, tuple):
        return [_without_secrets(item, hide) for item in value]
    return value


def _attempts(record: TrialRecord) -> Sequence[Attempt]:
    return record.attempts or (Attempt(record.started_s),)


def _known_s(record: TrialRecord) -> float:
    """When it ended, or else was heard of last."""
    if record.ended_s is not None:
        return record.ended_s
    return record.epochs[-1].time_s if record.epochs else record.started_s


def _end_s(record: TrialRecord, place: int, attempt: Attempt) -> float:
    known = _attempts(record)
    end_s = attempt.ended_s
    if end_s is None:
        end_s = _known_s(record) if place == len(known) - 1 else known[place + 1].started_s
    return max(attempt.started_s, end_s)
