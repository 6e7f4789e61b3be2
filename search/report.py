"""One self-contained HTML file that says what a search found and which network to pick."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from search import report_plots as plots
from search.insight import Insight
from search.records import TrialRecord
from search.report_insight import insight_section
from search.report_plots import figure, label, number, quantity, short
from search.results import ObjectiveLike, pareto, rows, saved_epochs
from search.tracking_uri import redact
from trainables.files import write_atomically

_STATE_WORDS = {
    "finished": "ran to the end",
    "stopped": "were stopped early",
    "failed": "failed",
    "paused": "are paused",
    "running": "have not ended",
}
_PICK_SIZE = ("params_m", "sops_g", "firing_rate")


def write_report(
    path: Path,
    title: str,
    info: Mapping[str, str],
    records: Sequence[TrialRecord],
    objectives: Sequence[ObjectiveLike],
    full_epochs: int | None = None,
    stopping_note: str = "",
    insight: Insight | None = None,
) -> None:
    """Write the report, replacing an older one only when it is complete.

    Args:
        path: the HTML file.
        title: the search's name.
        info: what a reader needs to reproduce it (versions, seed, `command`), shown as given.
        records: every trial.
        objectives: what was searched for, the first one leading.
        full_epochs: epochs of a trial that is not stopped; None leaves the saving out.
        stopping_note: how often early stopping was wrong, in a sentence.
        insight: what mattered and what to search next; None leaves it out.
    """
    front = pareto(records, objectives)
    picks = _picks(front, objectives)
    body = [
        f'<p class="eyebrow">Spiketune report · {escape(redact(title))}</p>',
        f"<h1>{_headline(picks, objectives)}</h1>",
        f'<p class="lead">{_summary(records, objectives, full_epochs)} {escape(stopping_note)}</p>',
        _cards(picks, objectives),
        _plots(records, objectives, [record.number for _, record in picks]),
        insight_section(insight) if insight else "",
        "<h2>All trials</h2>",
        '<p class="lead">Tinted rows: no other trial beats them.</p>' if front else "",
        _table(records, objectives),
        "<h2>How to reproduce</h2>",
        _facts(info),
    ]
    write_atomically(path, _page(title, "\n".join(body)).encode())


def _page(title: str, body: str) -> str:
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(redact(title))}</title>\n<style>\n{style}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _picks(
    front: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]
) -> list[tuple[str, TrialRecord]]:
    """Trials worth choosing, with what speaks for each; the first one leads."""
    if not front:
        return []
    found = [(_superlative(objectives[0]), front[0])]
    if len(objectives) > 1:
        last = sorted(front, key=lambda r: _signed(r, objectives[1]))[0]
        found.append(("Best balance", _balanced(front, objectives)))
        found.append((_superlative(objectives[1]), last))
    first_of = {record.number: (why, record) for why, record in reversed(found)}
    return [pick for pick in found if first_of[pick[1].number] == pick]


def _superlative(objective: ObjectiveLike) -> str:
    named = {
        ("val_top1", "max"): "Most accurate",
        ("energy_mj", "min"): "Least energy",
        ("params_m", "min"): "Fewest parameters",
    }
    word = "Highest" if objective.mode == "max" else "Lowest"
    return named.get((objective.metric, objective.mode), f"{word} {label(objective.metric)}")


def _signed(record: TrialRecord, objective: ObjectiveLike) -> float:
    value = record.last[objective.metric]
    return -value if objective.mode == "max" else value


def _balanced(front: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]) -> TrialRecord:
    """The front's trial nearest to having the best of every objective, each scaled to 0…1."""
    losses = {r.number: [_signed(r, objective) for objective in objectives] for r in front}
    lows = [min(column) for column in zip(*losses.values(), strict=True)]
    highs = [max(column) for column in zip(*losses.values(), strict=True)]

    def distance(record: TrialRecord) -> float:
        return math.hypot(
            *(
                (loss - low) / (high - low)
                for loss, low, high in zip(losses[record.number], lows, highs, strict=True)
                if high > low
            )
        )

    return min(front, key=lambda r: (distance(r), r.number))


def _headline(picks: Sequence[tuple[str, TrialRecord]], objectives: Sequence[ObjectiveLike]) -> str:
    if not picks:
        return "No trial has ended with values that can be compared yet."
    record = picks[0][1]
    found = " at ".join(quantity(o.metric, record.last[o.metric]) for o in objectives[:2])
    text = f"Pick trial {_link(record)}: {escape(found)}"
    if len(picks) < 2:
        return f"{text}."
    other = picks[1][1]
    return f"{text}; or {_link(other)} {escape(_trade(record, other, objectives))}."


def _trade(record: TrialRecord, other: TrialRecord, objectives: Sequence[ObjectiveLike]) -> str:
    """Say what choosing `other` instead changes in the first two objectives."""
    changes = []
    for objective in objectives[:2]:
        old, new = record.last[objective.metric], other.last[objective.metric]
        noun = label(objective.metric).split(" (")[0].lower()
        if quantity(objective.metric, 0.0).endswith("%"):
            changes.append(f"{abs(new - old):.2f} points {'more' if new > old else 'less'} {noun}")
        elif old:
            ratio = abs(new - old) / abs(old)
            changes.append(f"{ratio:.0%} {'more' if new > old else 'less'} {noun}")
    return "with " + " and ".join(reversed(changes)) if changes else ""


def _summary(
    records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike], full_epochs: int | None
) -> str:
    counts = {state: sum(r.state == state for r in records) for state in _STATE_WORDS}
    parts = ", ".join(f"{n} {_STATE_WORDS[state]}" for state, n in counts.items() if n)
    wanted = " and ".join(
        f"{'high' if o.mode == 'max' else 'low'} {label(o.metric).split(' (')[0].lower()}"
        for o in objectives
    )
    text = f"Searched for {wanted} in {len(records)} trials" + (f": {parts}." if parts else ".")
    if full_epochs:
        spent, full = saved_epochs(records, full_epochs)
        if full > spent:
            text += (
                f" Stopping early left {full - spent:,} of {full:,} epochs out"
                f" ({(full - spent) / full:.0%})."
            )
    return escape(text)


def _cards(picks: Sequence[tuple[str, TrialRecord]], objectives: Sequence[ObjectiveLike]) -> str:
    cards = []
    for why, record in picks:
        shown = " · ".join(quantity(o.metric, record.last[o.metric]) for o in objectives)
        names = {o.metric for o in objectives}
        extra = [
            f"{label(m).split(' (')[0].lower()} {quantity(m, record.last[m])}"
            for m in _PICK_SIZE
            if m in record.last and m not in names
        ]
        params = "".join(
            f"<li>{escape(redact(f'{short(k)} {_plain(v)}'))}</li>"
            for k, v in record.params.items()
        )
        cards.append(
            f'<section class="pick"><h2>{escape(why)}: trial {_link(record)}</h2>'
            f'<p class="values">{escape(shown)}</p><p>{escape(", ".join(extra))}</p>'
            f"<ul>{params}</ul></section>"
        )
    return f'<div class="picks">{"".join(cards)}</div>' if cards else ""


def _plots(
    records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike], picks: Sequence[int]
) -> str:
    if not picks:
        return ""
    direction = "rises" if objectives[0].mode == "max" else "falls"
    curves = figure(
        "Learning curves",
        "One line a trial.",
        plots.learning_curves(records, objectives, picks[0]),
        _key("best", ("failed", "failed")),
    )
    progress = figure(
        "Best so far",
        f"The line {direction} to each new best; flat at the end: more trials would add little.",
        plots.best_so_far(records, objectives),
        _key("best so far"),
    )
    first = _first_plot(records, objectives, picks)
    return f'{first}<div class="plots">{curves}{progress}</div>'


def _first_plot(
    records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike], picks: Sequence[int]
) -> str:
    nouns = [label(o.metric).split(" (")[0] for o in objectives]
    if len(objectives) > 1:
        return figure(
            f"{nouns[0]} against {nouns[1].lower()}",
            "No trial is better than a green one in one respect without being worse in another. "
            "Trials stopped far below are left out. A point leads to its row.",
            plots.trade_off(records, objectives, picks),
            _key("Pareto front"),
        )
    if not any("params_m" in r.last for r in records):
        return ""
    return figure(
        f"{nouns[0]} against size",
        "What more parameters buy. A point leads to its row.",
        plots.against_size(records, objectives),
        _key("best"),
    )


def _key(front: str, *more: tuple[str, str]) -> str:
    entries = [("front", front), ("finished", "ran to the end"), ("stopped", "stopped"), *more]
    items = (
        f'<li><i style="background: var(--{colour})"></i>{escape(text)}</li>'
        for colour, text in entries
    )
    return f'<ul class="key">{"".join(items)}</ul>'


def _table(records: Sequence[TrialRecord], objectives: Sequence[ObjectiveLike]) -> str:
    metrics = [o.metric for o in objectives]
    metrics += [m for m in ("params_m",) if m not in metrics and any(m in r.last for r in records)]
    keys = list(dict.fromkeys(key for r in records for key in r.params))
    heads = ["Rank", "Trial", "Ended", "Epochs", *map(label, metrics), *map(short, keys)]
    cells = "".join(
        f"<th{' class=text' if head == 'Ended' else ''}>{escape(head)}</th>" for head in heads
    )
    lines = []
    for row in rows(records, objectives):
        reason = "" if row["reason"] in ("", "completed") else f" ({row['reason']})"
        shown = [
            number(m, v, 4) if (v := row["metrics"].get(m)) is not None else "–" for m in metrics
        ]
        given = [_plain(row["params"][key]) if key in row["params"] else "–" for key in keys]
        rest = "".join(f"<td>{escape(redact(text))}</td>" for text in [*shown, *given])
        lines.append(
            f'<tr id="t{row["name"]}"{" class=front" if row["on_pareto"] else ""}>'
            f"<td>{row['rank'] or '–'}</td><td>{row['name']}</td>"
            f'<td class="text {escape(row["state"])}">{escape(row["state"] + redact(reason))}</td>'
            f"<td>{row['epochs']}</td>{rest}</tr>"
        )
    return (
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _facts(info: Mapping[str, str]) -> str:
    entries = []
    for name, value in info.items():
        text = escape(redact(str(value)))
        shown = f"<code>{text}</code>" if name == "command" else text
        entries.append(f"<dt>{escape(name)}</dt><dd>{shown}</dd>")
    return f'<dl class="facts">{"".join(entries)}</dl>'


def _link(record: TrialRecord) -> str:
    return f'<a href="#t{record.name}">{record.name}</a>'


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
