"""Identifies a process by host, id and start time, so that a record can name it and a later reader can look for it.

The start is counted by the kernel from the boot of the machine, and the boot has an id of its own: setting the clock
changes neither.
"""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@functools.cache
def _name(pid: int) -> str:
    return f"{socket.gethostname()} {pid} {_start(pid)}"


def _start(pid: int) -> str:
    """Returns `<ticks since boot>@<first digits of the boot's id>`; seconds since 1970 where there is no such file
    system.

    Raises psutil.NoSuchProcess.
    """
    if not BOOT_ID.exists():
        return f"{psutil.Process(pid).create_time():.0f}"
    try:
        # after the name in parentheses, which may hold spaces, the start is the 20th field
        ticks = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    return f"{ticks}@{BOOT_ID.read_text(encoding='ascii')[:8]}"


def this_process() -> str:
    return _name(os.getpid())


def parent_process() -> str:
    return _name(os.getppid())


def is_here(process: str) -> bool:
    """Returns whether it is a process of this machine; `is_dead` can judge only those."""
    return process.partition(" ")[0] == socket.gethostname()


def is_dead(process: str) -> bool:
    """Returns whether a process of this machine is gone. Its start time distinguishes it from a later one with the same
    id; records of earlier versions hold seconds since 1970 there and are judged by the id alone."""
    if not is_here(process):
        return False
    pid, _, started = process.partition(" ")[2].partition(" ")
    try:
        other = "@" in started and _start(int(pid)) != started
        return other or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
