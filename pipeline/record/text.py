"""Formats metrics for people, in the terminal and in MLflow's descriptions."""

from __future__ import annotations

import math

from pipeline.disk import format_bytes
from pipeline.record.headline import Headline
from pipeline.record.metrics import Metric


def format_value(metric: Metric) -> str:
    """Formats a metric: `22.31`, `22.31 ± 0.52`, `50 %` for a fraction, `134,515,008`."""
    value, error = metric.value, metric.stderr
    if metric.unit == "bytes":
        return format_bytes(value)
    unit = metric.unit
    if unit == "fraction":
        value, error, unit = 100 * value, None if error is None else 100 * error, "%"
    text = _number(value) + (f" ± {error:.2g}" if error is not None else "")
    return f"{text} {unit}".rstrip()


def describe(metric: Metric) -> str:
    """Describes a metric: `perplexity 22.31 ± 0.52 (recovery 91.2 %)`; for a benchmark with its backend: `engine_int8
    sparse 6.3 x`."""
    name = metric.name
    if "backend" in metric.protocol:
        name = f"{metric.protocol['backend']} {metric.protocol['model']}"
    recovery = f" (recovery {metric.recovery:.1f} %)" if metric.recovery is not None else ""
    return f"{name} {format_value(metric)}{recovery}"


def describe_job(found: Headline) -> str:
    """Describes quality and speed of a job in a few words; empty if neither was measured."""
    parts = [describe(found.quality)] if found.quality else []
    parts += [f"best {describe(found.speedup)}"] if found.speedup else []
    return ", ".join(parts)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return f"{value}"
    if abs(value) >= 10_000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.4g}"
