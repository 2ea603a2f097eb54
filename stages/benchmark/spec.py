"""Stage `benchmark`: measures the speed of models. Torch-free description."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from stages.benchmark.backends import BACKENDS
from stages.benchmark.cost import BenchmarkCost
from stages.benchmark.early import check_early
from stages.contracts import Benchmark as BenchmarkResult
from stages.contracts import UserError
from stages.options import Options
from stages.stage import MetricSpec, Stage


class Benchmark(Options):
    """How the speed of models is measured."""

    enabled: bool
    """Whether speed is measured."""
    backends: list[Annotated[str, BACKENDS]]
    """Backends to compare, at least one: files of `stages/benchmark/backends/`, or what installed packages add. Each
    runs the dense and the sparse model."""
    prompt_tokens: int = Field(ge=1)
    """Prompt length for decoder-only models. Encoder-decoders read whole examples."""
    samples: int = Field(ge=1)
    """For encoder-decoders: test examples, drawn evenly over their sizes and run one by one."""
    beams: int = Field(ge=0)
    """For encoder-decoders: also measure beam search with this many beams; 0 and 1: greedy decoding only."""
    new_tokens: int = Field(ge=1)
    """Tokens to decode for each sample; an end-of-text token does not stop it."""
    rounds: int = Field(ge=1)
    """Interleaved rounds: each backend runs once in every round, so that drifts of the machine affect all alike."""
    warmup: int = Field(ge=0)
    """Rounds that are not counted."""
    threads: int = Field(ge=0)
    """Threads of a backend; 0: the job's threads."""

    @model_validator(mode="after")
    def _measures_something(self) -> Benchmark:
        if self.enabled and not self.backends:
            raise UserError("no backends to measure; name some, or choose benchmark=none", "benchmark.backends")
        if twice := sorted({name for name in self.backends if self.backends.count(name) > 1}):
            raise UserError(f"{twice[0]} is listed twice", "benchmark.backends")
        return self


class BenchmarkOptions(Options):
    backends: list[Annotated[str, BACKENDS]]
    prompt_tokens: int
    samples: int
    beams: int
    new_tokens: int
    rounds: int
    warmup: int
    threads: int


STAGE = Stage(
    "benchmark",
    "7",
    BenchmarkOptions,
    BenchmarkResult,
    check_early=check_early,
    cost=BenchmarkCost(),
    metrics=(
        MetricSpec("decode_speedup", "x", True, headline=True),
        MetricSpec("prefill_speedup", "x", True),
        MetricSpec("decode_tokens_per_second", "tokens/s", True),
        MetricSpec("prefill_ms", "ms", False),
        MetricSpec("real_time_factor", "x", True),
        MetricSpec("beam_tokens_per_second", "tokens/s", True),
        MetricSpec("gigabytes_per_second", "GB/s", True),
        MetricSpec("memory_bytes", "bytes", False),
    ),
)
