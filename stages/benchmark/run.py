"""Stage `benchmark`: prefill and batch-1 decode of the real models, through every backend asked for.

Rounds are interleaved (A B C A B C), so that a slow minute of the machine hits all alike; for that, all runners are in
memory together. Each round is a prompt of the data's own test text, or real test examples of an encoder-decoder one by
one, each followed by greedy decoding with the key-value cache and, where asked for, by beam search.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from engine import cpu
from engine.errors import EngineError
from stages.benchmark import backends, memory, rounds, workloads
from stages.benchmark.backends import Backend, Runner, Unavailable
from stages.benchmark.rounds import Round
from stages.benchmark.rows import Row, add_speedups, medians, summary
from stages.benchmark.spec import BenchmarkOptions
from stages.benchmark.workloads import Workload
from stages.contracts import Artifact, Checkpoint, DataSet, Log


@dataclass
class Entry:
    """A backend with a model, and what its rounds took."""

    backend: str
    model: str
    runner: Runner
    disk_bytes: int
    memory_bytes: int
    peak_memory_bytes: int | None
    generated: list[list[int]]
    rounds: list[Round] = field(default_factory=list)


def run(config: BenchmarkOptions, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """`dense`, `data`, and optionally `sparse`, `quantized` (of the sparse model, or of the dense one if there is no
    other) and `quantized_dense` -> Benchmark.

    benchmark.json: {"machine", "protocol", "order", "rows"}. Raises UserError for an unknown backend, and when what is
    to be decoded does not fit the model's context.
    """
    assert config.threads > 0, "the pipeline resolves benchmark.threads=0"
    dense, data = inputs["dense"], inputs["data"]
    assert isinstance(dense, Checkpoint)
    assert isinstance(data, DataSet)
    chosen = [backends.get(name) for name in config.backends]
    workload = workloads.of(config, dense, data)
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        entries, rows = _prepare(chosen, _models(inputs), workload, config, log)
        order = _measure(entries, workload, config, log)
    finally:
        torch.set_num_threads(before)
    rows = add_speedups([_row(entry) for entry in entries]) + rows
    here = {"cpu": cpu.model(), "instructions": cpu.instructions(), "threads": config.threads}
    record = {
        "machine": here,
        "protocol": {
            **workload.described,
            "new_tokens": config.new_tokens,
            "batch": 1,
            "rounds": config.rounds,
            "warmup": config.warmup,
            "data_digest": data.digest,
            "spread": "smallest and largest of the rounds",
            "memory_bytes": "growth of the resident size by loading the model and its first round; "
            "of a runtime in a process of its own, that process's size",
            "peak_memory_bytes": "the same at its highest, loading included; null where the kernel does not tell",
        },
        "order": order,
        "rows": [row | here for row in rows],
    }
    (out / "benchmark.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    return summary(rows)


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
    workload: Workload,
    config: BenchmarkOptions,
    log: Log,
) -> tuple[list[Entry], list[Row]]:
    """Every pair loaded and run once, and rows for the pairs that cannot run."""
    entries: list[Entry] = []
    rows: list[Row] = []
    with log.bar("load", total=len(chosen) * len(models), unit="model") as bar:
        for backend in chosen:
            for name, (plain, quantized) in models.items():
                checkpoint = quantized if backend.quantized else plain
                entry = _entry(backend, name, checkpoint, workload, config)
                if isinstance(entry, Unavailable):
                    rows.append({"backend": backend.name, "model": name, "status": "n/a", "reason": entry.reason})
                else:
                    entries.append(entry)
                bar.advance()
    return entries, rows


def _entry(
    backend: Backend, model: str, checkpoint: Artifact | Unavailable, workload: Workload, config: BenchmarkOptions
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
        first = rounds.measure(runner, workload)
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
        generated=first.generated,
    )


def _measure(entries: list[Entry], workload: Workload, config: BenchmarkOptions, log: Log) -> list[str]:
    """Fills the entries. Returns the order in which they ran, one name each time, warm-up left out."""
    order: list[str] = []
    total = config.warmup + config.rounds
    with log.bar("benchmark", total=total * len(entries), unit="run") as bar:
        for number in range(total):
            for entry in entries:
                found = rounds.measure(entry.runner, workload)
                bar.advance()
                if number < config.warmup:
                    continue
                name = f"{entry.backend}.{entry.model}"
                order.append(name)
                entry.rounds.append(found)
                told = {f"{name}.{key}": value for key, value in found.measured().items()}
                log.metrics(told, number - config.warmup)
    return order


def _row(entry: Entry) -> Row:
    row: Row = {"backend": entry.backend, "model": entry.model, "status": "ok"} | medians(entry.rounds)
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
