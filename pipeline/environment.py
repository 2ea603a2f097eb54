"""What a result was made with: versions, processor, threads, commit. Part of every record; imports no torch."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("squarehead", "torch", "transformers", "datasets", "lm-eval", "mlflow", "numpy")

INSTRUCTIONS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""Those that decide which kernels run, x86 first, then ARM, as /proc/cpuinfo spells them."""


def environment(threads: int) -> dict[str, Any]:
    """Everything outside the configuration that can change a result or its speed."""
    return {
        "packages": _packages(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "instructions": [name for name in INSTRUCTIONS if name in _cpu_flags()],
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "threads": threads,
        "git": git_commit(Path(__file__).resolve().parent.parent),
    }


def cores() -> int:
    """Those this process may use, which under a scheduler are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware; False where its instructions are not known."""
    return not _cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def git_commit(checkout: Path) -> str:
    """The commit of a checkout, with `+dirty` if tracked files differ from it; empty if it is no checkout.

    A package installed inside somebody else's repository is not a checkout of that repository.
    """
    top = _git(checkout, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != checkout.resolve():
        return ""
    commit = _git(checkout, "rev-parse", "HEAD")
    dirty = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+dirty" if commit and dirty else commit


def _git(checkout: Path, *arguments: str) -> str:
    # Without optional locks a status never gets in the way of a commit that runs beside it.
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(checkout), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


@functools.cache
def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none (macOS, Windows)."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cpu_model() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


@functools.cache
def _cpu_flags() -> frozenset[str]:
    info = _cpuinfo()
    return frozenset((info.get("flags") or info.get("Features") or "").split())
