"""One self-contained HTML file that says what a search found and which network to pick."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from search import report_effort as effort_plots
from search import report_figures as live_plots
from search import report_plots as plots
from search.insight import Insight
from search.records import TrialRecord
from search.report_choice import Pick, chosen_networks, headline, link, picks_of
from search.report_columns import plain_value
from search.report_data import (
    Moment,
    history,
    json_text,
    rates_of,
    report_tree,
    spans,
    turns,
)
from search.report_figures import Tree, trial_words
from search.report_insight import insight_section
from search.report_page import page
from search.report_parallel import parallel
from search.report_plots import figure, label, quantity, short
from search.report_sample import Shown, shown_trials
from search.report_table import (
    epochs_table,
    facts,
    networks,
    rates_table,
    trials_table,
)
from search.results import ObjectiveLike, StoppingCheck, pareto, rows, saved_epochs
from search.tracking_uri import redact
from spaces.redaction import redactor
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
    check: StoppingCheck | None = None,
    runs_option: str = "",
    *,
    running: bool = False,
) -> dict[str, Any]:
    """Write the report and its numbers, replacing older ones only when they are complete.

    Args:
        path: the HTML file; the numbers lie beside it as `.json`.
        title: the search's name.
        info: what a reader needs to reproduce it (versions, seed, `command`), shown as given.
        records: every trial.
        objectives: what was searched for, the first one leading.
        full_epochs: epochs of a trial that is not stopped; None leaves the saving out.
        stopping_note: how often early stopping was wrong, in a sentence.
        insight: what mattered and what to search next; None leaves it out.
        check: the numbers behind the note.
        runs_option: what commands need beside the name to find the search.
        running: whether a driver still runs the search.

    Returns:
        The numbers that were written.
    """
    front = pareto(records, objectives)
    picks = picks_of(front, objectives)
    moments = history(records, objectives)
    shown = shown_trials(records, front, moments)
    ranked = rows(records, objectives)
    table, columns = trials_table(records, objectives, ranked)
    live: dict[str, Tree] = {}
    body = [
        f'<p class="eyebrow">Spiketune report · {escape(redact(title))}</p>',
        f"<h1>{headline(picks, front, objectives)}</h1>",
        f'<p class="lead">{_summary(records, objectives, full_epochs)} {escape(stopping_note)}</p>',
        _still_running(title, runs_option) if running else "",
        _cards(picks, objectives),
        _plots(records, objectives, picks, moments, shown, live),
        insight_section(insight, live) if insight else "",
        _effort(records, full_epochs, stopping_note, live),
        _rates(chosen_networks(picks, front), live),
        "<h2>All trials</h2>",
        '<p class="lead">Tinted rows: no other trial beats them.</p>' if front else "",
        table,
        "<h2>How to reproduce</h2>",
        networks(title, chosen_networks(picks, front), objectives, runs_option),
        facts(info),
    ]
    hide = redactor()
    words = {r.number: trial_words(r, objectives, hide) for r in shown.records}
    tree = report_tree(
        title,
        info,
        records,
        objectives,
        full_epochs,
        check,
        insight,
        runs_option,
        running=running,
        moments=moments,
        table=ranked,
    )
    write_atomically(path.with_suffix(".json"), json_text(tree).encode())
    write_atomically(path, page(title, "\n".join(body), live, words, columns).encode())
    return tree


def _still_running(title: str, runs_option: str) -> str:
    command = escape(redact(f"spiketune report {title}{runs_option}"))
    return (
        '<p class="hint">The search is still running: <code>'
        f"{command}</code> writes this page anew with what has come in since.</p>"
    )


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
    return escape(f"{text} {_saving(records, full_epochs)}".rstrip())


def _saving(records: Sequence[TrialRecord], full_epochs: int | None) -> str:
    spent, full = saved_epochs(records, full_epochs or 0)
    if full <= spent:
        return ""
    left = full - spent
    return f"Stopping early left {left:,} of {full:,} epochs out ({left / full:.0%})."


def _cards(picks: Sequence[Pick], objectives: Sequence[ObjectiveLike]) -> str:
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
            f"<li>{escape(redact(f'{short(k)} {plain_value(v)}'))}</li>"
            for k, v in record.params.items()
        )
        cards.append(
            f'<section class="pick"><h2>{escape(why)}: trial {link(record)}</h2>'
            f'<p class="values">{escape(shown)}</p><p>{escape(", ".join(extra))}</p>'
            f"<ul>{params}</ul></section>"
        )
    return f'<div class="picks">{"".join(cards)}</div>' if cards else ""


def _plots(
    records: Sequence[TrialRecord],
    objectives: Sequence[ObjectiveLike],
    picks: Sequence[Pick],
    moments: Sequence[Moment],
    shown: Shown,
    live: dict[str, Tree],
) -> str:
    if not picks:
        return ""
    best = picks[0][1].number
    live["curves"] = live_plots.learning_curves(shown.records, objectives, best)
    live["best"] = live_plots.best_so_far(shown.records, objectives, moments)
    parts = [
        figure(
            "Learning curves",
            f"One line a trial. {shown.note}",
            plots.learning_curves(shown.records, objectives, best),
            _key("best", ("failed", "failed")),
            "curves",
        ),
        figure(
            "Best so far",
            f"The line {'rises' if objectives[0].mode == 'max' else 'falls'} to each new best; "
            f"flat at the end: more trials would add little. {shown.note}",
            plots.best_so_far(shown.records, objectives),
            _key("best so far"),
            "best",
        ),
    ]
    if len(objectives) > 1:
        live["volume"] = live_plots.volume_so_far(moments if shown.is_whole else turns(moments))
        volume = next((m.hypervolume for m in moments[::-1] if m.hypervolume is not None), 0.0)
        parts.append(
            figure(
                "Hypervolume",
                "What the front dominates, up to the worst value seen of each objective.",
                f'<p>At the end: <b data-v="{volume!r}">{volume:.4g}</b></p>',
                "",
                "volume",
            )
        )
    first = _first_plot(shown, objectives, [record.number for _, record in picks], live)
    progress = "".join(parts[1:])
    return (
        f'{first}{parts[0]}<div class="plots">{progress}</div>'
        f"{_parallel(records, objectives, shown, live)}"
    )


def _first_plot(
    shown: Shown,
    objectives: Sequence[ObjectiveLike],
    picks: Sequence[int],
    live: dict[str, Tree],
) -> str:
    nouns = [label(o.metric).split(" (")[0] for o in objectives]
    records = shown.records
    if len(objectives) == 1 and not any("params_m" in r.last for r in records):
        return ""
    live["front"] = live_plots.trade_off(records, objectives, picks)
    if len(objectives) > 1:
        return figure(
            f"{nouns[0]} against {nouns[1].lower()}",
            "No trial is better than a green one in one respect without being worse in another. "
            "Trials stopped far below are left out (a double click shows them). A click on a point "
            f"leads to its row. {shown.note}",
            plots.trade_off(records, objectives, picks),
            _key("Pareto front"),
            "front",
        )
    return figure(
        f"{nouns[0]} against size",
        f"What more parameters buy. A click on a point leads to its row. {shown.note}",
        plots.against_size(records, objectives),
        _key("best"),
        "front",
    )


def _parallel(
    records: Sequence[TrialRecord],
    objectives: Sequence[ObjectiveLike],
    shown: Shown,
    live: dict[str, Tree],
) -> str:
    tree = parallel(records, objectives, {record.number for record in shown.records})
    if tree is None:
        return ""
    live["parallel"] = tree
    return figure(
        "All parameters at once",
        "One line a trial, from its parameters to what came of them; a name above the plot hides "
        f"or shows its lines. {shown.note}",
        '<p>The table of <a href="#trials">all trials</a> says the same.</p>',
        "",
        "parallel",
    )


def _effort(
    records: Sequence[TrialRecord],
    full_epochs: int | None,
    stopping_note: str,
    live: dict[str, Tree],
) -> str:
    """Where epochs and time went."""
    if not any(r.epochs for r in records):
        return ""
    live["epochs"] = effort_plots.epochs_reached(records, full_epochs)
    bars = spans(records)
    live["timeline"] = effort_plots.timeline(bars)
    joined = (
        f"{len(bars):,} attempts are too many to tell apart: a bar is those of a lane that are "
        "close together, in the colour of the fate that most of them had."
    )
    epochs = figure(
        "Epochs",
        f"Trials that trained each epoch. {_saving(records, full_epochs)} {stopping_note}".strip(),
        epochs_table(records),
        "",
        "epochs",
    )
    timeline = figure(
        "Timeline",
        "One bar an attempt of a trial, in as many lanes as ran at once."
        + (f" {joined}" if effort_plots.are_joined(bars) else ""),
        '<p>The table of <a href="#trials">all trials</a> has each one\'s attempts and time.</p>',
        "",
        "timeline",
    )
    return f'<h2>Where epochs and time went</h2><div class="plots">{epochs}{timeline}</div>'


def _rates(chosen: Sequence[Pick], live: dict[str, Tree]) -> str:
    """Firing rates a layer of the chosen networks."""
    known, layers = rates_of(chosen)
    if not known:
        return ""
    live["rates"] = live_plots.layer_rates(known, layers)
    return figure(
        "Firing rates by layer",
        "Of the networks to choose from, at their last epoch.",
        rates_table(known, layers),
        "",
        "rates",
    )


def _key(front: str, *more: tuple[str, str]) -> str:
    entries = [("front", front), ("finished", "ran to the end"), ("stopped", "stopped"), *more]
    items = (
        f'<li><i style="background: var(--{colour})"></i>{escape(text)}</li>'
        for colour, text in entries
    )
    return f'<ul class="key">{"".join(items)}</ul>'
