"""Who is at work: a process by host, id and start, which a record can name and a later reader look for."""

from __future__ import annotations

import functools
import os
import socket

import psutil


@functools.cache
def _name(pid: int) -> str:
    return f"{socket.gethostname()} {pid} {psutil.Process(pid).create_time():.0f}"


def this_process() -> str:
    return _name(os.getpid())


def is_here(process: str) -> bool:
    """Whether it is one of this machine, so that `is_dead` can tell."""
    return process.partition(" ")[0] == socket.gethostname()


def is_dead(process: str) -> bool:
    """Whether a process of this machine is gone. Its start tells it from a later one with the same id."""
    if not is_here(process):
        return False
    pid, _, started = process.partition(" ")[2].partition(" ")
    try:
        found = psutil.Process(int(pid))
        return f"{found.create_time():.0f}" != started or found.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
