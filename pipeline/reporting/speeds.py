"""What was measured of speed, and what each step gained: the runtime itself, int8, the zeros, an int8 head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.reporting.folders import JobRecord
from pipeline.reporting.models import benchmarks, zeros
from pipeline.reporting.results import Results

BULKY = ("generated",)
"""Of a benchmark's row, what a report does not repeat."""
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
    """Fingerprint."""
    jobs: tuple[int, ...]
    dials: dict[str, str]
    backend: str
    dense: Mapping[str, Any] | None
    sparse: Mapping[str, Any] | None
    """Rows of benchmark.json; None where not run."""
    told: str
    """Why it was not run, or its note."""
    sparsity: float | None
    """Of the sparse model's prunable weights, as achieved."""
    pattern: str


@dataclass(frozen=True)
class Shares:
    """Factors of decoding speed in one benchmark; None where one of the two rows is missing."""

    benchmark: str
    jobs: tuple[int, ...]
    dials: dict[str, str]
    steps: dict[str, float | None]
    total: float
    """Of the last step that was measured, over torch fp32 of the dense model."""
    total_backend: str


@dataclass(frozen=True)
class Machine:
    cpu: str
    threads: int
    workload: str
    rounds: int
    fingerprints: tuple[str, ...]


def collect(
    jobs: Sequence[JobRecord], settings: Sequence[dict[str, str]], results: Results
) -> tuple[list[SpeedRow], list[Shares], list[Machine]]:
    rows: list[SpeedRow] = []
    shares: list[Shares] = []
    machines: dict[tuple[str, int, str, int], list[str]] = {}
    for result, found in benchmarks(results):
        users = [at for at, job in enumerate(jobs) if _asked(job, result.fingerprint)]
        first = settings[users[0]]
        dials = {key: value for key, value in first.items() if all(settings[at].get(key) == value for at in users)}
        measured = {
            (row["backend"], row["model"]): {key: value for key, value in row.items() if key not in BULKY}
            for row in found["rows"]
            if row["status"] == "ok"
        }
        sparsity = zeros(results.by_fingerprint(result.inputs.get("sparse", "")), results)[0]
        pattern = jobs[users[0]].config.get("prune", {}).get("pattern", "unstructured")
        told = {row["backend"]: row.get("reason") or row.get("note") or "" for row in found["rows"]}
        for backend in dict.fromkeys(row["backend"] for row in found["rows"]):
            sides = measured.get((backend, "dense")), measured.get((backend, "sparse"))
            rows.append(
                SpeedRow(result.fingerprint, tuple(users), dials, backend, *sides, told[backend], sparsity, pattern)
            )
        if share := _shares(result.fingerprint, tuple(users), dials, measured):
            shares.append(share)
        machine, protocol = found["machine"], found["protocol"]
        key = machine["cpu"], machine["threads"], protocol.get("workload", ""), protocol.get("rounds", 0)
        machines.setdefault(key, []).append(result.fingerprint)
    rows.sort(key=lambda row: row.jobs[0])
    shares.sort(key=lambda share: share.jobs[0])
    return rows, shares, [Machine(*key, tuple(prints)) for key, prints in machines.items()]


def _asked(job: JobRecord, fingerprint: str) -> bool:
    return any(node.fingerprint == fingerprint for node in job.nodes.values())


def _shares(
    benchmark: str, jobs: tuple[int, ...], dials: dict[str, str], measured: Mapping[tuple[str, str], Mapping[str, Any]]
) -> Shares | None:
    def rate(row: tuple[str, str]) -> float | None:
        return float(measured[row]["decode_tokens_per_second"]) if row in measured else None

    steps: dict[str, float | None] = {}
    for name, with_it, without in STEPS:
        fast, slow = rate(with_it), rate(without)
        steps[name] = fast / slow if fast and slow else None
    base = rate(BASE)
    last = next((row for _, row, _ in reversed(STEPS) if rate(row)), None)
    if not base or last is None or last[1] != "sparse":
        return None
    return Shares(benchmark, jobs, dials, steps, (rate(last) or 0) / base, last[0])
