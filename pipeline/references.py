"""Reads and checks the published figures that reports put beside ours: conf/references.yaml.

The option `reference` of a job names its table.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import yaml

from pipeline import CONF
from stages.contracts import UserError

FILE = CONF / "references.yaml"
RATE = "decode_tokens_per_second"
"""Metric of tables of speed, whose speed-ups are over their dense row."""


@dataclass(frozen=True)
class Reference:
    """One published figure."""

    table: str
    """Key of its table in the file."""
    title: str
    """Title of the table, for readers."""
    source: str
    """Where the figure was read."""
    family: str
    model: str
    dataset: str
    metric: str
    """Name of the metric: that of our evaluation if it can measure it, otherwise as published."""
    value: float
    """Value in the unit of our metric: accuracy as a fraction, BLEU and WER in percent."""
    sparsity: float
    """Sparsity of the prunable weights; 0: dense."""
    higher_is_better: bool = True
    method: str | None = None
    """What made the zeros; None: dense, or unknown."""
    loss: str | None = None
    """What it was fine-tuned with after pruning (`conf/distill`); None: it was not, or that is unknown."""
    pattern: str = "unstructured"
    int8: bool = False
    dense: float | None = None
    """Value of the table's dense floating-point row; where it has none, of its dense int8 row."""
    speedup: float | None = None
    """Speed-up of decoding this model over the dense one of the precision `speedup_over` in the same runtime."""
    zeros_speedup: float | None = None
    """The share of the zeros in that: over the dense model of the same precision, where the table has its speed."""
    speedup_over: Literal["fp32", "int8", ""] = ""
    runtime: str = ""
    """What ran it."""
    hardware: str = ""
    """What it ran on."""
    speed_source: str = ""
    """Where its speed was read, if not at `source`."""
    speed_table: str = ""
    """The table that has the speed of these models, where it is another."""
    models: tuple[str, ...] = ()
    """Other names of the model, as the last part of a path has them."""
    data: tuple[str, ...] = ()
    """Names of the data set, as the last part of a path has them, and the subset after it."""
    protocol: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Options of ours and their values that measure as the figure was measured (`evaluate.perplexity.length: 2048`)."""
    usual: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The same, or a list of such values, of options that records of older versions lack: those measured so."""
    shots: int | None = None
    """Examples before each question of a task."""
    note: str = ""

    @property
    def recovery(self) -> float | None:
        """Returns the percentage of the dense value, computed as in `stages.evaluate`."""
        if self.dense is None:
            return None
        return 100 * (self.value / self.dense if self.higher_is_better else self.dense / self.value)

    @property
    def precision(self) -> Literal["fp32", "int8"]:
        return "int8" if self.int8 else "fp32"

    @property
    def ran(self) -> str:
        """Returns what the speed was measured with: model, runtime and hardware."""
        return ", ".join(filter(None, (self.model, self.runtime, self.hardware)))


@functools.cache
def load() -> tuple[Reference, ...]:
    """Returns all figures in the order of the file. It is read once, since every job of a sweep asks for its table."""
    tables: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return tuple(reference for name, table in tables.items() for reference in _rows(name, table))


def of_table(table: str) -> list[Reference]:
    """Returns the figures of one table. Raises UserError for a name that is not in the file."""
    found = [reference for reference in load() if reference.table == table]
    if not found:
        have = ", ".join(dict.fromkeys(reference.table for reference in load()))
        raise UserError(f"no published table {table!r}; there are: {have}", "reference")
    return found


def of_speed(table: str) -> list[Reference]:
    """Returns the figures with a speed-up of one table, or of the table that it names for them."""
    named = next((reference.speed_table for reference in of_table(table) if reference.speed_table), table)
    return [reference for reference in of_table(named) if reference.speedup]


def _rows(name: str, table: dict[str, Any]) -> list[Reference]:
    common = {key: value for key, value in table.items() if key not in ("rows", "scale")}
    scale = table.get("scale", 1)
    known = {key.name for key in fields(Reference)}
    rows = []
    for row in table["rows"]:
        values = {key: tuple(it) if isinstance(it, list) else it for key, it in (common | row).items()}
        if unknown := set(values) - known:
            raise ValueError(f"{FILE.name}: {name}: unknown keys {sorted(unknown)}")
        rows.append(values | {"table": name, "value": round(row["value"] * scale, 6)})
    dense = sorted((row for row in rows if row["sparsity"] == 0), key=lambda row: row.get("int8", False))
    base = dense[0]["value"] if dense else None
    if base and table["metric"] == RATE:
        rows = [row | {"speedup": row["value"] / base} for row in rows]
        dense = [row | {"speedup": row["value"] / base} for row in dense]
    speeds = {row.get("int8", False): row.get("speedup") for row in dense}
    return [Reference(**row, dense=base, zeros_speedup=_zeros_share(row, speeds)) for row in rows]


def _zeros_share(row: dict[str, Any], dense: dict[bool, float | None]) -> float | None:
    """Returns the speed-up due to the zeros alone. `dense` maps int8 to the speed-up of the dense model."""
    base = dense.get(row.get("int8", False))
    return row["speedup"] / base if row.get("speedup") and row["sparsity"] and base else None
