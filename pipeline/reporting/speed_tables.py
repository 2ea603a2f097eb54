"""Tables of speed: where it comes from, published ratios beside ours, and every backend as measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engine.bench.rounds import Spread, three_digits
from pipeline.references import Reference
from pipeline.reporting.cells import Cell, Column, Table, option_columns, options, table
from pipeline.reporting.speed_verdicts import Gain, merged, ratios
from pipeline.reporting.speeds import STEPS
from pipeline.reporting.study import Study

STEP_LABELS = {
    "runtime": "our runtime",
    "int8": "× int8",
    "zeros": "× zeros",
    "int8 head": "× int8 head",
}
FIGURES = {
    "prefill_ms": "prefill ms",
    "weight_bytes": "MB a token",
    "real_time_factor": "real-time factor",
    "beam_tokens_per_second": "beam tokens/s",
}
"""Figures of a benchmark's row, beside its decoding speed, and their labels."""


def shares(study: Study) -> Table:
    rows = []
    for share in study.shares:
        cells = options(share.options)
        for step, factor in share.steps.items():
            if factor is not None:
                cells[step] = Cell(f"{factor:.2f}", factor, None, (share.benchmark,))
        cells["total"] = Cell(f"{share.total:.2f} {share.total_backend}", share.total, None, (share.benchmark,))
        rows.append(cells)
    columns = [
        *option_columns(study.columns),
        *(Column(step, STEP_LABELS[step], weight=8) for step, _, _ in STEPS),
        Column("total", "in all", weight=10),
    ]
    note = (
        "Factors of decoding speed, from torch fp32 of the dense model on, each of two rows that were measured in the "
        "same rounds: what our runtime gains in fp32 without zeros, what int8 gains on the dense model, what zeros "
        "gain at int8, and what an int8 head adds."
    )
    return table("shares", "What gains the speed", columns, rows, note)


def published(study: Study) -> Table:
    """Tabulates each of our ratios that has a published one at its level, precision and pattern, then those that only
    the paper has."""
    rows = []
    for at in merged(study.speed_comparisons):
        own = options(at.options | {"our machine": at.machine})
        own["ours"] = Cell(f"{at.ours:.2f} ({at.slowest:.2f}–{at.fastest:.2f})", at.ours, None, at.benchmarks)
        if at.whole:
            own["whole"] = Cell(f"{at.whole:.2f}", at.whole, None, at.benchmarks)
        rows.append(own | _there(at.reference, at.gain, at.published) | {"verdict": Cell(at.verdict)})
    met = {(at.reference, at.gain) for at in study.speed_comparisons}
    for reference in study.speed_references:
        for gain, _, ratio in ratios(reference):
            if (reference, gain) not in met:
                rows.append(_there(reference, gain, ratio) | {"verdict": Cell("not measured here")})
    columns = [
        *option_columns([*study.columns, "our machine", "paper's model, runtime, hardware"]),
        Column("zeros", "zeros", weight=10),
        Column("precision", "precision", number=False, weight=8),
        Column("gain", "gain of", number=False, weight=9),
        Column("ours", "ours ×", weight=10),
        Column("there", "paper ×", weight=10),
        Column("verdict", "verdict", number=False, weight=9),
        Column("whole", "ours over torch ×", weight=6),
    ]
    ran = dict.fromkeys(at.ran for at in study.speed_references)
    title = "Speed beside published figures" + (f": {', '.join(ran)}" if len(ran) == 1 else "")
    return table("published_speeds", title, columns, rows, *_about(study.speed_references))


def _there(reference: Reference, gain: Gain, ratio: float) -> dict[str, Cell]:
    level = f"{100 * reference.sparsity:g} %" if reference.sparsity else "none"
    pattern = f" {reference.pattern}" if reference.pattern != "unstructured" else ""
    return {
        "zeros": Cell(level + pattern),
        "precision": Cell(reference.precision),
        "gain": Cell(gain),
        "there": Cell(f"{ratio:.2f}", ratio),
    } | options({"paper's model, runtime, hardware": reference.ran})


def _about(references: list[Reference]) -> Iterator[str]:
    yield (
        "Decoding speed over the dense model in the same runtime: ours over our engine's, the paper's over that of its "
        "own runtime. Gain of zeros: over the dense model of the same precision; of int8, and of int8 and zeros: over "
        "the dense model in fp32. In brackets the slowest and the fastest of our rounds."
    )
    yield (
        "Ahead and behind: all of our rounds are; about level: the paper's ratio lies between them. Model, runtime and "
        "hardware are not the paper's, so a ratio is placed beside another, and none is confirmed. Ours over torch: "
        "the whole, over torch fp32 of the dense model; it has in it what our runtime gains without zeros, and no "
        "published ratio compares with it."
    )
    if any(at.int8 and at.speedup_over == "fp32" and at.zeros_speedup for at in references):
        yield "The paper states int8 ratios over fp32; zeros at int8: the sparse model's ratio over the dense one's."
    for title, at in {at.title: at for at in references}.items():
        note = f"; {at.note}" if at.note else ""
        yield f"Paper: {title} ({at.ran}), read in: {at.speed_source or at.source}{note}."


def backends(study: Study) -> Table:
    rows = []
    for row in study.speeds:
        cells = options(row.options) | {"backend": Cell(row.backend), "note": Cell(row.note)}
        for side, found in (("dense", row.dense), ("sparse", row.sparse)):
            cells |= dict(_measured(side, found, row.benchmark)) if found else {f"{side}_rate": Cell("n/a")}
        rows.append(cells)
    columns = [
        *option_columns(study.columns),
        Column("backend", "backend", number=False, weight=10),
        Column("dense_rate", "dense, tokens/s", weight=5),
        Column("dense_over", "×", weight=8),
        Column("sparse_rate", "sparse, tokens/s", weight=6),
        Column("sparse_over", "×", weight=8),
        Column("sparse_own", "sparse / dense", weight=7),
    ]
    for key, text in FIGURES.items():
        columns += [Column(f"dense_{key}", f"{text}, dense"), Column(f"sparse_{key}", f"{text}, sparse")]
    columns.append(Column("note", "note", number=False))
    notes = [
        "×: over torch fp32 of the dense model in the same rounds. sparse / dense: the same backend, zeros alone. In "
        "brackets the slowest and the fastest round. MB a token: weights read for each decoded token."
    ]
    for at in study.machines:
        threads = f"{at.threads} thread{'s' * (at.threads != 1)}"
        notes.append(f"{at.cpu}, {threads}, batch 1, {at.workload}, medians of {at.rounds} interleaved rounds.")
    return table("speeds", "Speed of every backend", columns, rows, *notes)


def _measured(side: str, found: Mapping[str, Any], benchmark: str) -> Iterator[tuple[str, Cell]]:
    at = (benchmark,)
    rate, low, high = (found[f"decode_tokens_per_second{end}"] for end in ("", "_min", "_max"))
    yield f"{side}_rate", Cell(str(Spread([low, rate, high])), rate, None, at)
    ratios = {"over": found["decode_speedup"]["torch_fp32_dense"]}
    if side == "sparse":
        ratios["own"] = found["decode_speedup"].get("same_backend_dense")
    for name, ratio in ratios.items():
        if ratio is not None:
            yield f"{side}_{name}", Cell(f"{ratio:.2f}", ratio, None, at)
    for key in FIGURES:
        if found.get(key) is not None:
            shown = found[key] / 1e6 if key == "weight_bytes" else found[key]
            yield f"{side}_{key}", Cell(three_digits(shown), found[key], None, at)
