"""Load a search space or a trial configuration; every error has a file, line and column."""

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from spaces.nodes import Composer, Mark, Node, locate
from spaces.problems import Path, Problem, SpaceError, did_you_mean, dotted, shown
from spaces.reading import compose_file
from spaces.redaction import holds_secret
from spaces.schema import SearchSpec, SpecError
from spaces.semantics import MAX_GUESSES, Finding, spec_findings
from spaces.wording import explain
from trainables.config import StrictModel, TrialConfig

# Keys below these sections are themselves dotted, as in `trial: {train.epochs: 60}`.
_DOTTED_SECTIONS = frozenset({"trial", "space"})
_NO_SECRET = (
    "must not hold a password or token: put it into an environment variable, and where an "
    "address is wanted write `env:NAME` here"
)
_DOMAIN_KEYS = {
    "<int>": ("int", "step", "log", "when"),
    "<float>": ("float", "log", "when"),
    "<choice>": ("choice", "when"),
}


def load_search_space(path: str | FilePath, overrides: Sequence[str] = ()) -> SearchSpec:
    """Load a search space file.

    Args:
        path: the YAML file.
        overrides: `key=value` texts that replace or add single values.

    Raises:
        SpaceError: lists everything that is wrong; nothing was written.
    """
    root, problems = _read(FilePath(path), overrides, _DOTTED_SECTIONS)
    tree = root.plain()
    try:
        spec = SearchSpec.model_validate(tree)
    except ValidationError as error:
        findings = _findings(error, SearchSpec)
        if not any(isinstance(e.get("ctx", {}).get("error"), SpecError) for e in error.errors()):
            findings += spec_findings(tree, feasibility=False)
        raise SpaceError([*problems, *_located(findings, root)]) from None
    if problems:
        raise SpaceError(problems)
    return spec


def load_trial_config(path: str | FilePath, overrides: Sequence[str] = ()) -> TrialConfig:
    """Load the configuration of a single trial, laid out like a recipe.

    Args:
        path: the YAML file.
        overrides: `key=value` texts such as `train.epochs=2`.

    Raises:
        SpaceError: lists everything that is wrong.
    """
    root, problems = _read(FilePath(path), overrides, frozenset())
    try:
        config = TrialConfig.model_validate(root.plain())
    except ValidationError as error:
        found = _located(_findings(error, TrialConfig), root)
        raise SpaceError([*problems, *found]) from None
    if problems:
        raise SpaceError(problems)
    return config


def _read(
    path: FilePath, overrides: Sequence[str], dotted_sections: frozenset[str]
) -> tuple[Node, list[Problem]]:
    root, problems = compose_file(path)
    seen: set[Path] = set()
    for text in overrides:
        _override(root, text, dotted_sections, seen, problems)
    return root, problems + _secrets(root)


def _secrets(root: Node) -> list[Problem]:
    """Refuse secrets in keys and values: the specification is kept and shown as it is."""
    found: list[Problem] = []
    waiting: list[tuple[Path, Node]] = [((), root)]
    while waiting:
        path, node = waiting.pop()
        for key, (mark, child) in (node.entries or {}).items():
            if holds_secret(key):
                found.append(mark.problem(_NO_SECRET))
            waiting.append(((*path, key), child))
        waiting += [((*path, index), item) for index, item in enumerate(node.items or ())]
        if isinstance(node.value, str) and holds_secret(node.value):
            node.broken = True
            found.append(node.mark.problem(_NO_SECRET, dotted(path)))
    return found


def _override(
    root: Node,
    text: str,
    dotted_sections: frozenset[str],
    seen: set[Path],
    problems: list[Problem],
) -> None:
    """Set one `key=value` in the node tree."""
    start = Mark("--set", 1, 1)
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        problems.append(start.problem(f"must be key=value, but got {shown(text)}"))
        return
    path = _override_path(key.strip(), dotted_sections)
    if path in seen:
        problems.append(start.problem("must be set once, but it is given twice", dotted(path)))
        return
    seen.add(path)
    composer = Composer(value, "--set", column_offset=len(key) + 1)
    try:
        node = composer.compose() or Node(Mark("--set", 1, len(key) + 2))
    except SpaceError as error:
        problems.extend(error.problems)
        return
    problems.extend(composer.problems)
    parent = root
    for part in path[:-1]:
        if parent.entries is None:
            break
        _, parent = parent.entries.setdefault(str(part), (start, Node(start, entries={})))
    if parent.entries is None:
        message = "must lie below a mapping, but the file has another value there"
        problems.append(start.problem(message, dotted(path)))
        return
    parent.entries[str(path[-1])] = (start, node)


def _override_path(key: str, dotted_sections: frozenset[str]) -> Path:
    parts = key.split(".")
    if parts[0] in dotted_sections and len(parts) > 2:
        return (parts[0], ".".join(parts[1:3]), *parts[3:])
    return tuple(parts)


def _findings(error: ValidationError, model: type[StrictModel]) -> list[Finding]:
    findings: list[Finding] = []
    guesses = 0
    for entry in error.errors(include_url=False):
        cause = entry.get("ctx", {}).get("error")
        if isinstance(cause, SpecError):
            findings += cause.findings
            continue
        path = _file_path(entry["loc"])
        if entry["type"] == "extra_forbidden":
            guesses += 1
            message = f"must be a known key, but got {shown(path[-1])}"
            if model is SearchSpec and len(path) == 1 and _is_of_a_trial(path[0]):
                message += "; a trial's settings belong below trial (fixed) or space (what varies)"
            elif guesses <= MAX_GUESSES:
                message += did_you_mean(path[-1], _valid_keys(model, entry["loc"]))
            findings.append(Finding(path, message, at_key=True))
        else:
            at_key = entry["type"] == "missing"
            findings.append(Finding(path, explain(dict(entry)), at_key=at_key))
    return findings


def _is_of_a_trial(key: int | str) -> bool:
    section = str(key).partition(".")[0]
    return section in TrialConfig.model_fields and section not in SearchSpec.model_fields


def _file_path(location: tuple[int | str, ...]) -> Path:
    # Below a parameter pydantic names the kind of domain, which is no key of the file.
    if len(location) > 2 and location[0] == "space" and location[2] in _DOMAIN_KEYS:
        return (*location[:2], *location[3:])
    return location


def _valid_keys(model: type[StrictModel], location: tuple[int | str, ...]) -> tuple[str, ...]:
    """List the keys of the mapping in which an unknown key stands."""
    if len(location) > 2 and location[0] == "space":
        return _DOMAIN_KEYS.get(str(location[2]), ())
    kind: Any = model
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[str(part)].annotation
        inner = [annotation, *getattr(annotation, "__args__", ())]
        kind = next((t for t in inner if isinstance(t, type) and issubclass(t, StrictModel)), None)
        if kind is None:
            return ()
    return tuple(kind.model_fields)


def _located(findings: Sequence[Finding], root: Node) -> list[Problem]:
    problems = []
    for finding in findings:
        key_mark, node, broken = locate(root, finding.path)
        if broken:
            continue
        mark = key_mark if finding.at_key else node.mark
        if finding.column is not None and node.text_mark is not None:
            at = node.text_mark
            mark = Mark(at.file, at.line, at.column + finding.column)
        problems.append(mark.problem(finding.message, dotted(finding.path)))
    return problems
