"""Measures how fast the threads read memory: the limit of every product with a few tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine import kernels
from engine.bench.rounds import Contender, interleave
from engine.kernels import Matrix
from engine.peers.children.serve import seconds
from engine.weights import PackedWeight

ROUNDS = 7
WIDTH = 4096


@dataclass(frozen=True)
class ReadBandwidth:
    gigabytes_per_second: float
    """Bandwidth of the fastest round of the fastest way to read."""
    method: str
    """The fastest way to read."""


def measure(threads: int, buffer_bytes: int) -> ReadBandwidth:
    """Reads `buffer_bytes`, which should exceed the caches, in interleaved rounds by torch's sum and, if there are
    kernels, by the engine's own products of dense matrices. Uses torch's current number of threads."""
    rows = max(1, buffer_bytes // (4 * WIDTH))
    ones_OI, x_TI = torch.ones(rows, WIDTH), torch.ones(1, WIDTH)
    ways = [_way("torch sum, fp32", ones_OI.nbytes, ones_OI.sum)]
    if not kernels.unavailable():
        # memory of its own: what the sum has just read may partly be in a cache still
        fp32 = Matrix(PackedWeight((rows, WIDTH), ones_OI.view(-1).clone(), None, None, None))
        ways.append(_way("engine dense fp32 product", fp32.bytes, lambda: fp32.linear(x_TI, threads)))
        ones = torch.ones(4 * rows * WIDTH, dtype=torch.int8)
        int8 = Matrix(PackedWeight((4 * rows, WIDTH), ones, None, None, torch.ones(4 * rows)))
        ways.append(_way("engine dense int8 product", int8.bytes, lambda: int8.linear(x_TI, threads)))
    for _ in interleave(ways, 0, ROUNDS):
        pass
    best = max(ways, key=lambda way: max(way.rounds))
    return ReadBandwidth(max(best.rounds), best.name)


def _way(name: str, read_bytes: int, call: Callable[[], object]) -> Contender[float]:
    """Returns a contender whose rounds are GB/s."""
    return Contender(name=name, measure=lambda: read_bytes / seconds(call, 0) / 1e9, weight_bytes=read_bytes)
