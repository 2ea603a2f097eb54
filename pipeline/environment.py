"""Describes what a result was made with: versions, processor, threads, commit. Part of every record; imports no
torch."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

from engine import cpu
from pipeline import gpu

PACKAGES = ("squarehead", "torch", "transformers", "datasets", "lm-eval", "mlflow", "numpy")


def environment(threads: int) -> dict[str, Any]:
    """Returns everything outside the configuration that can change a result or its speed."""
    return {
        "packages": _packages(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu.model(),
        "instructions": cpu.instructions(),
        "cores": cpu.cores(),
        "gpus": gpu.models(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "threads": threads,
        "git": git_commit(Path(__file__).resolve().parent.parent),
    }


def git_commit(checkout: Path) -> str:
    """Returns the commit of a checkout, with `+dirty` if tracked files differ from it; empty if it is not a checkout.

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
