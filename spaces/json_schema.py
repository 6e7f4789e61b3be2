"""The JSON Schema (draft 2020-12) of a search space file, from the classes that load it.

For editors: it knows keys, types, ranges and names. What must hold between parts of a file (a
`when` that can be met, a space with a valid point) only `spiketune check` knows.
"""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from spaces.fields import field_type, searchable_keys, sections, trial_keys
from spaces.reading import recipe_names
from spaces.schema import SearchSpec

Tree = dict[str, Any]

SCHEMA_PATH = Path(__file__).with_name("schema.json")
DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TOLD = {
    "name": "Name of the search, unless the command line gives another one.",
    "recipe": "The training recipe: the value of every setting that is not said here.",
    "trial": "Settings that are fixed for all trials, under the recipe's dotted names.",
    "objectives": "One to three metrics; two or more give a Pareto front.",
    "space": "What a trial may vary, by dotted name: int and float ranges include both ends.",
    "constraints": (
        "Conditions on settings, params_m and macs_g are never broken; trials that break one on a "
        "measured metric never win."
    ),
}


def json_schema() -> Tree:
    """The whole schema as plain values."""
    tree = SearchSpec.model_json_schema(by_alias=True)
    defs: Tree = tree.pop("$defs")
    properties: Tree = tree["properties"]
    for key in trial_keys():
        defs[key] = _field(key)
    defs["When"] = _object({key: _one_or_more(key) for key in trial_keys()}) | {
        "description": "The parameter exists only where another setting has one of these values."
    }
    defs["Point"] = _object({key: _ref(key) for key in searchable_keys()})
    for form in ("IntDomain", "FloatDomain"):
        defs[form]["properties"]["when"] = _ref("When")
    del defs["ChoiceDomain"]
    for name in ("points", "warm_points"):
        defs["Sampler"]["properties"][name]["items"] = _ref("Point")
    properties["recipe"]["enum"] = list(recipe_names())
    properties["trial"] |= _object({key: _ref(key) for key in trial_keys()})
    space = {key: _domain(key, defs[key]) for key in searchable_keys()}
    properties["space"] = _object(space) | {"minProperties": 1}
    for name, told in _TOLD.items():
        properties[name]["description"] = told
    head = {"$schema": DRAFT, "title": "spiketune search space", "type": "object"}
    body = _untitled({k: tree[k] for k in ("required", "additionalProperties", "properties")})
    return {**head, **body, "$defs": _untitled(dict(sorted(defs.items())))}


def json_schema_text() -> str:
    """The schema as it lies beside the shipped search spaces."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def _field(key: str) -> Tree:
    """What a setting of a trial takes, with what its section's class says of it."""
    section, _, name = key.partition(".")
    tree = TypeAdapter(field_type(key)).json_schema()
    text = " ".join((sections()[section].__doc__ or "").split())
    told = [s for s in re.split(r"(?<=[.;]) ", text) if f"`{name}`" in s or f"`{name}:" in s]
    return tree | ({"description": " ".join(told)} if told else {})


def _domain(key: str, field: Tree) -> Tree:
    """The kinds of domain that a setting can have."""
    types = {part.get("type") for part in field.get("anyOf", [field])}
    forms = [_object({"choice": _list(_ref(key)), "when": _ref("When")}, "choice")]
    if types & {"integer", "number"}:
        forms.append(_ref("IntDomain"))
    if "number" in types:
        forms.append(_ref("FloatDomain"))
    told = {"description": field["description"]} if "description" in field else {}
    return {"oneOf": forms, **told}


def _object(properties: Tree, *required: str) -> Tree:
    tree = {"type": "object", "properties": properties, "additionalProperties": False}
    return tree | ({"required": list(required)} if required else {})


def _list(item: Tree) -> Tree:
    return {"type": "array", "minItems": 1, "items": item}


def _one_or_more(key: str) -> Tree:
    return {"anyOf": [_ref(key), _list(_ref(key))]}


def _ref(name: str) -> Tree:
    return {"$ref": f"#/$defs/{name}"}


def _untitled(tree: Any) -> Any:
    """Without the titles that only repeat keys, and each description in one line."""
    if isinstance(tree, list):
        return [_untitled(item) for item in tree]
    if isinstance(tree, float) and tree.is_integer():
        return int(tree)  # typing keeps whichever of Ge(0) and Ge(0.0) it met first
    if not isinstance(tree, dict):
        return tree
    kept = {k: _untitled(v) for k, v in tree.items() if k != "title" or not isinstance(v, str)}
    if isinstance(kept.get("description"), str):
        kept["description"] = " ".join(kept["description"].split())
    return kept
