"""Tables of cells, each with its text, the figure behind it, and the fingerprints of the results that it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.labels import label

PERCENT = ("exact_match", "acc", "accuracy", "pass_at_", "code_parses", "ifeval", "reply_stop", "reply_repeated")
"""Parts of the names of metrics that are fractions; these are shown in percent."""
NAMES = {
    "wer": "WER",
    "cer": "CER",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "rouge_lsum": "ROUGE-Lsum",
    "target_nll": "NLL of targets",
    "pass_at_1": "pass@1",
    "exact_match": "exact match",
    "squarehead_qa_exact_match_strict_match": "accuracy",
    "squarehead_qa_exact_match_flexible_extract": "accuracy, any number",
}


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | None = None
    error: float | None = None
    fingerprints: tuple[str, ...] = ()
    best: bool = False
    link: str = ""
    """Link from the page to a file beside it."""


@dataclass(frozen=True)
class Column:
    key: str
    label: str
    number: bool = True
    """Whether it is aligned to the right."""
    weight: int = 1
    """In narrow terminals the columns of least weight are left out first."""


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    columns: list[Column]
    rows: list[dict[str, Cell]]
    notes: list[str] = field(default_factory=list)


EMPTY = Cell("")
GAP = 1
"""Characters between two columns, on either side."""
OPTION = "option."
"""Prefix of the keys of option columns: options named sparsity and model exist too."""


def measured(metric: str, value: float, error: float | None, prints: tuple[str, ...], best: bool = False) -> Cell:
    """Returns the cell of a quality with its error."""
    return Cell(with_error(metric, value, error), value, error, prints, best)


def share(value: float, prints: tuple[str, ...] = ()) -> Cell:
    """Returns the cell of a fraction, shown in percent."""
    return Cell(percent(100 * value), value, None, prints)


def table(name: str, title: str, columns: Iterable[Column], rows: list[dict[str, Cell]], *notes: str) -> Table:
    """Builds a table without empty columns and without option columns that are the same in all rows."""
    texts: dict[str, set[str]] = {}
    for row in rows:
        for key, cell in row.items():
            texts.setdefault(key, set()).add(cell.text)
    shown = [column for column in columns if len(texts.get(column.key, set()) - {""}) > column.key.startswith(OPTION)]
    return Table(name, title, shown, rows, list(notes))


def options(differing: Mapping[str, str]) -> dict[str, Cell]:
    """Returns the cells of options that differ."""
    return {OPTION + key: Cell(label(value) or value) for key, value in differing.items()}


def option_columns(keys: Iterable[str]) -> list[Column]:
    return [Column(OPTION + key, key, number=False, weight=9) for key in keys]


def name_of(metric: str) -> str:
    """Returns the name of a metric for readers: `WER`; `accuracy, %`."""
    base, full, _ = metric.partition("_full_window")
    name = NAMES.get(base, base.replace("_", " ")) + (", full window" if full else "")
    return f"{name}, %" if any(part in metric for part in PERCENT) else name


def named_value(metric: str, value: float, error: float | None) -> str:
    """Formats a metric with its name: `WER 12.3 ± 0.4`; `accuracy 30.5 ± 1.2 %`."""
    name = name_of(metric)
    figures = f"{name.removesuffix(', %')} {with_error(metric, value, error)}"
    return f"{figures} %" if name.endswith(", %") else figures


def plain(metric: str, value: float) -> float:
    """Converts a value into the unit in which it is shown: fractions into percent."""
    return 100 * value if any(part in metric for part in PERCENT) else value


def number(metric: str, value: float) -> str:
    """Formats a value with about four digits."""
    value = plain(metric, value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def with_error(metric: str, value: float, error: float | None) -> str:
    """Formats `value ± error`, both to the same digit."""
    text = number(metric, value)
    digits = len(text.partition(".")[2])
    return text if error is None else f"{text} ± {plain(metric, error):.{digits}f}"


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f}" if count >= 1e7 else f"{count / 1e6:.2g}"


def percent(value: float) -> str:
    return f"{value:.1f} %"


def fitting(table: Table, width: int) -> list[Column]:
    """Returns the columns that fit into `width` characters. Columns of least weight are dropped first, of those the
    rightmost."""
    columns = list(table.columns)

    def needed() -> int:
        return sum(_width(table, column) + 2 * GAP for column in columns) - 2 * GAP

    while len(columns) > 1 and needed() > width:
        lightest = min(range(len(columns)), key=lambda at: (columns[at].weight, -at))
        columns.pop(lightest)
    return columns


def _width(table: Table, column: Column) -> int:
    return max(len(column.label), *(len(row.get(column.key, EMPTY).text) for row in table.rows))
