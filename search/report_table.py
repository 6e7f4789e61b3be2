"""The report's text parts: all trials, the chosen networks, what is needed to repeat them."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape
from typing import Any

import yaml

from search.records import TrialRecord
from search.report_columns import columns_of, plain_value, shown_metrics
from search.report_data import epochs_by_state, retrain_command
from search.report_figures import WORDS, cell
from search.report_plots import label, quantity, short
from search.results import ObjectiveLike
from search.tracking_uri import redact
from search.wording import duration
from spaces.redaction import redactor
from trainables.config import flatten

_MOST_CONFIGS = 12
MOST_ROWS = 500  # more are built by the script: cells are most of a page
FIRST_ROWS = 100
_PAGER = (
    '<p class="pager" id="pager" hidden><button type="button">‹ Before</button>'
    '<span aria-live="polite"></span><button type="button">After ›</button></p>'
)


def trials_table(
    records: Sequence[TrialRecord],
    objectives: Sequence[ObjectiveLike],
    table: Sequence[Mapping[str, Any]],
) -> tuple[str, dict[str, Any] | None]:
    """Every trial, ranked ones first; `data-v` holds what a cell rounds.

    Args:
        records: every trial.
        objectives: what was searched for.
        table: their rows, as of `rows`.

    Returns:
        The table as HTML and, where that has the first rows only, all of them as columns.
    """
    hide = cache(redactor())
    metrics = shown_metrics(records, objectives)
    keys = list(dict.fromkeys(key for r in records for key in r.params))
    by_number = {r.number: r for r in records}
    heads = ["Rank", "Trial", "Ended", "Epochs", *map(label, metrics), *map(short, keys)]
    heads += ["Attempts", "Took"]
    cells = "".join(
        f'<th scope="col"{" class=text" if head == "Ended" else ""}>{escape(hide(head))}</th>'
        for head in heads
    )
    is_large = len(table) > MOST_ROWS
    lines = []
    for row in table[:FIRST_ROWS] if is_large else table:
        record = by_number[row["number"]]
        reason = "" if row["reason"] in ("", "completed") else f" ({row['reason']})"
        shown = [metric_cell(row["metrics"].get(m), m, hide) for m in metrics]
        given = [metric_cell(row["params"].get(key), "", hide) for key in keys]
        took = "<td>–</td>"
        seconds = _took_s(record)
        if seconds is not None:
            took = f'<td data-v="{seconds!r}">{duration(seconds)}</td>'
        lines.append(
            f'<tr id="t{row["name"]}" data-state="{escape(row["state"])}"'
            f"{' class=front' if row['on_pareto'] else ''}>"
            f"<td>{row['rank'] or '–'}</td><td>{row['name']}</td>"
            f'<td class="text {escape(row["state"])}">{escape(row["state"] + hide(reason))}</td>'
            f"<td>{row['epochs']}</td>{''.join([*shown, *given])}"
            f"<td>{row['attempt']}</td>{took}</tr>"
        )
    note = (
        f'<p class="lead" id="first-rows">Without its script this page has the {FIRST_ROWS} best '
        f"of {len(table):,} trials; report.json beside it has all.</p>"
    )
    html = (
        f"{_tools(records)}{note if is_large else ''}"
        '<div class="scroll" tabindex="0" role="region" aria-label="All trials">'
        f'<table id="trials"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{_PAGER if is_large else ''}"
    )
    if not is_large:
        return html, None
    took_s = [_took_s(by_number[row["number"]]) for row in table]
    return html, columns_of(table, metrics, keys, took_s, hide)


def _took_s(record: TrialRecord) -> float | None:
    return None if record.ended_s is None else record.ended_s - record.started_s


def epochs_table(records: Sequence[TrialRecord]) -> str:
    """Epochs by what became of their trials."""
    lines = "".join(
        f"<tr><td>{WORDS[state]}</td><td>{sum(r.state == state for r in records)}</td>"
        f"<td>{count}</td></tr>"
        for state, count in epochs_by_state(records).items()
    )
    heads = "<tr><th>Trials that</th><th>Trials</th><th>Epochs</th></tr>"
    return f"<table><thead>{heads}</thead><tbody>{lines}</tbody></table>"


def rates_table(chosen: Sequence[tuple[str, Mapping[str, float]]], layers: Sequence[str]) -> str:
    """Firing rates a layer of the chosen networks."""
    heads = "".join(f"<th>{escape(name)}</th>" for name, _ in chosen)
    lines = "".join(
        f'<tr><td class="text">{escape(redact(layer))}</td>'
        + "".join(metric_cell(rates.get(layer)) for _, rates in chosen)
        + "</tr>"
        for layer in layers
    )
    return (
        f'<div class="scroll"><table><thead><tr><th class="text">Layer</th>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def networks(
    search: str,
    chosen: Sequence[tuple[str, TrialRecord]],
    objectives: Sequence[ObjectiveLike],
    runs_option: str,
) -> str:
    """What trains each chosen network again, and its exact configuration.

    Args:
        search: its name.
        chosen: what speaks for each network, and its trial.
        objectives: what was searched for.
        runs_option: what commands need beside the name.
    """
    parts = []
    for place, (why, record) in enumerate(chosen):
        found = " · ".join(quantity(o.metric, record.last[o.metric]) for o in objectives)
        command = f"<p><code>{escape(retrain_command(search, record, runs_option))}</code></p>"
        title = f"Trial {record.name}: {found}" + (f" ({why.lower()})" if why else "")
        config = _config(record) if place < _MOST_CONFIGS else ""
        parts.append(
            f"<details{' open' if not place else ''}><summary>{escape(title)}</summary>{command}"
            f'<dl class="facts">{_exact(record)}</dl>{config}</details>'
        )
    return "".join(parts)


def facts(info: Mapping[str, str]) -> str:
    """What is needed to repeat the search."""
    entries = []
    for name, value in info.items():
        text = escape(redact(str(value)))
        shown = f"<code>{text}</code>" if name == "command" else text
        entries.append(f"<dt>{escape(redact(name))}</dt><dd>{shown}</dd>")
    return f'<dl class="facts">{"".join(entries)}</dl>'


def _exact(record: TrialRecord) -> str:
    seeds = {k: v for k, v in flatten(record.config).items() if k.rpartition(".")[2] == "seed"}
    entries = {**record.params, **seeds, "configuration": record.config_hash}
    return "".join(
        f"<dt>{escape(redact(key))}</dt><dd>{escape(redact(_repr(value)))}</dd>"
        for key, value in entries.items()
    )


def _repr(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _config(record: TrialRecord) -> str:
    if not record.config:
        return ""
    text = yaml.safe_dump(json.loads(json.dumps(record.config, default=str)), sort_keys=False)
    return f"<details><summary>Configuration</summary><pre>{escape(redact(text))}</pre></details>"


def metric_cell(value: object, metric: str = "", hide: Callable[[str], str] = redact) -> str:
    """A table's cell; `data-v` holds what it rounds."""
    if value is None:
        return "<td>–</td>"
    if isinstance(value, float):
        text = cell(metric, value) if metric else plain_value(value)
        exact = "" if text == repr(value) else f' data-v="{value!r}"'
        return f"<td{exact}>{escape(text)}</td>"
    return f"<td>{escape(hide(plain_value(value)))}</td>"


def _tools(records: Sequence[TrialRecord]) -> str:
    """The filter; hidden until the script runs."""
    states = [state for state in WORDS if any(r.state == state for r in records)]
    options = "".join(f"<option>{state}</option>" for state in states)
    return (
        '<form class="tools" id="filter" hidden>'
        '<label>Filter <input type="search" id="words" autocomplete="off" '
        'placeholder="sdt accuracy>90 lr<0.005"></label>'
        f'<label>Ended <select id="state"><option value="">all</option>{options}</select></label>'
        '<label><input type="checkbox" id="best-only"> Pareto front only</label>'
        '<output id="shown" aria-live="polite"></output></form>'
    )
