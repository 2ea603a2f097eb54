"""Formats rows of `layers` as tables: contenders by sparsities, for each shape and number of tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from engine.bench.output import MISSING, show_machine, table, threads_text

Row = dict[str, Any]
Cell = Callable[[Row], str | None]


def show(record: dict[str, Any], console: Console) -> None:
    protocol, threads = record["protocol"], threads_text(record["machine"]["threads"])
    show_machine(record, console)
    about = f"medians of {protocol['rounds']} interleaved rounds; zeros at random places; columns are sparsities"
    console.print(about, markup=False, soft_wrap=True)
    for (rows, columns, tokens), group in groupby(record["rows"], lambda r: (r["rows"], r["columns"], r["tokens"])):
        console.print()
        _show_group(f"{rows} x {columns}, {tokens} token{'s' * (tokens > 1)}, {threads}", [*group], protocol, console)


def _show_group(title: str, rows: list[Row], protocol: dict[str, Any], console: Console) -> None:
    few = rows[0]["tokens"] <= protocol["flushed_up_to_tokens"]
    flush = protocol["flush_bytes"] if few else 0
    cache = f"after reading {flush / 1e6:.0f} MB of other memory" if flush else "hot: weights may stay in the cache"
    console.print(f"[bold]{title}[/] ({cache})", soft_wrap=True)
    blocks: list[tuple[str, Cell]] = [
        ("times as fast as torch fp32 dense / as the fastest dense contender", _ratios),
        ("times as fast as dense in the same dtype, by the engine: the share of sparsity", _same_dtype),
    ]
    if few:
        blocks.append(("share of the read bandwidth / storage roofline: times as fast as fp32 dense", _bandwidth))
    else:
        blocks.append(("GFLOP/s, zeros counted as done / FLOP roofline: times as fast as dense", _flops))
    for about, cell in blocks:
        if (made := _table(rows, cell)).row_count:
            console.print(about)
            console.print(made)
    for line in _notes(rows):
        console.print(line, style="dim", markup=False, soft_wrap=True)


def _table(rows: list[Row], cell: Cell) -> Table:
    sparsities = list(dict.fromkeys(row["sparsity"] for row in rows))
    made = table("", *[f"{sparsity:.4g}" for sparsity in sparsities])
    found = {(row["contender"], row["sparsity"]): cell(row) for row in rows if row["status"] == "ok"}
    for name in dict.fromkeys(row["contender"] for row in rows):
        cells = [found.get((name, sparsity)) for sparsity in sparsities]
        if any(cells):
            made.add_row(name, *[text or MISSING for text in cells])
    return made


def _ratios(row: Row) -> str:
    if row["contender"] == "torch_fp32":
        return f"{row['median_us']:.0f} us / {row['over_fastest_dense']:.2f}"
    return f"{_times(row['over_torch_fp32_dense'])} / {_times(row['over_fastest_dense'])}"


def _same_dtype(row: Row) -> str | None:
    return None if row["dense"] else _times(row["over_same_dtype_dense"])


def _bandwidth(row: Row) -> str | None:
    if row["share_of_bandwidth"] is None:
        return None
    return f"{row['share_of_bandwidth']:.0%} / {row['storage_roofline']:.2f}"


def _flops(row: Row) -> str:
    return f"{row['gigaflops']:.0f} / {row['flop_roofline']:.2f}"


def _times(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{ratio:.2f}"


def _notes(rows: list[Row]) -> Iterator[str]:
    measured = [row for row in rows if row["status"] == "ok"]
    yield f"fastest dense: {', '.join(dict.fromkeys(row['fastest_dense'] for row in measured))}"
    widest = max(measured, key=_spread)
    label = f"{widest['contender']} at {widest['sparsity']:.4g}"
    yield f"widest range over rounds: {_spread(widest):.0%} of the median ({label})"
    reasons: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["status"] != "ok":
            reasons[row["reason"]][row["contender"]].append(f"{row['sparsity']:.4g}")
    for reason, contenders in reasons.items():
        where = ", ".join(f"{name} at {' '.join(sparsities)}" for name, sparsities in contenders.items())
        yield f"n/a ({reason}): {where}"


def _spread(row: Row) -> float:
    return float((row["max_us"] - row["min_us"]) / row["median_us"])
