"""The report at the terminal: the models, narrowed to its width, and what is wrong."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as RichTable

from pipeline.reporting import quality_tables, speed_tables
from pipeline.reporting.cells import EMPTY, Column, Table
from pipeline.reporting.study import Study

GAP = 1
"""Columns of the terminal between two of the table, on either side."""


def show(study: Study, console: Console) -> None:
    console.print(f"[bold]{_escaped(study.title)}[/]: {len(study.jobs)} job{'s' * (len(study.jobs) != 1)}")
    makers = [quality_tables.models, quality_tables.seeds, quality_tables.published]
    if not study.models:
        makers = [speed_tables.shares if study.shares else speed_tables.backends]
    for table in (make(study) for make in [*makers, speed_tables.published]):
        if table.rows:
            _show(table, console)
    for problem in study.problems:
        console.print(f"[red]✗[/] {_escaped(problem)}", highlight=False, soft_wrap=True)


def _show(table: Table, console: Console) -> None:
    columns = fitting(table, console.width)
    shown = RichTable(title=table.title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        shown.add_column(_escaped(column.label), justify="right" if column.number else "left", no_wrap=True)
    for row in table.rows:
        cells = [row.get(column.key, EMPTY) for column in columns]
        shown.add_row(*(f"[bold]{_escaped(cell.text)}[/]" if cell.best else _escaped(cell.text) for cell in cells))
    console.print(shown)
    if left := [column.label for column in table.columns if column not in columns]:
        console.print(f"[dim]and in the files: {_escaped(', '.join(dict.fromkeys(left)))}[/]", highlight=False)


def fitting(table: Table, width: int) -> list[Column]:
    """The columns that fit without being squeezed; the lightest go first, of those the rightmost."""
    columns = list(table.columns)

    def needed() -> int:
        return sum(_width(table, column) + 2 * GAP for column in columns) - 2 * GAP

    while len(columns) > 1 and needed() > width:
        lightest = min(range(len(columns)), key=lambda at: (columns[at].weight, -at))
        columns.pop(lightest)
    return columns


def _width(table: Table, column: Column) -> int:
    return max(len(column.label), *(len(row.get(column.key, EMPTY).text) for row in table.rows))


def _escaped(text: str) -> str:
    """Square brackets in a text are no markup."""
    return text.replace("[", r"\[")
