"""`python -m pipeline.report [FOLDER...]`: one table over the jobs of a run or sweep, read from what they recorded.

Without a folder: the newest. Prints it, and writes it as `report.md` beside the jobs; with `--plot`, it draws their
quality and speed again too.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline import plots
from pipeline.contracts import UserError
from pipeline.job import Job, read_summary
from pipeline.store import Store
from pipeline.table import LABELS, is_quality, table_console


@dataclass(frozen=True)
class JobRecord:
    """What a job left in its folder."""

    name: str
    nodes: dict[str, dict[str, Any]]
    folder: Path

    @property
    def failed(self) -> str:
        """The first failure, or ""."""
        return next((f"{name}: {node['error']}" for name, node in self.nodes.items() if node["status"] == "failed"), "")


def newest(runs: Path) -> Path:
    """The newest folder of a run or sweep. Raises UserError if there is none."""
    folders = [*runs.glob("jobs/*"), *runs.glob("sweeps/*")]
    told = [folder for folder in folders if any(folder.rglob("summary.json"))]
    if not told:
        raise UserError(f"no run has finished under {runs.resolve()}; `make run` makes one", "runs")
    return max(told, key=lambda folder: folder.name)


def read_jobs(folder: Path) -> list[JobRecord]:
    """The jobs of a run or sweep folder, in order. Raises UserError if there is none."""
    found = sorted(folder.rglob("summary.json"), key=lambda path: (len(path.parent.name), path.parent.name))
    if not found:
        raise UserError(f"no summary.json under {folder}; expected the folder of a finished run or sweep", "FOLDER")
    jobs = [Job.read(path.parent) for path in found]
    return [JobRecord(job.name, read_summary(job), job.folder) for job in jobs]


def rows(jobs: list[JobRecord]) -> list[dict[str, str]]:
    """Dense once, then each evaluated model of each job."""
    table: list[dict[str, str]] = []
    for job in jobs:
        judged = {n: node for n, node in job.nodes.items() if node["stage"] == "evaluate" and node["metrics"]}
        for node_name, node in judged.items():
            row = {"job": job.name, "model": LABELS.get(node_name, node_name)}
            if node_name.startswith("dense"):
                row["job"] = ""
            row |= _quality(node["metrics"])
            if node_name == "evaluate":
                row |= _sparse(job.nodes)
            if row not in table:
                table.append(row)
        if job.failed:
            table.append({"job": job.name, "model": f"failed: {job.failed}"})
    return table


def _quality(metrics: dict[str, float]) -> dict[str, str]:
    cells = {}
    for metric in filter(is_quality, metrics):
        error = metrics.get(f"{metric}_stderr")
        cells[metric] = f"{metrics[metric]:.3f}" + (f" ± {error:.3f}" if error is not None else "")
        if f"{metric}_recovery" in metrics:
            cells[f"{metric} recovery"] = f"{metrics[f'{metric}_recovery']:.1f} %"
    return cells


def _sparse(nodes: dict[str, dict[str, Any]]) -> dict[str, str]:
    trained = [
        n["metrics"] for n in nodes.values() if n["stage"] in ("prune", "finetune") and "sparsity" in n["metrics"]
    ]
    seconds = sum(node["seconds"] for node in nodes.values())
    return {"sparsity": f"{max(m['sparsity'] for m in trained):.4f}" if trained else "", "seconds": f"{seconds:.0f}"}


def plot(jobs: list[JobRecord], runs: Path) -> list[Path]:
    """Draws `plots.NAME` into the folder of each job that has what it takes. Raises UserError if none has."""
    store = Store(runs / "store")
    drawn = [path for job in jobs if (path := plots.quality_speed(job.nodes, store, job.folder))]
    if not drawn:
        raise UserError(f"no job here has a benchmark and an evaluation of its dense model in {store.root}", "--plot")
    return drawn


def markdown(table: list[dict[str, str]]) -> str:
    columns = list(dict.fromkeys(column for row in table for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row.get(column, "") for column in columns) + " |" for row in table]
    return "\n".join(lines) + "\n"


def show(table: list[dict[str, str]], title: str, console: Console) -> None:
    columns = list(dict.fromkeys(column for row in table for column in row))
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        shown.add_column(column, no_wrap=column in ("job", *columns[2:]), overflow="fold")
    for row in table:
        shown.add_row(*(row.get(column, "").replace("[", r"\[") for column in columns))
    console.print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.report", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="folders of runs or sweeps; default: the newest")
    parser.add_argument("--runs", type=Path, default=Path(os.environ.get("SQUAREHEAD_RUNS", "runs")))
    parser.add_argument("--plot", action="store_true", help=f"draw {plots.NAME} into each job's folder, from the store")
    asked = parser.parse_args()
    try:
        folders = asked.folders or [newest(asked.runs)]
        jobs = [job for folder in folders for job in read_jobs(folder)]
    except UserError as error:
        sys.exit(f"squarehead: {error}")
    table = rows(jobs)
    show(table, str(folders[0]) if len(folders) == 1 else f"{len(folders)} folders", table_console())
    (folders[0] / "report.md").write_text(markdown(table), encoding="utf-8")
    if asked.plot:
        try:
            for path in plot(jobs, asked.runs):
                print(f"plot       {path}")
        except UserError as error:
            sys.exit(f"squarehead: {error}")
    if any(job.failed for job in jobs):
        sys.exit(1)


if __name__ == "__main__":
    main()
