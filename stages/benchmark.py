"""Stage `benchmark`: prefill and batch-1 decode of the real models, through every backend asked for.

Rounds are interleaved (A B C A B C), so that a slow minute of the machine hits all alike; for that, all runners are in
memory together. Each round is a prompt of the data's own test text, then greedy decoding with the key-value cache.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from pipeline import cpu
from pipeline.contracts import Artifact, Checkpoint, Corpus, Log
from pipeline.schema import BenchmarkSlice
from stages import checkpoints, families, tokens
from stages.benchmarking import backends, memory
from stages.benchmarking.backends import Backend, Runner, Unavailable

Row = dict[str, Any]
BASELINE = ("torch_fp32", "dense")


@dataclass
class Entry:
    """A backend with a model, and what its rounds took."""

    backend: str
    model: str
    runner: Runner
    disk_bytes: int
    memory_bytes: int
    peak_memory_bytes: int | None
    prefill_ms: list[float] = field(default_factory=list)
    decode_tokens_per_second: list[float] = field(default_factory=list)
    generated: list[int] = field(default_factory=list)


def run(config: BenchmarkSlice, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """`dense`, `data`, and optionally `sparse`, `quantized` (of the sparse model, or of the dense one if there is no
    other) and `quantized_dense` -> Benchmark.

    benchmark.json: {"machine", "protocol", "order", "rows"}. Raises UserError for an unknown backend, and when prompt
    and answer do not fit the model's context.
    """
    assert config.threads > 0, "the pipeline resolves benchmark.threads=0"
    dense, data = inputs["dense"], inputs["data"]
    assert isinstance(dense, Checkpoint)
    assert isinstance(data, Corpus)
    chosen = [backends.get(name) for name in config.backends]
    ids_1T = prompt(config, dense, data)
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        entries, rows = _prepare(chosen, _models(inputs), ids_1T, config, log)
        order = _measure(entries, ids_1T, config, log)
    finally:
        torch.set_num_threads(before)
    rows = _speedups([_row(entry) for entry in entries]) + rows
    here = {"cpu": cpu.model(), "instructions": cpu.instructions(), "threads": config.threads}
    record = {
        "machine": here,
        "protocol": {
            "prompt_tokens": config.prompt_tokens,
            "new_tokens": config.new_tokens,
            "batch": 1,
            "rounds": config.rounds,
            "warmup": config.warmup,
            "data_digest": data.digest,
            "spread": "smallest and largest of the rounds",
            "memory_bytes": "growth of the resident size by loading the model and one prompt with its answer; "
            "of a runtime in a process of its own, that process's size",
            "peak_memory_bytes": "the same at its highest, loading included; null where the kernel does not tell",
        },
        "order": order,
        "rows": [row | here for row in rows],
    }
    (out / "benchmark.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    return _summary(rows)


def prompt(config: BenchmarkSlice, dense: Checkpoint, data: Corpus) -> Tensor:
    """`ids_1T`: the first tokens of the test split."""
    family = families.of(dense.path)
    context = family.context(family.build(dense.path))
    checkpoints.check_length(context, config.prompt_tokens + config.new_tokens, "benchmark.prompt_tokens")
    tokenizer = family.tokenizer(dense.path)
    return tokens.stream(data, "test", tokenizer, config.prompt_tokens, "benchmark.prompt_tokens")[:1]


def _models(inputs: Mapping[str, Artifact]) -> dict[str, tuple[Artifact, Artifact | Unavailable]]:
    """Name -> its floating-point checkpoint, and its quantized one or why there is none."""
    missing = Unavailable("not quantized: quantize.scheme=none, or quantize.dense=false for the dense model")
    found = {"dense": (inputs["dense"], inputs.get("quantized_dense", missing))}
    if "sparse" in inputs:
        found["sparse"] = (inputs["sparse"], inputs.get("quantized", missing))
    return found


def _prepare(
    chosen: list[Backend],
    models: Mapping[str, tuple[Artifact, Artifact | Unavailable]],
    ids_1T: Tensor,
    config: BenchmarkSlice,
    log: Log,
) -> tuple[list[Entry], list[Row]]:
    """Every pair loaded and run once, and rows for the pairs that cannot run."""
    entries: list[Entry] = []
    rows: list[Row] = []
    with log.bar("load", total=len(chosen) * len(models), unit="model") as bar:
        for backend in chosen:
            for name, (plain, quantized) in models.items():
                checkpoint = quantized if backend.quantized else plain
                entry = _entry(backend, name, checkpoint, ids_1T, config)
                if isinstance(entry, Unavailable):
                    rows.append({"backend": backend.name, "model": name, "status": "n/a", "reason": entry.reason})
                else:
                    entries.append(entry)
                bar.advance()
    return entries, rows


def _entry(
    backend: Backend, model: str, checkpoint: Artifact | Unavailable, ids_1T: Tensor, config: BenchmarkSlice
) -> Entry | Unavailable:
    if isinstance(checkpoint, Unavailable):
        return checkpoint
    assert isinstance(checkpoint, Checkpoint)
    watched = memory.reset_peak()
    resident = memory.resident_bytes()
    try:
        runner = backend.prepare(checkpoint, config.threads)
        if isinstance(runner, Unavailable):
            return runner
        _, _, generated = generate(runner, ids_1T, config.new_tokens)
    except EngineError as error:
        return Unavailable(str(error))
    if runner.process is not None:
        resident = 0
    return Entry(
        backend.name,
        model,
        runner,
        disk_bytes=sum(path.stat().st_size for path in checkpoint.path.glob("*.safetensors")),
        memory_bytes=memory.resident_bytes(runner.process) - resident,
        peak_memory_bytes=memory.peak_bytes(runner.process) - resident if watched else None,
        generated=generated,
    )


def _measure(entries: list[Entry], ids_1T: Tensor, config: BenchmarkSlice, log: Log) -> list[str]:
    """Fills the entries. Returns the order in which they ran, one name each time, warm-up left out."""
    order: list[str] = []
    rounds = config.warmup + config.rounds
    with log.bar("benchmark", total=rounds * len(entries), unit="run") as bar:
        for number in range(rounds):
            for entry in entries:
                prefill_s, decode_s, _ = generate(entry.runner, ids_1T, config.new_tokens)
                bar.advance()
                if number < config.warmup:
                    continue
                name = f"{entry.backend}.{entry.model}"
                order.append(name)
                entry.prefill_ms.append(1e3 * prefill_s)
                entry.decode_tokens_per_second.append(config.new_tokens / decode_s)
                last = {"prefill_ms": entry.prefill_ms, "decode_tokens_per_second": entry.decode_tokens_per_second}
                log.metrics({f"{name}.{key}": values[-1] for key, values in last.items()}, number - config.warmup)
    return order


def generate(runner: Runner, ids_1T: Tensor, new_tokens: int) -> tuple[float, float, list[int]]:
    """Seconds of the prompt, seconds of `new_tokens` decoding steps, and the tokens chosen (one more than steps)."""
    start = time.perf_counter()
    chosen = [runner.prefill(ids_1T)]
    between = time.perf_counter()
    for _ in range(new_tokens):
        chosen.append(runner.decode(chosen[-1]))
    return between - start, time.perf_counter() - between, chosen


def _row(entry: Entry) -> Row:
    row: Row = {"backend": entry.backend, "model": entry.model, "status": "ok"}
    for key, values in (
        ("prefill_ms", entry.prefill_ms),
        ("decode_tokens_per_second", entry.decode_tokens_per_second),
    ):
        row |= {key: statistics.median(values), f"{key}_min": min(values), f"{key}_max": max(values)}
        row[f"{key}_rounds"] = values
    read = entry.runner.weight_bytes
    return row | {
        "weight_bytes": read,
        "gigabytes_per_second": None if read is None else read * row["decode_tokens_per_second"] / 1e9,
        "memory_bytes": entry.memory_bytes,
        "peak_memory_bytes": entry.peak_memory_bytes,
        "disk_bytes": entry.disk_bytes,
        "generated": entry.generated,
        "note": entry.runner.note,
    }


def _speedups(rows: list[Row]) -> list[Row]:
    """Adds `decode_speedup` and `prefill_speedup` over three baselines each: torch fp32 dense, the same backend dense,
    and the fastest dense row, which `best_dense` names; null where that baseline did not run. And `same_tokens`, the
    share of generated tokens before the first that differs from torch fp32's on the same model."""
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


def _decode_speed(row: Row) -> float:
    return float(row["decode_tokens_per_second"])


def _prefill_speed(row: Row) -> float:
    return 1 / float(row["prefill_ms"])


def _same(a: list[int], b: list[int]) -> float:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a)) / len(a)


def _summary(rows: list[Row]) -> dict[str, float]:
    summary: dict[str, float] = {}
    for row in rows:
        if row["status"] == "ok":
            name = f"{row['backend']}.{row['model']}"
            for key in ("decode_tokens_per_second", "prefill_ms", "gigabytes_per_second", "memory_bytes"):
                if row[key] is not None:
                    summary[f"{name}.{key}"] = float(row[key])
            for speed in ("decode", "prefill"):
                over = row[f"{speed}_speedup"]["torch_fp32_dense"]
                if over is not None:
                    summary[f"{name}.{speed}_speedup"] = over
    return summary
