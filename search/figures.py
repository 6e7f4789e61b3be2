"""The report's plots as plotly figures that stand alone, in a notebook or a file."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from search.insight import insight
from search.records import TrialRecord
from search.report_choice import chosen_networks, picks_of
from search.report_data import history, rates_of, spans
from search.report_effects import effect_plot, importance_bars, shown_effects
from search.report_effort import epochs_reached, timeline
from search.report_figures import (
    Tree,
    best_so_far,
    layer_rates,
    learning_curves,
    trade_off,
    trial_words,
    volume_so_far,
)
from search.report_parallel import parallel
from search.results import pareto
from spaces.schema import SearchSpec

_VARIABLE = re.compile(r"var\(--([a-z]+)\)")


def figures(spec: SearchSpec, records: Sequence[TrialRecord]) -> dict[str, Callable[[], go.Figure]]:
    """What draws each of the report's plots, by the report's name of it."""
    words = {record.number: trial_words(record, spec.objectives) for record in records}
    trees = _trees(spec, records)
    return {name: partial(_drawn, tree, words) for name, tree in trees.items()}


def _drawn(tree: Callable[[], Tree], words: Mapping[int, str]) -> go.Figure:
    return standing_alone(tree(), words)


def _trees(spec: SearchSpec, records: Sequence[TrialRecord]) -> dict[str, Callable[[], Tree]]:
    objectives = spec.objectives
    full_epochs = spec.base_config.train.total_epochs
    front = pareto(records, objectives)
    picks = picks_of(front, objectives)
    found: dict[str, Callable[[], Tree]] = {}
    if picks:
        moments = history(records, objectives)
        if len(objectives) > 1 or any("params_m" in r.last for r in records):
            numbers = [record.number for _, record in picks]
            found["front"] = partial(trade_off, records, objectives, numbers)
        found["curves"] = partial(learning_curves, records, objectives, picks[0][1].number)
        found["best"] = partial(best_so_far, records, objectives, moments)
        if len(objectives) > 1:
            found["volume"] = partial(volume_so_far, moments)
        lines = parallel(records, objectives)
        if lines is not None:
            found["parallel"] = lambda: lines
    learnt = insight(spec, records)
    for index, finding in enumerate(learnt.objectives if learnt else ()):
        found[f"importance{index}"] = partial(importance_bars, finding.importances)
        for place, effect in enumerate(shown_effects(finding)):
            found[f"effect{index}x{place}"] = partial(effect_plot, effect, finding.metric)
    if any(record.epochs for record in records):
        found["epochs"] = partial(epochs_reached, records, full_epochs)
        found["timeline"] = partial(timeline, spans(records))
    known, layers = rates_of(chosen_networks(picks, front))
    if known:
        found["rates"] = partial(layer_rates, known, layers)
    return found


def standing_alone(tree: Tree, words: Mapping[int, str]) -> go.Figure:
    """A plot of the page without the page: its light colours, and its words at the points."""
    shown = _coloured(tree)
    for trace in shown["data"]:
        if "%{hovertext}" in (trace.get("hovertemplate") or ""):
            trace["hovertext"] = [words.get(number, "") for number in trace["customdata"]]
    layout = {**shown["layout"], "template": "plotly_white"}
    return go.Figure(shown["data"], layout)


def _coloured(value: Any) -> Any:
    if isinstance(value, str):
        found = _VARIABLE.fullmatch(value)
        return palette()[found[1]] if found else value
    if isinstance(value, Mapping):
        return {key: _coloured(item) for key, item in value.items()}
    return [_coloured(item) for item in value] if isinstance(value, list | tuple) else value


@cache
def palette() -> dict[str, str]:
    """The page's light colours by name."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    light = style.partition("@media")[0]
    return dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", light))
