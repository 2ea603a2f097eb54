"""Builds the rows of benchmark.json: medians of the rounds, and speed-ups over three baselines."""

from __future__ import annotations

import statistics
from typing import Any

from stages.benchmark.rounds import MEASURED, Round

Row = dict[str, Any]
BASELINE = ("torch_fp32", "dense")


def medians(rounds: list[Round]) -> Row:
    """Returns for each measured quantity its median, `_min`, `_max` and all `_rounds`."""
    row: Row = {}
    for key in MEASURED:
        values = [found.measured()[key] for found in rounds if key in found.measured()]
        if values:
            row |= {key: statistics.median(values), f"{key}_min": min(values), f"{key}_max": max(values)}
            row[f"{key}_rounds"] = values
    return row


def add_speedups(rows: list[Row]) -> list[Row]:
    """Adds `decode_speedup` and `prefill_speedup` over three baselines each: torch fp32 dense, the same backend dense,
    and the fastest dense row, which `best_dense` names; null where that baseline did not run. And `same_tokens`, the
    share of generated tokens before the first that differs from torch fp32's on the same model, mean of the samples."""
    found = {(row["backend"], row["model"]): row for row in rows}
    dense = [row for row in rows if row["model"] == "dense"]
    for row in rows:
        for speed, value in (("decode", _decode_speed), ("prefill", _prefill_speed)):
            best = max(dense, key=value, default=None)
            baselines = {
                "torch_fp32_dense": found.get(BASELINE),
                "same_backend_dense": found.get((row["backend"], "dense")),
                "best_dense": best,
            }
            row[f"{speed}_speedup"] = {
                name: value(row) / value(baseline) if baseline else None for name, baseline in baselines.items()
            }
            row[f"{speed}_best_dense"] = best["backend"] if best else None
        reference = found.get((BASELINE[0], row["model"]))
        row["same_tokens"] = _same(row["generated"], reference["generated"]) if reference else None
    return rows


def summary(rows: list[Row]) -> dict[str, float]:
    """Returns the values of the rows that ran, by `BACKEND.MODEL.KEY`."""
    found: dict[str, float] = {}
    for row in rows:
        if row["status"] == "ok":
            name = f"{row['backend']}.{row['model']}"
            for key in SUMMARY:
                if row.get(key) is not None:
                    found[f"{name}.{key}"] = float(row[key])
            for speed in ("decode", "prefill"):
                over = row[f"{speed}_speedup"]["torch_fp32_dense"]
                if over is not None:
                    found[f"{name}.{speed}_speedup"] = over
    return found


SUMMARY = (
    *("decode_tokens_per_second", "prefill_ms", "real_time_factor", "beam_tokens_per_second"),
    *("gigabytes_per_second", "memory_bytes"),
)


def _decode_speed(row: Row) -> float:
    return float(row["decode_tokens_per_second"])


def _prefill_speed(row: Row) -> float:
    return 1 / float(row["prefill_ms"])


def _same(a: list[list[int]], b: list[list[int]]) -> float:
    return statistics.fmean(_same_start(x, y) for x, y in zip(a, b, strict=True))


def _same_start(a: list[int], b: list[int]) -> float:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a)) / len(a)
