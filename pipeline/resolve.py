"""Resolves options that depend on the machine, before anything is fingerprinted: `auto`, and 0 threads."""

from __future__ import annotations

from pydantic import BaseModel

from engine import cpu
from engine.sources import library as engine_library
from pipeline import gpu
from pipeline.schema import Config
from stages.contracts import UserError
from stages.quantize.schemes import SCHEMES


def resolve(config: Config, parallel_jobs: int = 1) -> Config:
    """Replaces every `auto` and 0 threads by their meaning on this machine. `parallel_jobs` run here; 0 means they run
    on other machines, whose cores are not known."""
    if parallel_jobs:
        _check_threads(config)
    threads = config.threads or max(1, cpu.cores() // min(max(parallel_jobs, 1), cpu.cores()))
    device = config.device if config.device != "auto" else "cuda" if gpu.models() else "cpu"
    precision = "bf16" if device == "cuda" or cpu.has_bf16() else "fp32"
    by_engine = config.quantize.scheme == "none" or SCHEMES.get(config.quantize.scheme).engine
    int8_runtime = config.evaluate.int8_runtime
    if int8_runtime == "auto":
        has_engine = config.evaluate.runtime == "engine" or engine_library()
        int8_runtime = "engine" if by_engine and has_engine else "torch"
    if int8_runtime == "engine" and not by_engine:
        raise UserError(
            f"the engine does not compute quantize.scheme={config.quantize.scheme}; expected torch",
            "evaluate.int8_runtime",
        )

    def resolved(section: BaseModel) -> BaseModel:
        if section.precision != "auto":  # type: ignore[attr-defined]
            return section
        in_bf16 = getattr(section, "bf16_updates", None) == "stochastic_rounding"
        return section.model_copy(update={"precision": "bf16" if in_bf16 else precision})

    return config.model_copy(
        update={
            "threads": threads,
            "device": device,
            "prune": resolved(config.prune),
            "finetune": resolved(config.finetune),
            "pretrain": config.pretrain and resolved(config.pretrain),
            "foundation": config.foundation
            and config.foundation.model_copy(
                update={
                    "training": resolved(config.foundation.training),
                    "prune": config.foundation.prune and resolved(config.foundation.prune),
                }
            ),
            "dense": config.dense.model_copy(update={"training": resolved(config.dense.training)}),
            "evaluate": config.evaluate.model_copy(update={"int8_runtime": int8_runtime}),
            "benchmark": config.benchmark.model_copy(update={"threads": config.benchmark.threads or threads}),
        }
    )


def _check_threads(config: Config) -> None:
    most = cpu.most_threads()
    for option, asked in (("threads", config.threads), ("benchmark.threads", config.benchmark.threads)):
        if asked > most:
            raise UserError(f"got {asked}, this machine has {cpu.cores()} cores; expected at most {most}", option)
