"""Stage `benchmark`: times prefill and batch-1 decoding of the real models with every chosen backend.

Rounds are interleaved (A B C A B C), so that a slow minute of the machine affects all alike; therefore all runners are
in memory together. Each round is a prompt of the data's own test text, or real test examples of an encoder-decoder one
by one, each followed by greedy decoding with the key-value cache and, where configured, by beam search.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine import cpu
from engine.bench import machine
from engine.bench.roofline import gigabytes_per_second
from engine.bench.rounds import Contender, interleave
from engine.errors import EngineError
from engine.peers.contracts import Unavailable
from stages.benchmark import memory, rounds, workloads
from stages.benchmark.backends import BACKENDS, Backend
from stages.benchmark.rounds import Round
from stages.benchmark.rows import Row, add_speedups, medians, summary
from stages.benchmark.spec import BenchmarkOptions
from stages.benchmark.workloads import Workload
from stages.contracts import Artifact, Checkpoint, DataSet, Examples, Log


@dataclass(kw_only=True)
class Entry(Contender[Round]):
    """A backend with a model."""

    backend: str
    model: str
    note: str | None
    disk_bytes: int
    memory_bytes: int
    peak_memory_bytes: int | None
    generated: list[list[int]]


def check(config: BenchmarkOptions, model: Checkpoint, data: DataSet) -> None:
    """Raises UserError for more examples than an encoder-decoder's test split has, and longer texts than it writes."""
    if isinstance(data, Examples):
        workloads.of(config, model, data)


def run(config: BenchmarkOptions, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Times the models and writes benchmark.json: {"machine", "protocol", "order", "rows"}.

    Inputs: `dense`, `data`, and optionally `sparse`, `quantized` (of the sparse model, or of the dense one if there is
    no other) and `quantized_dense`. Output: Benchmark. Raises UserError when the decoded tokens do not fit the model's
    context.
    """
    assert config.threads > 0, "the pipeline resolves benchmark.threads=0"
    dense, data = inputs["dense"], inputs["data"]
    assert isinstance(dense, Checkpoint)
    assert isinstance(data, DataSet)
    chosen = {name: BACKENDS.get(name) for name in config.backends}
    workload = workloads.of(config, dense, data)
    with machine.torch_threads(config.threads):
        entries, rows = _prepare(chosen, _models(inputs), workload, config, log)
        order = _measure(entries, config, log)
    rows += [_missing(entry.backend, entry.model, entry.reason) for entry in entries if entry.reason]
    rows = add_speedups([_row(entry) for entry in entries if not entry.reason]) + rows
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
    """Returns for each name its floating-point checkpoint, and its quantized one or the reason why there is none."""
    missing = Unavailable("not quantized: quantize.scheme=none, or quantize.dense=false for the dense model")
    found = {"dense": (inputs["dense"], inputs.get("quantized_dense", missing))}
    if "sparse" in inputs:
        found["sparse"] = (inputs["sparse"], inputs.get("quantized", missing))
    return found


def _prepare(
    chosen: Mapping[str, Backend],
    models: Mapping[str, tuple[Artifact, Artifact | Unavailable]],
    workload: Workload,
    config: BenchmarkOptions,
    log: Log,
) -> tuple[list[Entry], list[Row]]:
    """Loads every pair and runs it once. Returns the entries, and rows for the pairs that cannot run."""
    entries: list[Entry] = []
    rows: list[Row] = []
    with log.bar("load", total=len(chosen) * len(models), unit="model") as bar:
        for name, backend in chosen.items():
            for model, (plain, quantized) in models.items():
                checkpoint = quantized if backend.quantized else plain
                entry = _entry(name, backend, model, checkpoint, workload, config)
                if isinstance(entry, Unavailable):
                    rows.append(_missing(name, model, entry.reason))
                else:
                    entries.append(entry)
                bar.advance()
    return entries, rows


def _entry(
    name: str,
    backend: Backend,
    model: str,
    checkpoint: Artifact | Unavailable,
    workload: Workload,
    config: BenchmarkOptions,
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
        name=f"{name}.{model}",
        measure=partial(rounds.measure, runner, workload),
        end=runner.close,
        weight_bytes=runner.weight_bytes,
        backend=name,
        model=model,
        note=runner.note,
        disk_bytes=sum(path.stat().st_size for path in checkpoint.path.glob("*.safetensors")),
        memory_bytes=memory.resident_bytes(runner.process) - resident,
        peak_memory_bytes=memory.peak_bytes(runner.process) - resident if watched else None,
        generated=first.generated,
    )


def _measure(entries: list[Entry], config: BenchmarkOptions, log: Log) -> list[str]:
    """Fills the entries. Returns the order in which they ran, one name for each run, without warm-up."""
    order: list[str] = []
    with log.bar("benchmark", total=(config.warmup + config.rounds) * len(entries), unit="run") as bar:
        for number, entry in interleave(entries, config.warmup, config.rounds):
            bar.advance()
            if number >= 0 and not entry.reason:
                order.append(entry.name)
                measured = entry.rounds[-1].measured()
                log.metrics({f"{entry.name}.{key}": value for key, value in measured.items()}, number)
    return order


def _row(entry: Entry) -> Row:
    row: Row = {"backend": entry.backend, "model": entry.model, "status": "ok"} | medians(entry.rounds)
    read, rate = entry.weight_bytes, row["decode_tokens_per_second"]
    return row | {
        "weight_bytes": read,
        "gigabytes_per_second": None if read is None else gigabytes_per_second(read, 1 / rate),
        "memory_bytes": entry.memory_bytes,
        "peak_memory_bytes": entry.peak_memory_bytes,
        "disk_bytes": entry.disk_bytes,
        "generated": entry.generated,
        "note": entry.note,
    }


def _missing(backend: str, model: str, reason: str) -> Row:
    return {"backend": backend, "model": model, "status": "n/a", "reason": reason}
