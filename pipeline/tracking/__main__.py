"""`python -m pipeline.tracking relog`: logs to MLflow what it lacks of the store and of jobs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.record.runs_folder import default_runs
from pipeline.tracking.relog import relog
from pipeline.tracking.server import connect
from pipeline.tracking.view import View
from stages.contracts import UserError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.tracking", description="MLflow, the view of the store.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("relog", help="bring into MLflow what it does not know of the store and of jobs")
    command.add_argument("--runs", type=Path, default=default_runs())
    command.add_argument("--uri", default="", help="MLflow tracking URI (default: sqlite under runs)")
    command.add_argument("--experiment", default="squarehead")
    command.add_argument("--artifacts", choices=("all", "small", "none"), default="all", help="files to show")
    chosen = parser.parse_args(arguments)
    try:
        if not chosen.runs.is_dir():
            raise UserError(f"no folder {chosen.runs}", "--runs")
        made = relog(View(connect(chosen.uri, chosen.experiment, chosen.runs), chosen.artifacts), chosen.runs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("made " + ", ".join(f"{count} {kind} runs" for kind, count in made.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
