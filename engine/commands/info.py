"""Show what an engine folder holds: its linears, their sparsity, and how much smaller they are."""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine import record
from engine.record import LinearRecord

FP32_BYTES = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="OUT", help="what `export` has written")


def run(args: argparse.Namespace) -> None:
    show(args.folder)


def show(folder: Path) -> None:
    """Prints the contents. Raises EngineError for a folder that is damaged, as far as the sizes of its files show."""
    found = record.read(folder)
    record.verify_sizes(folder, found)
    kinds: dict[tuple[str, str], list[LinearRecord]] = defaultdict(list)
    for linear in found.linears.values():
        kinds[linear.dtype, linear.layout].append(linear)
    table = Table(box=None, pad_edge=False)
    for column in ("linears", "", "", "weights", "sparsity", "MB", "of dense fp32"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for (dtype, layout), linears in sorted(kinds.items()):
        table.add_row(str(len(linears)), dtype, layout, *_sizes(linears))
    if len(kinds) > 1:
        table.add_row(str(len(found.linears)), "all", "", *_sizes([*found.linears.values()]))
    console = Console(highlight=False)
    weights = found.files[record.WEIGHTS].bytes
    title = f"{folder}: {found.dtype}, head {found.head}, {weights / 1e6:.1f} MB in {record.WEIGHTS}"
    console.print(title, soft_wrap=True)
    console.print(table)


def _sizes(linears: list[LinearRecord]) -> tuple[str, str, str, str]:
    weights = sum(linear.rows * linear.columns for linear in linears)
    stored = sum(linear.bytes for linear in linears)
    sparsity = 1 - sum(linear.nnz for linear in linears) / weights
    share = stored / (FP32_BYTES * weights)
    return f"{weights:,}", f"{sparsity:.4f}", f"{stored / 1e6:.1f}", f"{share:.1%} (1/{1 / share:.2f})"
