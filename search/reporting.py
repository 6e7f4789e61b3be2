"""A search's report from its ledger's records; needs neither Ray nor torch."""

from pathlib import Path
from typing import Any

from search.cycles import no_cycles
from search.folder import SearchFolder
from search.insight import insight
from search.records import TrialRecord
from search.report import write_report
from search.report_data import report_tree
from search.results import stopping_check
from search.wording import check_text
from spaces.schema import SearchSpec


@no_cycles()
def report_search(
    spec: SearchSpec, folder: SearchFolder, records: list[TrialRecord], *, running: bool = False
) -> Path:
    """Write the HTML report of a search, and its numbers beside it.

    Args:
        spec: the search.
        folder: where it lies.
        records: its trials.
        running: whether a driver still runs it.
    """
    write_report(
        folder.report,
        folder.name,
        _report_info(spec, folder),
        records,
        spec.objectives,
        spec.base_config.train.total_epochs,
        check_text(records, spec.stopping_metric, spec.stopping_mode),
        insight(spec, records),
        stopping_check(records, spec.stopping_metric, spec.stopping_mode),
        folder.runs_option,
        running=running,
    )
    return folder.report


@no_cycles()
def report_numbers(
    spec: SearchSpec, folder: SearchFolder, records: list[TrialRecord], *, running: bool = False
) -> dict[str, Any]:
    """What `report.json` of a search holds; arguments as of `report_search`."""
    return report_tree(
        folder.name,
        _report_info(spec, folder),
        records,
        spec.objectives,
        spec.base_config.train.total_epochs,
        stopping_check(records, spec.stopping_metric, spec.stopping_mode),
        insight(spec, records),
        folder.runs_option,
        running=running,
    )


def _report_info(spec: SearchSpec, folder: SearchFolder) -> dict[str, str]:
    manifest = folder.manifest() or {"versions": {}}
    return {
        "command": f"spiketune search {folder.path.name}/search.yaml --name {folder.name}-again",
        "search": spec.name,
        "recipe": spec.recipe,
        "sampler": f"{spec.sampler.name}, seed {spec.sampler.seed}",
        "stopping": spec.stopping.name,
        "energy convention": _convention(spec),
        "versions": ", ".join(f"{k} {v}" for k, v in manifest["versions"].items()),
    }


def _convention(spec: SearchSpec) -> str:
    config = spec.base_config
    if config.energy.first_conv_once and not config.model.event_data:
        return "45 nm, first conv once"
    return "45 nm, first conv T times"
