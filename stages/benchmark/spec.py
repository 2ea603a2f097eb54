"""Stage `benchmark`: the speed of models. What the rest of the house knows of it; torch-free."""

from __future__ import annotations

from pydantic import Field, model_validator

from stages.benchmark.cost import BenchmarkCost
from stages.benchmark.early import check_early
from stages.contracts import Benchmark as BenchmarkResult
from stages.contracts import UserError
from stages.options import Options
from stages.stage import Stage


class Benchmark(Options):
    enabled: bool
    backends: list[str]
    """Names of `stages.benchmark.backends`, at least one where the benchmark is enabled; each runs on the dense and
    on the sparse model."""
    prompt_tokens: int = Field(ge=1)
    """Of decoder-only models; encoder-decoders read whole examples."""
    samples: int = Field(ge=1)
    """Of encoder-decoders: test examples, drawn evenly over their sizes and run one by one."""
    beams: int = Field(ge=0)
    """Of encoder-decoders: beam search beside greedy decoding; 0 and 1: none."""
    new_tokens: int = Field(ge=1)
    """Decoded of each sample, whatever they are: the end of a text stops nothing."""
    rounds: int = Field(ge=1)
    """Interleaved rounds: every backend once in each, so that drifts of the machine hit all alike."""
    warmup: int = Field(ge=0)
    threads: int = Field(ge=0)
    """0: the job's threads."""

    @model_validator(mode="after")
    def _measures_something(self) -> Benchmark:
        if self.enabled and not self.backends:
            raise UserError("no backends to measure; name some, or choose benchmark=none", "benchmark.backends")
        return self


class BenchmarkOptions(Options):
    backends: list[str]
    prompt_tokens: int
    samples: int
    beams: int
    new_tokens: int
    rounds: int
    warmup: int
    threads: int


STAGE = Stage("benchmark", "7", BenchmarkOptions, BenchmarkResult, check_early=check_early, cost=BenchmarkCost())
