"""The heap of a stage: large tensors use memory again, and it goes back to the system at the end."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

CHILD = """
import resource
import torch
from pipeline import heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(16 << 20).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

outside = faults()
with heap.kept():
    faults()
    inside = faults()
    held = resident()
print(outside, inside, held - resident())
"""


def measured(**environment: str) -> tuple[int, int, int]:
    """Page faults of ten tensors of 64 MB outside and inside, and MB that went back to the system at the end."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    ran = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, env=ours | environment
    )
    outside, inside, back = map(int, ran.stdout.split())
    return outside, inside, back


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="only glibc is told to keep memory")
def test_a_stage_pages_its_large_tensors_in_once_and_gives_them_back_at_its_end() -> None:
    outside, inside, back = measured()
    assert outside > 1000
    assert inside < outside / 50
    assert back > 50


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="only glibc is told to keep memory")
def test_a_user_who_set_the_heap_has_decided() -> None:
    outside, inside, _ = measured(MALLOC_TOP_PAD_="0")
    assert inside > outside / 2
