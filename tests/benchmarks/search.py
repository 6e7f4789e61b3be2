"""`make bench-search`: regret of the default and of what people use, on tables of learning curves.

Writes one JSON file a method, so that an interrupted measurement goes on where it was, and from
them `search.md`, the table.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from search.curves import CurveTable, load_tables
from search.regret import Method, measure
from search.simulate import Conditions

SHARED = Path(__file__).parents[3] / "shared" / "data"
RESULTS = Path(__file__).parent / "search"
DEFAULT = Method("gp", "asha", check_share=0.02)  # as a search has it that says nothing else
REFERENCE = Method("random", "asha", 3)
METHODS = (
    DEFAULT,
    REFERENCE,
    Method("optuna", "ray-asha", 3),
    Method("random", "none"),
    Method("optuna", "none"),
    Method("tpe", "asha", 3),
    Method("gp", "asha_promotion", check_share=0.02),
    Method("random", "asha_promotion", 3),
)
BY_TIME = (  # accuracy, and seconds an epoch
    Method("gp", "asha", check_share=0.02, by_time=True),
    Method("random", "asha", 3, by_time=True),
    Method("optuna", "none", by_time=True),
    Method("optuna-nsga2", "none", by_time=True),
)
FAMILIES = {"LCBench": "curves_lcbench", "TaskSet": "curves_taskset"}


def main() -> None:
    """Measure what has not been measured and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--method", action="append", help="as in the table; default all")
    parser.add_argument("--task", action="append", help="default all")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    families = {
        name: [t for t in tables_of(folder) if not asked.task or t.name in asked.task]
        for name, folder in FAMILIES.items()
    }
    if not any(families.values()):
        sys.exit(f"no learning curves below {SHARED}: they are not shipped with the project")
    asked.results.mkdir(parents=True, exist_ok=True)
    for method in (*METHODS, *BY_TIME):
        if asked.method and method.name not in asked.method:
            continue
        for family, tables in families.items():
            path = asked.results / file_name(method, family, asked.workers)
            if path.exists() or not tables:
                continue
            conditions = Conditions(workers=asked.workers)
            summary = measure(method, tables, range(asked.seeds), conditions, told)
            path.write_text(json.dumps(summary.row()) + "\n")
    text = report(asked.results)
    (asked.results / "search.md").write_text(text)
    print(text)


def told(task: str, done: int, of: int) -> None:
    print(f"{task}: {done} of {of} runs", file=sys.stderr, flush=True)


def tables_of(folder: str) -> list[CurveTable]:
    return [
        table for path in sorted((SHARED / folder).glob("*.npz")) for table in load_tables(path)
    ]


def file_name(method: Method, family: str, workers: int) -> str:
    time = "-time" if method.by_time else ""
    return f"{method.sampler}-{method.stopping}{time}-{family.lower()}-{workers}.json"


def report(results: Path) -> str:
    """All that has been measured: overall, then the default task by task."""
    lines: list[str] = []
    for workers in sorted({int(p.stem.rsplit("-", 1)[1]) for p in results.glob("*.json")}):
        for family in FAMILIES:
            rows = measured(results, METHODS, family, workers)
            if rows:
                title = f"## {family}, {workers} workers: normalised regret"
                lines += [title, "", *overall(rows, "regret"), ""]
            if DEFAULT in rows and REFERENCE in rows:
                lines += [*by_task(rows[DEFAULT], rows[REFERENCE]), ""]
            rows = measured(results, BY_TIME, family, workers)
            if rows:
                title = f"## {family}, {workers} workers: hypervolume of value and seconds an epoch"
                lines += [title, "", *overall(rows, "hypervolume"), ""]
    return "\n".join(lines)


def measured(
    results: Path, methods: Sequence[Method], family: str, workers: int
) -> dict[Method, Any]:
    paths = {method: results / file_name(method, family, workers) for method in methods}
    return {m: json.loads(path.read_text()) for m, path in paths.items() if path.exists()}


def overall(rows: dict[Method, Any], what: str) -> list[str]:
    lines = [
        "| method | grace | runs | trials a run | 25 % | 50 % | 100 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, row in rows.items():
        cells = " | ".join(f"{c['mean']:.3f} ± {c['se']:.3f}" for c in row[what].values())
        grace = "-" if method.stopping == "none" else method.grace or "auto"
        lines.append(
            f"| {row['method']} | {grace} | {row['runs']} | {row['trials']:.0f} | {cells} |"
        )
    return lines


def by_task(ours: Any, theirs: Any) -> list[str]:
    """Means over seeds at 25 % and 100 %; * where the paired difference exceeds 2 errors."""
    lines = [
        "| task | gp + asha 25 % | random + asha 25 % | gp + asha 100 % | random + asha 100 % |",
        "|---|---|---|---|---|",
    ]
    for task in ours["by_task"]:
        cells = []
        for column in (0, 2):
            mine, other = (
                [seed[column] for seed in row["by_task"][task]] for row in (ours, theirs)
            )
            mark = ""
            if len(mine) == len(other) > 1:
                mark = verdict(mine, other)
            cells += [f"{np.mean(mine):.3f}{mark}", f"{np.mean(other):.3f}"]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return lines


def verdict(mine: Sequence[float], other: Sequence[float]) -> str:
    """` better`, ` worse` or nothing, by two standard errors of the paired differences."""
    differences = np.subtract(mine, other)
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    if abs(float(differences.mean())) <= 2.0 * error:
        return ""
    return " better" if differences.mean() < 0 else " worse"


if __name__ == "__main__":
    main()
