"""The processor: its name, its vector instructions, its cores and our use of them. For the pipeline and the stages."""

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
"""Those that decide which kernels run, x86 first, then ARM, as /proc/cpuinfo spells them."""


BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def model() -> str:
    return _info().get("model name") or platform.processor() or platform.machine()


def instructions() -> list[str]:
    """Those of `INSTRUCTIONS` that this processor has; empty where that is not known (macOS, Windows)."""
    return [name for name in INSTRUCTIONS if name in _flags()]


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware; False where its instructions are not known."""
    return not _flags().isdisjoint(BF16)


def cores() -> int:
    """Those this process may use, which under a scheduler are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def most_threads() -> int:
    """More only wait for each other, and far more end in a crash of torch."""
    return 8 * cores()


def use(threads: int) -> None:
    """So many, for what this process computes from here on. torch reads the variable when it is first imported, and
    must be told later on."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


@functools.cache
def _info() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none (macOS, Windows)."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


@functools.cache
def _flags() -> frozenset[str]:
    return frozenset((_info().get("flags") or _info().get("Features") or "").split())
