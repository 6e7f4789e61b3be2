"""What searches were told, and which settings their best trials have, side by side."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from search.compare import Entry
from search.records import TrialRecord
from search.results import ObjectiveLike, pareto, rank
from search.wording import value_text
from spaces.domains import AnyDomain, ChoiceDomain
from trainables.config import flatten

_LEAST_CHOSEN = 3
_MOST_LISTED = 8  # values of a range that are compared one by one
_MOVED_SPAN = 0.2  # of what both searches cover, between medians
_MOVED_SHARE = 1 / 3  # of the chosen trials, that would need another value
# Said elsewhere, or nothing that results depend on.
_LEFT_OUT = ("name", "space.", "trial.", "tracking.", "storage.", "sampler.warm_points")
# What makes numbers of two searches no longer comparable, with the reason.
_SPLIT = ("data.val_frac", "data.test_frac", "data.split_seed")
_REASONS = {
    "data.name": "another data set",
    **dict.fromkeys(_SPLIT, "another validation split"),
}
_ENERGY = ("energy_mj", "sops_g")


@dataclass(frozen=True)
class Chosen:
    """The values that a search's best trials have of a parameter.

    Attributes:
        domain: what could be chosen, for a person; `fixed at VALUE` where it was not searched.
        trials: best trials that have the parameter.
        median: of numbers from a range; None otherwise.
        low: a quarter of them is below.
        high: a quarter is above.
        shares: of each value, most frequent first; empty for numbers from a range.
        values: by trial number.
    """

    domain: str
    trials: int
    median: float | None
    low: float | None
    high: float | None
    shares: dict[str, float]
    values: dict[int, Any]

    @property
    def text(self) -> str:
        """The middle or the most frequent value."""
        if not self.trials:
            return "-"
        if self.median is not None:
            return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"
        value, share = next(iter(self.shares.items()))
        return f"{value} ({share:.0%})"


@dataclass(frozen=True)
class Setting:
    """A parameter that some of the searches have chosen.

    Attributes:
        key: its dotted name.
        shared: whether all have searched it.
        differs: whether its domain differs.
        moved: whether the best trials noticeably differ in it.
        chosen: of each search.
    """

    key: str
    shared: bool
    differs: bool
    moved: bool
    chosen: tuple[Chosen, ...]


@dataclass(frozen=True)
class Difference:
    """A key of the specifications that differs, with each search's value as text."""

    key: str
    values: tuple[str, ...]


def best_trials(entry: Entry, objectives: Sequence[ObjectiveLike]) -> list[TrialRecord]:
    """The Pareto set, or with one objective the best quarter; three at least."""
    ranked = rank(entry.records, objectives)
    if len(objectives) > 1:
        front = pareto(entry.records, objectives)
        known = {record.number for record in front}
        rest = [record for record in ranked if record.number not in known]
        return [*front, *rest[: max(0, _LEAST_CHOSEN - len(front))]]
    return ranked[: max(_LEAST_CHOSEN, len(ranked) // 4)]


def settings(entries: Sequence[Entry], objectives: Sequence[ObjectiveLike]) -> list[Setting]:
    """Every parameter that some search has chosen; what all have searched comes first."""
    groups = [best_trials(entry, objectives) for entry in entries]
    spaces = [entry.spec.search_space.domains for entry in entries]
    bases = [flatten(entry.spec.base_config.model_dump()) for entry in entries]
    keys = list(dict.fromkeys(key for space in spaces for key in space))
    found = []
    for key in keys:
        domains = [space.get(key) for space in spaces]
        listed = all(domain is None or _is_listed(domain) for domain in domains)
        chosen = tuple(
            _chosen(key, domain, base[key], group, listed=listed)
            for domain, base, group in zip(domains, bases, groups, strict=True)
        )
        found.append(
            Setting(
                key=key,
                shared=all(domain is not None for domain in domains),
                differs=len({one.domain for one in chosen}) > 1,
                moved=_moved(chosen, domains),
                chosen=chosen,
            )
        )
    return sorted(found, key=lambda setting: not setting.shared)


def differences(entries: Sequence[Entry]) -> list[Difference]:
    """Where the specifications, and the versions that ran them, differ."""
    told = [dict(_told(entry)) for entry in entries]
    searched = {key for entry in entries for key in entry.spec.space}
    keys = dict.fromkeys(key for tree in told for key in tree if key not in searched)
    return [
        Difference(key, tuple(_text(tree.get(key)) for tree in told))
        for key in keys
        if len({_text(tree.get(key)) for tree in told}) > 1
    ]


def warnings(entries: Sequence[Entry], objectives: Sequence[ObjectiveLike]) -> list[str]:
    """Why numbers of these searches may not be comparable, in sentences."""
    configs = [flatten(entry.spec.base_config.model_dump()) for entry in entries]
    found = []
    for key, reason in _REASONS.items():
        searched = any(key in entry.spec.space for entry in entries)
        if searched or len({repr(config[key]) for config in configs}) > 1:
            shown = "searched" if searched else _listed(entries, [str(c[key]) for c in configs])
            found.append(f"Not comparable, {reason}: {key} is {shown}.")
    lists = [tuple((o.metric, o.mode) for o in entry.spec.objectives) for entry in entries]
    if len({frozenset(one) for one in lists}) > 1:
        shared = " and ".join(o.metric for o in objectives)
        shown = _listed(entries, [" and ".join(metric for metric, _ in one) for one in lists])
        found.append(f"Other objectives: {shown}. Only {shared} is compared.")
    full = [entry.spec.base_config.train.total_epochs for entry in entries]
    if len(set(full)) > 1:
        shown = _listed(entries, [str(count) for count in full])
        found.append(f"Not comparable, another length of a full training: epochs are {shown}.")
    once = [config["energy.first_conv_once"] for config in configs]
    if len(set(once)) > 1 and any(o.metric in _ENERGY for o in objectives):
        shown = _listed(entries, [str(value).lower() for value in once])
        found.append(f"Energy is counted in two ways: energy.first_conv_once is {shown}.")
    running = [entry.letter for entry in entries if entry.running]
    if running:
        found.append(f"Still running: {', '.join(running)}; its numbers are those so far.")
    return found


def _listed(entries: Sequence[Entry], texts: Sequence[str]) -> str:
    pairs = zip(entries, texts, strict=True)
    return ", ".join(f"{text} in {entry.letter}" for entry, text in pairs)


def _told(entry: Entry) -> Iterator[tuple[str, Any]]:
    tree = flatten(entry.spec.resolved())
    for key, value in tree.items():
        if not key.startswith((*_LEFT_OUT, "base_config.")):
            yield key, value
    for key, value in tree.items():
        if key.startswith("base_config."):
            yield key.removeprefix("base_config."), value
    for name, version in entry.versions.items():
        yield f"version of {name}", version


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return ", ".join(" ".join(map(str, item.values())) for item in value) or "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return str(value).lower()
    return "-" if value is None else str(value)


def _is_listed(domain: AnyDomain) -> bool:
    return isinstance(domain, ChoiceDomain) or domain.size <= _MOST_LISTED


def _chosen(
    key: str,
    domain: AnyDomain | None,
    base: Any,
    group: Sequence[TrialRecord],
    *,
    listed: bool,
) -> Chosen:
    if domain is None:
        return Chosen(f"fixed at {value_text(base)}", 0, None, None, None, {}, {})
    values = {record.number: record.params[key] for record in group if key in record.params}
    given = list(values.values())
    if not listed and given and all(isinstance(value, int | float) for value in given):
        low, median, high = _quartiles(given)
        return Chosen(domain.describe(), len(given), median, low, high, {}, values)
    counts = Counter(value_text(value) for value in given)
    shares = {text: count / len(given) for text, count in counts.most_common()}
    return Chosen(domain.describe(), len(given), None, None, None, shares, values)


def _quartiles(given: Sequence[float]) -> tuple[float, float, float]:
    if len(given) < 2:
        return given[0], given[0], given[0]
    low, median, high = statistics.quantiles(given, n=4, method="inclusive")
    return low, median, high


def _moved(chosen: Sequence[Chosen], domains: Sequence[AnyDomain | None]) -> bool:
    known = [one for one in chosen if one.trials]
    pairs = [(a, b) for i, a in enumerate(known) for b in known[i + 1 :]]
    return any(_apart(a, b, domains) for a, b in pairs)


def _apart(a: Chosen, b: Chosen, domains: Sequence[AnyDomain | None]) -> bool:
    if a.median is None or b.median is None:
        texts = a.shares.keys() | b.shares.keys()
        both = sum(min(a.shares.get(t, 0.0), b.shares.get(t, 0.0)) for t in texts)
        return 1.0 - both >= _MOVED_SHARE
    ranges = [d for d in domains if d is not None and not isinstance(d, ChoiceDomain)]
    log = bool(ranges) and all(domain.log for domain in ranges)
    ends = [end for domain in ranges for end in domain.bounds]
    ends += [*a.values.values(), *b.values.values()]
    scale = math.log if log else float
    span = scale(max(ends)) - scale(min(ends))
    return span > 0 and abs(scale(a.median) - scale(b.median)) / span >= _MOVED_SPAN
