"""Knows Hydra's launchers: whether jobs run on this machine, and how many at a time."""

from __future__ import annotations

from typing import Any

from engine import cpu
from stages.contracts import UserError

WORKERS = ".JoblibLauncher"
"""Launchers that run jobs in processes of this machine, which must not outlive the launching one."""
LOCAL = (".BasicLauncher", WORKERS)


def parallel(hydra: Any) -> int:
    """Returns how many jobs share this machine, by Hydra's configuration; 0 means that they run on machines of their
    own."""
    if not is_local(hydra):
        return 0
    asked = int(hydra.launcher.get("n_jobs", 1))
    if asked == 0 or asked > cpu.most_threads():
        raise UserError(
            f"expected 1 to {cpu.most_threads()} jobs side by side, or -1 for one a core, got {asked}",
            "hydra.launcher.n_jobs",
        )
    return asked if asked > 0 else cpu.cores()


def is_local(hydra: Any) -> bool:
    return str(hydra.launcher._target_).endswith(LOCAL)
