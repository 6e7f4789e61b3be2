"""Imports go one way, and each heavy library enters through one door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = ("trainables", "spaces", "cluster", "search")
DOORS = {
    "mlflow": ("search/tracking_store.py",),
    "ray": ("search/", "cluster/", "trainables/trial.py"),
    "spikingjelly": ("trainables/model/neurons.py", "trainables/data/"),
    "torch": ("trainables/", "search/cli_train.py"),
    "optuna": ("search/",),
    "pyarrow": ("trainables/remote.py",),
}
FILES = [path for package in ORDER for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    package = name.split("/")[0]
    allowed = ORDER[: ORDER.index(package) + 1]
    for module in imported(path):
        top = module.split(".")[0]
        assert top not in ORDER or top in allowed, f"{name} must not import {module}"
        doors = DOORS.get(top)
        assert doors is None or name.startswith(doors), f"{name} must not import {module}"


def imported(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
    return found


def test_files_are_short() -> None:
    long = {
        path.name: lines for path in FILES if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long
