"""The folder of runs that a command works in, and how to name another one to it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path


def default_runs() -> Path:
    """Returns the folder of a command without `--runs`."""
    return Path(os.environ.get("SQUAREHEAD_RUNS", "runs"))


def runs_argument(runs: Path) -> str:
    """Returns the argument that names `runs` to a command, with a space before it; empty for the default."""
    return "" if runs.resolve() == default_runs().resolve() else f" --runs {shlex.quote(str(runs))}"
