"""What of this machine decides the speed of a kernel, and how much memory this process takes."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import psutil

VECTOR_INSTRUCTIONS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""x86 first, then ARM, as /proc/cpuinfo spells them."""
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def describe() -> dict[str, str | list[str]]:
    """Processor and vector instructions, the same words in every row that is measured here."""
    return {
        "cpu": _cpuinfo().get("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in VECTOR_INSTRUCTIONS if name in _flags()],
    }


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware; False where its instructions are not known."""
    return not BF16.isdisjoint(_flags())


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def reset_peak() -> bool:
    """Starts the kernel's record of the largest resident size anew. False where the kernel cannot (not Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Largest resident size since `reset_peak`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none (macOS, Windows)."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _flags() -> set[str]:
    return set((_cpuinfo().get("flags") or _cpuinfo().get("Features") or "").split())
