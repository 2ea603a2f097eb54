"""Published figures that reports put beside ours: conf/references.yaml, read and checked.

A job says with the option `reference` which table is its own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from pipeline.contracts import UserError

FILE = Path(__file__).resolve().parent.parent / "conf" / "references.yaml"


@dataclass(frozen=True)
class Reference:
    """One published figure."""

    table: str
    """Key of its table in the file."""
    title: str
    """Of the table, for readers."""
    source: str
    """Where the figure was read."""
    family: str
    model: str
    dataset: str
    metric: str
    """As our evaluation names it, where it can measure that; else as published."""
    value: float
    """In the unit of our metric: accuracy as a fraction, BLEU and WER in percent."""
    sparsity: float
    """Of the prunable weights; 0: dense."""
    higher_is_better: bool = True
    method: str | None = None
    """What made the zeros; None: dense, or not told."""
    loss: str | None = None
    """What it was fine-tuned with after pruning (`conf/distill`); None: it was not, or not told."""
    pattern: str = "unstructured"
    int8: bool = False
    dense: float | None = None
    """Value of the table's dense floating-point row; where it has none, of its dense int8 row."""
    speedup: float | None = None
    """Of decoding this model, over `speedup_over`."""
    speedup_over: str = ""
    note: str = ""

    @property
    def recovery(self) -> float | None:
        """Percent of the dense value, as `stages.evaluate` counts it."""
        if self.dense is None:
            return None
        return 100 * (self.value / self.dense if self.higher_is_better else self.dense / self.value)


def load() -> list[Reference]:
    """All figures, in the order of the file."""
    tables: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return [reference for name, table in tables.items() for reference in _rows(name, table)]


def of_table(table: str) -> list[Reference]:
    """The figures of one table. Raises UserError for a name that is not in the file."""
    found = [reference for reference in load() if reference.table == table]
    if not found:
        have = ", ".join(dict.fromkeys(reference.table for reference in load()))
        raise UserError(f"no published table {table!r}; there are: {have}", "reference")
    return found


def _rows(name: str, table: dict[str, Any]) -> list[Reference]:
    common = {key: value for key, value in table.items() if key not in ("rows", "scale")}
    scale = table.get("scale", 1)
    known = {field.name for field in fields(Reference)}
    rows = []
    for row in table["rows"]:
        values = common | row
        if unknown := set(values) - known:
            raise ValueError(f"{FILE.name}: {name}: unknown keys {sorted(unknown)}")
        rows.append(values | {"table": name, "value": round(row["value"] * scale, 6)})
    dense = sorted((row for row in rows if row["sparsity"] == 0), key=lambda row: row.get("int8", False))
    return [Reference(**row, dense=dense[0]["value"] if dense else None) for row in rows]
