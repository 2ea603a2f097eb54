"""Runs one round of a model: every sample once, with its timings."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from engine.bench.decoding import Runner, greedy
from stages.benchmark.backends import Searcher
from stages.benchmark.workloads import Sample, Workload


@dataclass(frozen=True)
class Round:
    prefill_ms: float
    """Mean over the samples."""
    decode_tokens_per_second: float
    generated: list[list[int]]
    """Generated tokens by sample, one more than steps."""
    real_time_factor: float | None
    """For speech: time to write the transcripts over the duration of the audio."""
    beam_tokens_per_second: float | None

    def measured(self) -> dict[str, float]:
        found = {name: getattr(self, name) for name in MEASURED}
        return {name: value for name, value in found.items() if value is not None}


MEASURED = ("prefill_ms", "decode_tokens_per_second", "real_time_factor", "beam_tokens_per_second")


def measure(runner: Runner, workload: Workload) -> Round:
    timed = [decode(runner, sample, workload.new_tokens) for sample in workload.samples]
    decode_s = sum(times[1 + workload.new_tokens] - times[1] for times, _ in timed)
    return Round(
        prefill_ms=1e3 * statistics.fmean(times[1] - times[0] for times, _ in timed),
        decode_tokens_per_second=len(timed) * workload.new_tokens / decode_s,
        generated=[ids[: workload.new_tokens + 1] for _, ids in timed],
        real_time_factor=_real_time_factor(workload.samples, [times for times, _ in timed]),
        beam_tokens_per_second=_beam_search(runner, workload) if workload.beams else None,
    )


def decode(runner: Runner, sample: Sample, new_tokens: int) -> tuple[list[float], list[int]]:
    """Returns the clock before and after each token, and the tokens: the prompt's, then `new_tokens` steps; for speech
    at least as many as its transcript needs."""
    steps = new_tokens if sample.audio_seconds is None else max(new_tokens, sample.written - 1)
    return greedy(runner, sample, steps)


def _real_time_factor(samples: list[Sample], times: list[list[float]]) -> float | None:
    heard = [sample.audio_seconds for sample in samples if sample.audio_seconds is not None]
    if not heard:
        return None
    return sum(at[sample.written] - at[0] for sample, at in zip(samples, times, strict=True)) / sum(heard)


def _beam_search(runner: Runner, workload: Workload) -> float:
    """Returns tokens a second, the encoder's time included."""
    assert isinstance(runner, Searcher)
    start = time.perf_counter()
    for sample in workload.samples:
        runner.search(sample, workload.beams, workload.new_tokens)
    return len(workload.samples) * workload.new_tokens / (time.perf_counter() - start)
