"""The report's page around its parts: style, data, plotly and the script, all in one file."""

import base64
import gzip
import json
import math
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from search.report_figures import Tree
from search.tracking_uri import redact

_HERE = Path(__file__)


def page(
    title: str,
    body: str,
    live: Mapping[str, Tree],
    words: Mapping[int, str],
    table: Mapping[str, Any] | None = None,
) -> str:
    """The whole file.

    Args:
        title: the search's name.
        body: the parts as HTML.
        live: the plots by name.
        words: what is shown where a trial is pointed at, by number.
        table: rows that the script is to build; with them all data are packed.
    """
    style = _HERE.with_name("report.css").read_text(encoding="utf-8")
    data: dict[str, Any] = {"plots": _finite(dict(live)), "trials": dict(words)}
    if table is None:
        held = f'<script type="application/json" id="data">{script_json(data)}</script>'
    else:
        packed = _packed(script_json(data | {"table": _finite(dict(table))}))
        held = f'<script type="text/plain" id="data">{packed}</script>'
    library = f'<script type="text/plain" id="plotly">{_plotly()}</script>\n' if live else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(redact(title))}</title>\n<style>\n{style}</style></head>\n"
        f"<body><main>\n{body}\n</main>\n"
        f"{held}\n{library}"
        f"<script>\n{_HERE.with_name('report.js').read_text(encoding='utf-8')}</script>\n"
        "</body></html>\n"
    )


def script_json(value: Any) -> str:
    """JSON that cannot end or begin a script, whatever its texts are."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def _plotly() -> str:
    """Plotly's script, compressed to a third: the page unpacks it."""
    # Where `plotly.offline.get_plotlyjs` reads it, which brings all of plotly's classes.
    home = find_spec("plotly")
    if home is None or home.origin is None:
        raise ModuleNotFoundError("plotly must be installed to write a report")
    script = Path(home.origin).parent / "package_data" / "plotly.min.js"
    return _packed(script.read_text(encoding="utf-8"))


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _finite(value: Any) -> Any:
    """The same tree with None where a number is none, as JSON has no other word for it."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
