"""The figure of quality and speed of one job, as a file of its own."""

from __future__ import annotations

from pathlib import Path

from pipeline.disk import replace_text
from pipeline.reporting import speed_figures, study
from pipeline.reporting.figures import standalone

NAME = "quality_speed.svg"


def quality_speed(folder: Path, runs: Path) -> Path | None:
    """Draws a job's figure into its folder, from its record and the store of `runs`. Returns None, and writes no file,
    if the job has no benchmark over torch fp32 of the dense model, or no quality of it."""
    drawn = speed_figures.pareto(study.collect([folder], runs, runs), all_named=True)
    return replace_text(folder / NAME, standalone(drawn)) if drawn else None
