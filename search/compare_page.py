"""A comparison of searches as one self-contained HTML file, in the look of the report."""

from collections.abc import Sequence
from html import escape

from search.compare import Matched, Step
from search.compare_figures import (
    COLOURS,
    course_plot,
    fronts_plot,
    settings_plot,
    share_of_all,
    words_of,
)
from search.compare_tables import (
    CAUTION,
    DIFFERENCES,
    SETTINGS,
    Comparison,
    effort_text,
    share_text,
)
from search.report_figures import Tree
from search.report_page import page
from search.report_plots import figure, label, quantity
from search.report_table import metric_cell
from search.results import best
from search.tracking_uri import redact


def comparison_page(found: Comparison) -> str:
    """The whole file."""
    live: dict[str, Tree] = {}
    names = ", ".join(f"{e.letter} {e.label}" for e in found.entries)
    body = [
        f'<p class="eyebrow">Spiketune comparison · {escape(redact(names))}</p>',
        f"<h1>{escape(_headline(found))}</h1>",
        f'<p class="lead">{escape(CAUTION)}</p>',
        *(f'<p class="hint"><b>{escape(redact(text))}</b></p>' for text in found.warnings),
        _searches(found),
        _plots(found, live),
        "<h2>The best after equal effort</h2>",
        '<p class="lead">All had as much as the one that had the least. A trial counts from its '
        "last epoch on; seconds are of the machines that the searches ran on.</p>",
        *(_matched(found, one) for one in found.matched),
        _settings(found, live),
        _differences(found),
    ]
    title = f"{names} compared"
    return page(title, "\n".join(body), live, words_of(found))


def _headline(found: Comparison) -> str:
    """What each search had after equal effort, in a sentence."""
    first = found.matched[0]
    told = [
        f"{entry.letter} has {_values_text(found, step)}" if step else f"{entry.letter} has nothing"
        for entry, step in zip(found.entries, first.steps, strict=True)
    ]
    return f"After {effort_text(first)} each, {', '.join(told)}."


def _values_text(found: Comparison, step: Step) -> str:
    pairs = zip(found.objectives[:2], step.values, strict=False)
    return " at ".join(quantity(o.metric, value) for o, value in pairs)


def _searches(found: Comparison) -> str:
    metrics = [o.metric for o in found.objectives]
    several = len(metrics) > 1
    heads = ["", "Search", "Trials", "Epochs", *(f"Best: {label(m)}" for m in metrics)]
    if several:
        heads += ["Front", "Hypervolume", *(f"Beats of {e.letter}'s" for e in found.entries)]
    lines = []
    for place, entry in enumerate(found.entries):
        top = best(entry.records, found.objectives)
        cells = [metric_cell(len(entry.records)), metric_cell(entry.epochs)]
        cells += [metric_cell(top.last[m] if top else None, m) for m in metrics]
        if several:
            volume = found.fronts.hypervolumes[place]
            shown = share_text(volume, found.fronts.of_all)
            cells += [
                metric_cell(len(found.fronts.numbers[place])),
                f"<td data-v={volume!r}>{shown}</td>",
            ]
            cells += [_share(share) for share in found.fronts.coverage[place]]
        lines.append(
            f'<tr>{_letter(found, place)}<td class="text">{escape(redact(entry.label))}</td>'
            f"{''.join(cells)}</tr>"
        )
    note = (
        '<p class="lead note">Hypervolume: what a front dominates, up to the worst value that any '
        "of the searches has seen of each objective, as a share of that of all fronts together. "
        "Beats: the share of another front that has a trial of this one nowhere worse and "
        "somewhere better.</p>"
    )
    return _table(heads, lines, text=2) + (note if several else "")


def _plots(found: Comparison, live: dict[str, Tree]) -> str:
    first = found.objectives[0].metric
    parts = []
    if len(found.objectives) > 1:
        live["fronts"] = fronts_plot(found)
        nouns = [label(o.metric).split(" (")[0] for o in found.objectives]
        parts.append(
            figure(
                f"{nouns[0]} against {nouns[1].lower()}",
                "The Pareto front of each search; faint: its other trials. A click on a name in "
                "the key hides a search.",
                _still("The table above compares the fronts."),
                "",
                "fronts",
            )
        )
    live["course"] = course_plot(found, label(first), lambda step: step.values[0])
    courses = [
        figure(
            "Best so far",
            "Dotted: where all have trained as many epochs as the one with the fewest.",
            _still("The tables below say the same after equal effort."),
            "",
            "course",
        )
    ]
    if len(found.objectives) > 1:
        live["volume"] = course_plot(found, "Hypervolume, share of all", share_of_all(found))
        courses.append(
            figure(
                "Hypervolume so far",
                "As a share of that of all fronts together.",
                _still("The tables below say the same after equal effort."),
                "",
                "volume",
            )
        )
    return f'{"".join(parts)}<div class="plots">{"".join(courses)}</div>'


def _matched(found: Comparison, one: Matched) -> str:
    metrics = [o.metric for o in found.objectives]
    several = len(metrics) > 1
    heads = [f"After {effort_text(one)}", "Of trials", "Best trial", *map(label, metrics)]
    heads += ["Hypervolume"] if several else []
    lines = []
    for place, step in enumerate(one.steps):
        if step is None:
            cells = ["<td>0</td>", *["<td>–</td>"] * (len(heads) - 2)]
        else:
            pairs = zip(metrics, step.values, strict=True)
            cells = [metric_cell(step.trials), f"<td>{step.best:05d}</td>"]
            cells += [metric_cell(value, metric) for metric, value in pairs]
            shown = share_text(step.hypervolume, found.fronts.of_all)
            cells += [f"<td data-v={step.hypervolume!r}>{shown}</td>"] if several else []
        lines.append(f"<tr>{_letter(found, place)}{''.join(cells)}</tr>")
    return _table(heads, lines, text=1)


def _settings(found: Comparison, live: dict[str, Tree]) -> str:
    parts = []
    tree = settings_plot(found)
    if tree is not None:
        live["settings"] = tree
        whose = "Pareto front" if len(found.objectives) > 1 else "best quarter"
        parts.append(
            figure(
                "Settings of the best trials",
                f"One line a trial of each search's {whose}, from its parameters to what came of "
                "them.",
                _still("The table below says where they differ."),
                "",
                "settings",
            )
        )
    if found.shown_settings:
        lines = []
        for setting in found.shown_settings:
            name = setting.key
            for place, one in enumerate(setting.chosen):
                value = escape(redact(one.text))
                value = f"<b>{value}</b>" if setting.moved else value
                lines.append(
                    f'<tr><td class="text">{escape(redact(name))}</td>{_letter(found, place)}'
                    f'<td class="text">{value}</td>'
                    f'<td class="text">{escape(redact(one.domain))}</td></tr>'
                )
                name = ""
        parts.append(
            f"<h2>{SETTINGS}</h2>"
            '<p class="lead">Numbers from a range: the median and the quarters around it; others: '
            "the most frequent value with its share. Bold: noticeably apart.</p>"
        )
        parts.append(_table(["Setting", "", "Of the best", "Searched"], lines, text=4))
    return "".join(parts)


def _differences(found: Comparison) -> str:
    if not found.differences:
        return ""
    lines = [
        f'<tr><td class="text">{escape(redact(one.key))}</td>'
        + "".join(f'<td class="text">{escape(redact(value))}</td>' for value in one.values)
        + "</tr>"
        for one in found.differences
    ]
    heads = ["Key", *(entry.letter for entry in found.entries)]
    return f"<h2>{DIFFERENCES}</h2>{_table(heads, lines, text=len(heads))}"


def _table(heads: Sequence[str], lines: Sequence[str], text: int) -> str:
    """A table whose first columns are text."""
    cells = "".join(
        f'<th scope="col"{" class=text" if place < text else ""}>{escape(redact(head))}</th>'
        for place, head in enumerate(heads)
    )
    return (
        '<div class="scroll" tabindex="0"><table>'
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _letter(found: Comparison, place: int) -> str:
    colour = f"var(--{COLOURS[place]})"
    letter = found.entries[place].letter
    return f'<td class="text"><b style="color: {colour}">{letter}</b></td>'


def _share(share: float | None) -> str:
    return "<td>–</td>" if share is None else f"<td data-v={share!r}>{share:.0%}</td>"


def _still(text: str) -> str:
    return f"<p>{escape(text)}</p>"
