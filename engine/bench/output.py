"""Outputs measurements: to a JSON file, to tables, and to a terminal with the remaining time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

WIDTH = 110
"""Columns that every table fits into."""
MISSING = "–"
"""Text for a number that does not exist."""


def wide_console() -> Console:
    """Returns a console on standard output that is at least as wide as the tables: a pipe's 80 columns would cut
    them."""
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


def table(first: str, *others: str) -> Table:
    """Returns an empty table: labels on the left, numbers in the other columns."""
    made = Table(box=None, pad_edge=False)
    made.add_column(first, no_wrap=True)
    for column in others:
        made.add_column(column, justify="right", no_wrap=True)
    return made


def threads_text(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def show_machine(record: dict[str, Any], console: Console) -> None:
    machine, read = record["machine"], record["read_bandwidth"]
    runtimes = f"torch {machine['torch_kernels']}, engine {machine['engine_kernels'] or 'without kernels'}"
    for line in (
        f"{machine['cpu']}, {threads_text(machine['threads'])}, {runtimes}",
        f"reads {read['gigabytes_per_second']:.1f} GB/s ({read['method']}, fastest round)",
    ):
        console.print(line, markup=False, soft_wrap=True)


def write(record: dict[str, Any], out: Path | None) -> None:
    """Writes the whole file or nothing: a kill leaves the earlier file."""
    if out is not None:
        partial = out.with_name(f"{out.name}.partial")
        partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
        partial.replace(out)
