"""A metric of a stage, with its error, unit and direction, as files, terminal, MLflow and reports use it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.record.files import read_json
from stages import contracts

if TYPE_CHECKING:
    from stages.stage import MetricSpec


@dataclass(frozen=True)
class Metric:
    name: str
    value: float
    stderr: float | None = None
    unit: str = ""
    """`%`, `tokens/s`; `fraction` is shown in percent; empty for plain numbers."""
    higher_is_better: bool | None = None
    """None for metrics without a direction, which describe a result and rank none."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """How it was measured; for a benchmark `backend`, `model` and `quantity`, and for a decoding speed-up also
    `slowest` and `fastest`, its range over the rounds."""
    recovery: float | None = None
    """Percent of the dense model's quality; None where it was not compared."""

    @property
    def is_quality(self) -> bool:
        """Returns whether an evaluation ranks models by it."""
        return self.higher_is_better is not None

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "name" and value not in (None, "", {})}


Metrics = dict[str, Metric]
"""Metrics by name, in the order in which the stage gave them."""


def of_result(stage: str, summary: Mapping[str, float], folder: Path | None) -> Metrics:
    """Returns the metrics of a stage's `summary`, completed from `metrics.json` and `benchmark.json` in its folder.
    Without a folder (a record by an older version, whose result is gone) the summary is the only source."""
    # imported here: listing the store must be fast, and reads no metrics
    from stages.index import described

    specs = {metric.name: metric for metric in described(stage).metrics}
    known: Iterable[Metric]
    if described(stage).makes is contracts.Metrics:
        known = _evaluation(summary, (folder and read_json(folder / "metrics.json")) or _summarized(summary), specs)
    elif described(stage).makes is contracts.Benchmark:
        rows = (folder and read_json(folder / "benchmark.json").get("rows")) or [_row(name) for name in summary]
        known = _benchmark(summary, rows, specs)
    else:
        known = (_plain(name, value, specs.get(name)) for name, value in summary.items())
    found = {metric.name: metric for metric in known}
    covered = found.keys() | flat(found).keys()
    return found | {name: Metric(name, float(value)) for name, value in summary.items() if name not in covered}


def from_json(stage: str, record: Mapping[str, Any]) -> Metrics:
    """Reads the metrics of an outcome in a record. Older versions wrote the stage's summary itself."""
    if all(isinstance(value, Mapping) for value in record.values()):
        return {name: Metric(name, **value) for name, value in record.items()}
    return of_result(stage, record, None)


def flat(metrics: Metrics) -> dict[str, float]:
    """Returns the metrics as a stage's summary has them: standard errors and recoveries as numbers of their own, for
    charts."""
    found: dict[str, float] = {}
    for name, metric in metrics.items():
        found[name] = metric.value
        if metric.stderr is not None:
            found[f"{name}_stderr"] = metric.stderr
        if metric.recovery is not None:
            found[f"{name}_recovery"] = metric.recovery
    return found


def qualities(metrics: Metrics) -> list[Metric]:
    """Returns the metrics of an evaluation that rank models, the most important first: exact match if there is one,
    else the first."""
    ranked = [metric for metric in metrics.values() if metric.is_quality]
    return sorted(ranked, key=lambda metric: metric.protocol.get("metric") != "exact_match")


def _evaluation(
    summary: Mapping[str, float], measured: Mapping[str, Any], specs: Mapping[str, MetricSpec]
) -> Iterator[Metric]:
    for name, metric in measured.items():
        protocol = metric.get("protocol", {})
        spec = specs.get(name) or specs.get(protocol.get("metric", ""))
        higher = protocol.get("higher_is_better", spec.higher_is_better if spec else None)
        yield Metric(
            name=name,
            value=float(metric["value"]),
            stderr=metric.get("stderr"),
            unit=protocol.get("unit", spec.unit if spec else ""),
            # lm-eval's default is that higher is better
            higher_is_better=None if protocol.get("describes") else higher is not False,
            protocol=protocol,
            recovery=summary.get(f"{name}_recovery"),
        )


def _summarized(summary: Mapping[str, float]) -> dict[str, Any]:
    """Rebuilds the contents of metrics.json from a summary alone: standard errors and recoveries belong to the metric
    that they are named after, and the parts of word errors are not metrics."""
    belongs = {f"{name}{end}" for name in summary for end in ("_stderr", "_recovery")}
    parts = {
        f"wer_{part}{end}" for part in ("substitutions", "deletions", "insertions") for end in ("", "_full_window")
    }
    return {
        name: {
            "value": value,
            "stderr": summary.get(f"{name}_stderr"),
            "protocol": {"metric": "exact_match"} if "exact_match" in name else {},
        }
        for name, value in summary.items()
        if name not in belongs | parts
    }


def _benchmark(
    summary: Mapping[str, float], rows: Iterable[Mapping[str, Any]], specs: Mapping[str, MetricSpec]
) -> Iterator[Metric]:
    for row in rows:
        for quantity, spec in specs.items():
            name = f"{row['backend']}.{row['model']}.{quantity}"
            if name in summary:
                protocol = {"backend": row["backend"], "model": row["model"], "quantity": quantity}
                if quantity == "decode_speedup":
                    protocol |= _rounds(row, float(summary[name]))
                yield Metric(name, float(summary[name]), None, spec.unit, spec.higher_is_better, protocol)


def _rounds(row: Mapping[str, Any], speedup: float) -> dict[str, float]:
    """Returns the range of a decoding speed-up over the rounds, which is that of its tokens per second."""
    rate = row.get("decode_tokens_per_second")
    ends = {end: row.get(f"decode_tokens_per_second_{of}") for end, of in (("slowest", "min"), ("fastest", "max"))}
    return {end: speedup * value / rate for end, value in ends.items() if rate and value}


def _row(name: str) -> dict[str, str]:
    backend, _, rest = name.partition(".")
    return {"backend": backend, "model": rest.partition(".")[0]}


def _plain(name: str, value: float, spec: MetricSpec | None) -> Metric:
    return (
        Metric(name, float(value))
        if spec is None
        else Metric(name, float(value), None, spec.unit, spec.higher_is_better)
    )
