"""Reads benchmarks as measured, and computes what each step gains: the runtime itself, int8, the zeros, an int8
head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.record.folders import JobRecord
from pipeline.record.headline import is_exact
from pipeline.record.result import Result
from pipeline.reporting.choices import common_options
from pipeline.reporting.results import Results
from stages.benchmark.backends import BACKENDS
from stages.contracts import Benchmark
from stages.index import described

if TYPE_CHECKING:
    from pandas import DataFrame

BULKY = ("generated",)
"""Fields of a benchmark's row that a report does not repeat."""
BASE = ("torch_fp32", "dense")
STEPS = (
    ("runtime", ("engine_fp32", "dense"), BASE),
    ("int8", ("engine_int8", "dense"), ("engine_fp32", "dense")),
    ("zeros", ("engine_int8", "sparse"), ("engine_int8", "dense")),
    ("int8 head", ("engine_int8_head", "sparse"), ("engine_int8", "sparse")),
)
"""(step, with it, without it): rows of one benchmark, measured in the same rounds; their product is the whole."""


@dataclass(frozen=True)
class SpeedRow:
    """One backend on the dense and on the sparse model of one benchmark, as measured."""

    benchmark: str
    """Fingerprint of the benchmark."""
    jobs: tuple[int, ...]
    options: dict[str, str]
    backend: str
    dense: Mapping[str, Any] | None
    sparse: Mapping[str, Any] | None
    """Rows of benchmark.json; None if the backend did not run."""
    note: str
    """Why it did not run, or its note."""
    sparsity: float | None
    """Achieved sparsity of the sparse model's prunable weights."""
    pattern: str


@dataclass(frozen=True)
class Shares:
    """Factors of decoding speed in one benchmark; None where one of the two rows is missing."""

    benchmark: str
    jobs: tuple[int, ...]
    options: dict[str, str]
    steps: dict[str, float | None]
    total: float
    """Speed-up of the last step that was measured, over torch fp32 of the dense model."""
    total_backend: str


@dataclass(frozen=True)
class Machine:
    cpu: str
    threads: int
    workload: str
    rounds: int
    fingerprints: tuple[str, ...]


@dataclass(frozen=True)
class Speed:
    """Decoding speed over torch fp32 of the dense model, by the fastest backend that computes what was evaluated."""

    backend: str
    ratio: float
    slowest: float
    fastest: float
    weight_bytes: int | None
    """Bytes of weights read for each decoded token."""
    fingerprints: tuple[str, ...]
    """Fingerprints of the benchmarks; with more than one, the figures are medians."""


def ran(side: str, backend: str) -> str:
    """Returns the input of the benchmark that a row ran."""
    if backend in BACKENDS.names() and BACKENDS.get(backend).quantized:
        return "quantized_dense" if side == "dense" else "quantized"
    return side


def benchmarks(results: Results) -> Iterator[tuple[Result, Mapping[str, Any]]]:
    """Yields every benchmark that was read, and its benchmark.json."""
    for result in results.all():
        if described(result.stage).makes is Benchmark and (found := result.read("benchmark.json")):
            yield result, found


def collect(jobs: Sequence[JobRecord], settings: Sequence[dict[str, str]], results: Results) -> list[SpeedRow]:
    rows: list[SpeedRow] = []
    for result, found in benchmarks(results):
        users = tuple(at for at, job in enumerate(jobs) if result.fingerprint in job.fingerprints)
        options = common_options([settings[at] for at in users])
        measured = {
            (row["backend"], row["model"]): {key: value for key, value in row.items() if key not in BULKY}
            for row in found["rows"]
            if row["status"] == "ok"
        }
        sparsity = results.zeros(results.by_fingerprint(result.inputs.get("sparse", "")))[0]
        pattern = jobs[users[0]].config.get("prune", {}).get("pattern", "unstructured")
        notes = {row["backend"]: row.get("reason") or row.get("note") or "" for row in found["rows"]}
        for backend, note in notes.items():
            sides = measured.get((backend, "dense")), measured.get((backend, "sparse"))
            rows.append(SpeedRow(result.fingerprint, users, options, backend, *sides, note, sparsity, pattern))
    return sorted(rows, key=lambda row: row.jobs[0])


def machines(results: Results) -> list[Machine]:
    found: dict[tuple[str, int, str, int], list[str]] = {}
    for result, measured in benchmarks(results):
        machine, protocol = measured["machine"], measured["protocol"]
        key = machine["cpu"], machine["threads"], protocol.get("workload", ""), protocol.get("rounds", 0)
        found.setdefault(key, []).append(result.fingerprint)
    return [Machine(*key, tuple(fingerprints)) for key, fingerprints in found.items()]


def shares(rows: Sequence[SpeedRow]) -> list[Shares]:
    found = []
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        own = [row for row in rows if row.benchmark == benchmark]
        rates = {
            (row.backend, side): measured["decode_tokens_per_second"]
            for row in own
            for side, measured in (("dense", row.dense), ("sparse", row.sparse))
            if measured
        }
        last = next((row for _, row, _ in reversed(STEPS) if row in rates), None)
        if last and last[1] == "sparse" and BASE in rates:
            steps = {step: rates[fast] / rates[slow] if fast in rates and slow in rates else None
                     for step, fast, slow in STEPS}  # fmt: skip
            total = rates[last] / rates[BASE]
            found.append(Shares(benchmark, own[0].jobs, own[0].options, steps, total, last[0]))
    return found


def fastest(table: DataFrame, checkpoint: str) -> Speed | None:
    """Returns the fastest decoding speed of a checkpoint, by the benchmark rows of the tidy table."""
    own = table[(table["checkpoint"] == checkpoint) & table["backend"].map(is_exact).astype(bool)]
    speeds = []
    for backend, rows in own.groupby("backend", sort=False):
        ratios, weights = (rows[rows["metric"] == metric] for metric in ("decode_speedup", "weight_bytes"))
        if len(ratios):
            of_first = weights.loc[weights["fingerprint"] == ratios["fingerprint"].iloc[0], "value"]
            speeds.append(
                Speed(backend, median(ratios["value"]), min(ratios["low"]), max(ratios["high"]),
                      next(iter(of_first), None), tuple(dict.fromkeys(ratios["fingerprint"])))
            )  # fmt: skip
    return max(speeds, key=lambda speed: speed.ratio, default=None)
