"""Keeps freed memory of large tensors in the C heap while a stage runs; glibc would return it to the system at once.

Otherwise every tensor of more than 32 MB (logits, activations) is allocated anew by the system, page by page: about a
seventh of a training step of SmolLM2 on a CPU. Other C libraries are left unchanged.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_SETTINGS = {_TRIM_THRESHOLD: -1, _TOP_PAD: 256 << 20, _MMAP_MAX: 0}
"""Never return memory from the top; grow by 256 MB; never map an allocation by itself."""
_OF_USERS = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")
"""Variables by which a user has already chosen."""


@contextmanager
def kept() -> Iterator[None]:
    """Keeps freed memory in this process until the end of the block, then returns it to the system.

    glibc cannot undo the setting: later blocks of this process have it too, and the rest of the process keeps what it
    frees until the next block ends.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or any(name in os.environ for name in _OF_USERS):
        yield
        return
    for name, value in _SETTINGS.items():
        if not libc.mallopt(name, value):
            raise AssertionError(f"mallopt({name}, {value}) was refused")
    try:
        yield
    finally:
        libc.malloc_trim(0)
