"""A search in a few numbers, for the run that stands for it in MLflow."""

from search.records import TrialRecord
from search.results import best, hypervolume, pareto, saved_epochs, stopping_check, worst
from spaces.schema import SearchSpec


def summary_metrics(spec: SearchSpec, records: list[TrialRecord]) -> dict[str, float]:
    """What the parent run says of a search: best value an objective, Pareto size, hypervolume."""
    metrics: dict[str, float] = {"trials": float(len(records))}
    top = best(records, spec.objectives)
    spent, full = saved_epochs(records, spec.base_config.train.total_epochs)
    if full:
        metrics["saved_epochs_frac"] = 1.0 - spent / full
    check = stopping_check(records, spec.stopping_metric, spec.stopping_mode)
    if check is not None:
        metrics |= {
            "stopping_checked": float(check.checked),
            "stopping_missed": float(check.missed),
        }
    if top is None:
        return metrics
    metrics["best_trial"] = float(top.number)
    front = pareto(records, spec.objectives)
    metrics["pareto_points"] = float(len(front))
    for objective in spec.objectives:
        found = [r.last[objective.metric] for r in front]
        metrics[f"best_{objective.metric}"] = (max if objective.mode == "max" else min)(found)
    if len(spec.objectives) > 1:
        modes = [o.mode for o in spec.objectives]
        points = [tuple(r.last[o.metric] for o in spec.objectives) for r in front]
        metrics["hypervolume"] = hypervolume(points, worst(records, spec.objectives), modes)
    return metrics
