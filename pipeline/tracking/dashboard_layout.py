"""What MLflow's page of runs shows: its columns, and charts to compare the jobs of a sweep. In MLflow's own terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.headline import is_quality

WIDTHS = {"attributes.`Run Name`": 320, "attributes.`Created`": 120, "attributes.`Dataset`": 140}
HEADLINE = ("recovery", "sparsity", "best_decode_speedup", "seconds")
"""Beside qualities: of `pipeline.headline`."""
OTHERS = (*HEADLINE, "model_sparsity")
PREFIXES = ("int8_", "dense_", "decode_speedup.")
SECTION = "sweep"
MANY = 100
"""Runs in a chart."""


def table(columns: Sequence[str]) -> dict[str, Any]:
    return {"selectedColumns": list(columns), "columnOrder": [*WIDTHS, *columns], "columnWidths": WIDTHS}


def stage_columns(evaluations: Iterable[Any]) -> list[str]:
    """Of all runs: what evaluations have measured so far."""
    measured = {name for run in evaluations for name in run.data.metrics}
    quality = sorted(name for name in measured if name != "seconds" and is_quality(name))
    return [*(f"metrics.`{name}`" for name in (*quality, "sparsity", "seconds")), "attributes.`Dataset`"]


def job_columns(jobs: Sequence[Any]) -> list[str]:
    """Of the jobs of a sweep: what they differ in, and what they came to."""
    return [*(f"params.`{name}`" for name in dials(jobs)), *(f"metrics.`{name}`" for name in results(jobs))]


def dials(jobs: Iterable[Any]) -> list[str]:
    """Parameters in which jobs were told to differ."""
    return list(dict.fromkeys(key.removeprefix("dial.") for run in jobs for key in run.data.tags if _is_dial(key)))


def _is_dial(key: str) -> bool:
    return key.startswith("dial.")


def qualities(jobs: Sequence[Any]) -> list[str]:
    """Of the sparse model, by which jobs are compared, the main one first."""
    names = {name for run in jobs for name in run.data.metrics if "/" not in name and is_quality(name)}
    told = sorted(name for name in names - set(OTHERS) if not name.startswith(PREFIXES))
    return sorted(told, key=lambda name: not any(_is_main(name, run.data.metrics) for run in jobs))


def _is_main(name: str, metrics: Mapping[str, float]) -> bool:
    return "recovery" in metrics and metrics["recovery"] == metrics.get(f"{name}_recovery")


def results(jobs: Sequence[Any]) -> list[str]:
    """Metrics that some job has, in the order in which they are read."""
    there = {name for run in jobs for name in run.data.metrics}
    main, *others = qualities(jobs) or [""]
    return [name for name in (main, f"{main}_stderr", f"int8_{main}", *HEADLINE, *others) if name in there]


def charts(jobs: Sequence[Any]) -> dict[str, Any]:
    """Parallel coordinates from dials to results, quality over sparsity and over speed, and bars of what matters."""
    there = results(jobs)
    main = qualities(jobs)[:1]
    measured = [*main, *(name for name in ("recovery", "best_decode_speedup") if name in there)]
    found: list[dict[str, Any]] = []
    if dials(jobs) and measured:
        found.append(
            {"type": "PARALLEL", "selectedParams": dials(jobs), "selectedMetrics": measured, "showAllRuns": False}
        )
    for name in main:
        found += [
            {"type": "SCATTER", "xaxis": _axis(over), "yaxis": _axis(name)}
            for over in ("sparsity", "best_decode_speedup")
            if over in there
        ]
    found += [{"type": "BAR", "metricKey": name} for name in measured]
    for number, chart in enumerate(found):
        chart |= {
            "uuid": f"squarehead-{number}",
            "runsCountToCompare": MANY,
            "metricSectionId": SECTION,
            "deleted": False,
            "isGenerated": False,
        }
    section = {
        "uuid": SECTION,
        "name": "The sweep",
        "display": True,
        "isReordered": False,
        "deleted": False,
        "columns": 2,
    }
    return {
        "compareRunCharts": found,
        "compareRunSections": [section | {"isGenerated": False}],
        "isAccordionReordered": True,  # else MLflow sorts sections by name
        "runsHiddenMode": "SHOW_ALL",
        "autoRefreshEnabled": False,
    }


def _axis(metric: str) -> dict[str, str]:
    return {"key": metric, "type": "METRIC"}
