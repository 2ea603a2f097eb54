"""Where measurements go: a JSON file, and a terminal that shows how long they still take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

WIDTH = 110
"""Columns that every table fits."""


def wide_console() -> Console:
    """Standard output, at least as wide as the tables: a pipe's 80 columns would cut them."""
    return Console(highlight=False, width=max(WIDTH, Console().width))


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def write(record: dict[str, Any], out: Path | None) -> None:
    """Whole or not at all: a kill leaves what was there before."""
    if out is not None:
        partial = out.with_name(f"{out.name}.partial")
        partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
        partial.replace(out)
