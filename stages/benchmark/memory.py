"""Measures the current and the peak memory of a process."""

from __future__ import annotations

from pathlib import Path

import psutil


def resident_bytes(process: int | None = None) -> int:
    """Returns the resident memory of this process, or of another one."""
    return int(psutil.Process(process).memory_info().rss)


def reset_peak() -> bool:
    """Resets the kernel's record of the largest resident size. Returns False where the kernel cannot (not Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes(process: int | None = None) -> int:
    """Returns the largest resident size since `reset_peak`; of another process, since its start."""
    status = Path(f"/proc/{process or 'self'}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
