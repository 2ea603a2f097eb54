"""`python -m pipeline.report [FOLDER...]`: reports jobs and sweeps from their folders and the store.

A sweep of `--runs` may be given by its id. Without a folder, the newest is reported. Prints the table of models, and
writes report.html, .md, .csv, .tex and .json into the (first) folder; they are also logged to the sweep's run in
MLflow. Exit code: 0 if everything is there, 1 if something failed, is missing or still running (it says what, and
reports the rest), 2 if there is nothing to report.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.credentials import public
from pipeline.disk import replace_text
from pipeline.record import folders
from pipeline.record.runs_folder import default_runs
from pipeline.reporting import logged, page, plots, study, terminal, writers
from pipeline.reporting.study import Study
from pipeline.table import table_console
from stages.contracts import UserError

NAME = "report"
INCOMPLETE, NOTHING = 1, 2
"""Exit codes."""


def write(found: Study, folder: Path) -> list[Path]:
    """Writes all files of the report. Raises UserError if the folder cannot be written."""
    texts = {
        "html": page.html(found),
        "md": writers.markdown(found),
        "csv": writers.comma_separated(found),
        "tex": writers.latex(found),
        "json": writers.as_json(found),
    }
    try:
        return [replace_text(folder / f"{NAME}.{suffix}", public(text)) for suffix, text in texts.items()]
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}", "FOLDER") from error


def plot(found: Study) -> list[Path]:
    """Draws `plots.NAME` into the folder of each job that was benchmarked and evaluated. Raises UserError if none
    was."""
    drawn = []
    for job in found.jobs:
        runs = (store.root.parent for store in found.results.stores)
        paths = (plots.quality_speed(job.folder, at) for at in runs)
        drawn += [path for path in [next(filter(None, paths), None)] if path]
    if not drawn:
        raise UserError("no job here has a benchmark and an evaluation of its dense model in the store", "--plot")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.report", description=__doc__)
    what = "folders of runs or sweeps, or their ids; default: the newest"
    parser.add_argument("folders", nargs="*", type=Path, help=what)
    parser.add_argument("--runs", type=Path, help="folder with the store; default: the one above the folders, or runs")
    parser.add_argument("--plot", action="store_true", help=f"draw {plots.NAME} into each job's folder, from the store")
    arguments = parser.parse_args()
    otherwise = default_runs()
    try:
        runs = arguments.runs or otherwise
        others = [] if arguments.folders else folders.newest(runs)
        paths = [folders.named(folder, runs) for folder in arguments.folders] or others[:1]
        found = study.collect(paths, arguments.runs, otherwise)
    except UserError as error:
        print(f"squarehead: {error}", file=sys.stderr)
        sys.exit(NOTHING)
    console = table_console()
    terminal.show(found, console)
    undrawn = unwritten = ""
    written: list[Path] = []
    try:
        written = write(found, paths[0])
    except UserError as error:
        unwritten = str(error)
        print(f"squarehead: {unwritten}", file=sys.stderr)
    if arguments.plot:
        try:
            written += plot(found)
        except UserError as error:
            undrawn = str(error)
            print(f"squarehead: {undrawn}", file=sys.stderr)
    for path in written:
        console.print(f"written    {path}", highlight=False, soft_wrap=True)
    for line in [] if unwritten else dict.fromkeys(logged.log(found, written, arguments.runs or otherwise)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for other in others[1:]:
        console.print(
            f"reported   {paths[0].name}, the newest; another: python -m pipeline.report {other}",
            highlight=False,
            soft_wrap=True,
        )
    if found.problems or undrawn or unwritten:
        sys.exit(INCOMPLETE)


if __name__ == "__main__":
    main()
