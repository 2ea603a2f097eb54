"""Compares our speed-ups with published ones, each over the dense model in its own runtime, in total and the share of
the zeros."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from pipeline.record.folders import JobRecord
from pipeline.references import Reference, of_speed
from pipeline.reporting.choices import is_seed
from pipeline.reporting.speeds import Machine, SpeedRow
from pipeline.reporting.verdicts import SAME

Gain = Literal["zeros", "int8", "int8 and zeros"]
SpeedVerdict = Literal["ahead", "behind", "about level"]
ENGINE = {"fp32": "engine_fp32", "int8": "engine_int8"}
"""Our backend for each precision; it computes what was evaluated."""
RATE = "decode_tokens_per_second"
VALUES_ALONE = ("distill", "finetune", "dense", "calibrate", "schedule", "evaluate")
"""Sections of options that change the values of weights, and so not the speed."""


@dataclass(frozen=True)
class SpeedComparison:
    """Our decoding speed and the published one, each over a dense model in the same runtime."""

    benchmarks: tuple[str, ...]
    """Fingerprints; with more than one, figures are medians, and the slowest and fastest round are those of all."""
    jobs: tuple[int, ...]
    options: dict[str, str]
    machine: str
    gain: Gain
    """What gains the ratio: `zeros` is over the dense model of the same precision, the others are over fp32."""
    precision: Literal["fp32", "int8"]
    backend: str
    ours: float
    slowest: float
    fastest: float
    """Slowest and fastest ratio of the two models in the same round."""
    whole: float | None
    """Our speed over torch fp32 of the dense model. It includes what our runtime gains by itself, so no published ratio
    compares with it."""
    published: float
    reference: Reference
    verdict: SpeedVerdict


def compare(
    jobs: Sequence[JobRecord], speeds: Sequence[SpeedRow], machines: Sequence[Machine]
) -> list[SpeedComparison]:
    """Compares each benchmark whose job names a table with speeds with the ratios there at its level, pattern and
    precision, whatever method and loss made the zeros."""
    found: list[SpeedComparison] = []
    for benchmark in dict.fromkeys(row.benchmark for row in speeds):
        rows = [row for row in speeds if row.benchmark == benchmark]
        table = jobs[rows[0].jobs[0]].config.get("reference")
        machine = next(machine for machine in machines if benchmark in machine.fingerprints)
        for reference in by_level(of_speed(table)) if table else ():
            found += _compared(rows, reference, f"{machine.cpu}, {machine.threads} threads")
    return found


def published(jobs: Sequence[JobRecord]) -> list[Reference]:
    """Returns the figures with speed of the tables that jobs name, one for each level, precision and pattern."""
    tables = dict.fromkeys(table for job in jobs if (table := job.config.get("reference")))
    return [reference for table in tables for reference in by_level(of_speed(table))]


def ratios(reference: Reference) -> Iterator[tuple[Gain, str, float]]:
    """Yields what gains the ratio, the precision of the dense model it is over, and the published ratio."""
    if reference.int8 and reference.speedup_over == "fp32" and reference.speedup:
        yield ("int8 and zeros" if reference.sparsity else "int8"), "fp32", reference.speedup
    if reference.zeros_speedup:
        yield "zeros", reference.precision, reference.zeros_speedup


def by_level(references: Sequence[Reference]) -> list[Reference]:
    """Returns one reference for each level, precision and pattern."""
    levels: dict[tuple[float, str, str], Reference] = {}
    for reference in references:
        levels.setdefault((reference.sparsity, reference.precision, reference.pattern), reference)
    return list(levels.values())


def _compared(rows: Sequence[SpeedRow], reference: Reference, machine: str) -> Iterator[SpeedComparison]:
    first = rows[0]
    model = "sparse" if reference.sparsity else "dense"
    if reference.sparsity and (
        first.sparsity is None or abs(first.sparsity - reference.sparsity) >= SAME or first.pattern != reference.pattern
    ):
        return
    measured: dict[tuple[str, str], Mapping[str, Any]] = {
        (row.backend, side): found
        for row in rows
        for side, found in (("dense", row.dense), ("sparse", row.sparse))
        if found
    }
    backend = ENGINE[reference.precision]
    with_it = measured.get((backend, model))
    if with_it is None:
        return
    for gain, base, there in ratios(reference):
        without = measured.get((ENGINE[base], "dense"))
        if without:
            ours = with_it[RATE] / without[RATE]
            rounds = zip(with_it[f"{RATE}_rounds"], without[f"{RATE}_rounds"], strict=True)
            each = [ours, *(fast / slow for fast, slow in rounds)]
            yield SpeedComparison(
                benchmarks=(first.benchmark,), jobs=first.jobs, options=first.options, machine=machine, gain=gain,
                precision=reference.precision, backend=backend, ours=ours, slowest=min(each), fastest=max(each),
                whole=with_it["decode_speedup"]["torch_fp32_dense"], published=there, reference=reference,
                verdict=verdict(there, min(each), max(each)),
            )  # fmt: skip


def verdict(published: float, slowest: float, fastest: float) -> SpeedVerdict:
    """Compares with all of our rounds: a published ratio between them is neither ahead nor behind."""
    if slowest > published:
        return "ahead"
    return "behind" if fastest < published else "about level"


def merged(found: Sequence[SpeedComparison]) -> list[SpeedComparison]:
    """Merges comparisons of models that differ only in the values of weights; sorted by level, then fp32 before
    int8."""
    groups: dict[tuple[object, ...], list[SpeedComparison]] = {}
    for one in found:
        level = (
            ("sparsity", "prune", "row") if not one.reference.sparsity else ("sparsity",)
        )  # the reference determines it
        options = {key: value for key, value in one.options.items() if not _is_of(key, (*VALUES_ALONE, *level))}
        key = one.reference, one.gain, one.machine, tuple(options.items())
        groups.setdefault(key, []).append(replace(one, options=options))
    together = [_together(group) for group in groups.values()]
    return sorted(together, key=lambda it: (it.reference.sparsity, it.precision, it.gain))


def _is_of(option: str, sections: Sequence[str]) -> bool:
    return is_seed(option) or option.partition(".")[0] in sections


def _together(group: Sequence[SpeedComparison]) -> SpeedComparison:
    wholes = [one.whole for one in group if one.whole]
    low, high = min(one.slowest for one in group), max(one.fastest for one in group)
    return replace(
        group[0],
        benchmarks=tuple(dict.fromkeys(print_ for one in group for print_ in one.benchmarks)),
        jobs=tuple(dict.fromkeys(at for one in group for at in one.jobs)),
        ours=median(one.ours for one in group),
        slowest=low,
        fastest=high,
        whole=median(wholes) if wholes else None,
        verdict=verdict(group[0].published, low, high),
    )
