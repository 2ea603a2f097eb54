"""Formats rows of `stack` as two tables: speed, and the phases of the engine's steps."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from engine.bench.output import MISSING, show_machine, table
from engine.bench.rounds import three_digits

Row = dict[str, Any]


def show(record: dict[str, Any], console: Console) -> None:
    stack, protocol = record["stack"], record["protocol"]
    show_machine(record, console)
    for line in (
        f"random Llama: {stack['layers']} layers of width {stack['width']} and MLP width {stack['mlp_width']}, "
        f"vocabulary {stack['vocabulary']}",
        f"sparsity {stack['sparsity']:.4g} at random places; _dense and llama.cpp store the zeros, torch reads them",
        f"medians of {protocol['rounds']} interleaved rounds of {protocol['new_tokens']} tokens (and their range)",
    ):
        console.print(line, markup=False, soft_wrap=True)
    measured = [row for row in record["rows"] if row["status"] == "ok"]
    if measured:
        console.print("\nshare: of the read bandwidth; limit: tokens/s, were nothing done but reading the weights")
        console.print(_speed(measured))
    if any(row["step_us"] for row in measured):
        console.print("\nthe engine's step in us, by phase, mean; waiting for the slowest thread included")
        console.print(_profiles(measured))
    for row in record["rows"]:
        remark = row["note"] if row["status"] == "ok" else f"n/a ({row['reason']})"
        if remark:
            console.print(f"{row['contender']}: {remark}", style="dim", markup=False, soft_wrap=True)


def _speed(rows: list[Row]) -> Table:
    made = table("", "tokens/s", "x fp32", "x Q4_K", "MB/token", "GB/s", "share", "limit")
    for row in rows:
        read = row["bytes_per_token"]
        least, most = three_digits(row["tokens_per_second_min"]), three_digits(row["tokens_per_second_max"])
        made.add_row(
            row["contender"],
            f"{three_digits(row['tokens_per_second'])} ({least}–{most})",
            _number(row["over_torch_fp32"], ".2f"),
            _number(row["over_llamacpp_q4_k"], ".2f"),
            _number(None if read is None else read / 1e6, ".0f"),
            _number(row["gigabytes_per_second"], ".1f"),
            _number(row["share_of_bandwidth"], ".0%"),
            MISSING if read is None else three_digits(row["memory_limit_tokens_per_second"]),
        )
    return made


def _profiles(rows: list[Row]) -> Table:
    profiled = [row for row in rows if row["step_us"]]
    phases = list(profiled[0]["step_us"])
    made = table("", *phases, "sum")
    for row in profiled:
        times = [row["step_us"][phase] for phase in phases]
        made.add_row(row["contender"], *[f"{time:.0f}" for time in times], f"{sum(times):.0f}")
    return made


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else f"{value:{form}}"
