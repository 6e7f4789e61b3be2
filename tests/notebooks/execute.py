"""Runs a notebook's code cells one after the other, without a kernel.

    PYTHONPATH=tests/integration python -m tests.notebooks.execute SEARCH

fills the stored outputs of results.ipynb anew from a search of spaces/digits.yaml. Jupyter is not
among the packages that the lock installs: it would bring two dozen for this one file.
"""

import ast
import asyncio
import base64
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).with_name("results.ipynb")
_WIDTH, _HEIGHT = 640, 440


def executed(search: str) -> list[Any]:
    """What each code cell shows, with another search in place of the first cell's."""
    namespace: dict[str, Any] = {}
    shown = []
    for place, cell in enumerate(code_cells(json.loads(NOTEBOOK.read_text()))):
        source = "".join(cell["source"])
        if not place:
            assert '"small"' in source
            source = source.replace('"small"', repr(search))
        shown.append(_run(source, f"cell {place + 1}", namespace))
    return shown


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _run(source: str, label: str, namespace: dict[str, Any]) -> Any:
    """The value of a cell's last line, if that is an expression."""
    tree = ast.parse(source, label)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, label, "exec"), namespace)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), label, "exec"), namespace)
    return eval(compile(ast.Expression(last.value), label, "eval"), namespace)


def mime_bundle(value: Any) -> dict[str, Any]:
    """A value as a notebook stores it: text, HTML where it has some, a picture of a figure."""
    if hasattr(value, "write_html"):
        return {"image/png": _picture(value), "text/plain": [type(value).__name__]}
    bundle: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_html_"):
        bundle["text/html"] = value._repr_html_().splitlines(keepends=True)
    return bundle


def _picture(figure: Any) -> str:
    from chromium import Page, seen

    with tempfile.TemporaryDirectory() as scratch:
        page, picture = Path(scratch) / "figure.html", Path(scratch) / "figure.png"
        figure.write_html(page, include_plotlyjs=True, config={"displayModeBar": False})

        async def look(tab: Page) -> None:
            await tab.open(page, _WIDTH, _HEIGHT)
            await tab.until("document.querySelectorAll('.point').length > 0")
            await asyncio.sleep(0.5)
            await tab.picture(picture)

        seen(Path(scratch), look)
        return base64.b64encode(picture.read_bytes()).decode()


def main(search: str) -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    cells = code_cells(notebook)
    for count, (cell, value) in enumerate(zip(cells, executed(search), strict=True), start=1):
        cell["execution_count"] = count
        output = {
            "output_type": "execute_result",
            "execution_count": count,
            "metadata": {},
            "data": mime_bundle(value),
        }
        cell["outputs"] = [] if value is None else [output]
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
