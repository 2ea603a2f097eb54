"""The processor: its name, vector instructions and cores, and the threads in use. For the pipeline and the stages."""

from __future__ import annotations

import functools
import os
import platform
import sys
from pathlib import Path

INSTRUCTIONS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""Instructions that decide which kernels run, x86 first, then ARM, as /proc/cpuinfo spells them."""


BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def model() -> str:
    return _info().get("model name") or platform.processor() or platform.machine()


def instructions() -> list[str]:
    """Returns those of `INSTRUCTIONS` that this processor has; empty if they are not known (macOS, Windows)."""
    return [name for name in INSTRUCTIONS if name in _flags()]


def has_bf16() -> bool:
    """Returns whether this processor multiplies bf16 in hardware; False if its instructions are not known."""
    return not _flags().isdisjoint(BF16)


def cores() -> int:
    """Returns the cores that this process may use, which under a scheduler are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def most_threads() -> int:
    """Returns the largest sensible number of threads: more only wait for each other, and far more crash torch."""
    return 8 * cores()


def use(threads: int) -> None:
    """Sets the number of threads for this process from here on. torch reads the variable when it is first imported;
    later it must be set by a call."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


@functools.cache
def _info() -> dict[str, str]:
    """Returns the first processor of /proc/cpuinfo; empty if there is none (macOS, Windows)."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


@functools.cache
def _flags() -> frozenset[str]:
    return frozenset((_info().get("flags") or _info().get("Features") or "").split())
