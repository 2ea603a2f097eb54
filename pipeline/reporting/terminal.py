"""The report at the terminal: tables narrowed to its width, and problems."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from pipeline.reporting import quality_tables, speed_tables
from pipeline.reporting.cells import EMPTY, Table, fitting
from pipeline.reporting.study import Study


def show(study: Study, console: Console) -> None:
    console.print(f"[bold]{escape(study.heading)}[/]: {len(study.jobs)} job{'s' * (len(study.jobs) != 1)}")
    makers = [quality_tables.pivot, quality_tables.models, quality_tables.seeds, quality_tables.published]
    if not study.models:
        makers = [speed_tables.shares if study.shares else speed_tables.backends]
    for table in (make(study) for make in [*makers, speed_tables.published]):
        if table.rows:
            _show(table, console)
    for problem in study.problems:
        console.print(f"[red]✗[/] {escape(problem)}", highlight=False, soft_wrap=True)


def _show(table: Table, console: Console) -> None:
    columns = fitting(table, console.width)
    shown = RichTable(title=table.title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        shown.add_column(escape(column.label), justify="right" if column.number else "left", no_wrap=True)
    for row in table.rows:
        cells = [row.get(column.key, EMPTY) for column in columns]
        shown.add_row(*(f"[bold]{escape(cell.text)}[/]" if cell.best else escape(cell.text) for cell in cells))
    console.print(shown)
    if left := [column.label for column in table.columns if column not in columns]:
        console.print(f"[dim]and in the files: {escape('; '.join(dict.fromkeys(left)))}[/]", highlight=False)
