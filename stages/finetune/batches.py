"""Chooses the rows of each training step: seeded epochs, steps of similar lengths, micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from stages import devices
from stages.families import Batch, Rows
from stages.finetune.randomness import SEED_STRIDE
from stages.finetune.spec import Training

STEPS_GROUPED = 20
"""Steps among which `grouped` moves rows."""


def count_steps(config: Training, num_rows: int) -> int:
    """Returns the number of optimizer steps: as configured, or those that see every row at least `epochs` times; 0 for
    a budget of tokens."""
    return config.steps or math.ceil(config.epochs * num_rows / config.batch_size)


def steps_of_tokens(config: Training, sizes_R: Tensor) -> int:
    """Returns the smallest number of steps that together have `config.tokens` tokens; `sizes_R`: the tokens of each
    row."""
    smallest, largest = int(sizes_R.min()), int(sizes_R.max())
    if smallest == largest:
        return math.ceil(config.tokens / (config.batch_size * largest))
    epochs = math.ceil(config.tokens / int(sizes_R.sum()))
    seen_N = sizes_R[order(len(sizes_R), epochs * len(sizes_R), config.seed)].cumsum(0)
    return math.ceil((int(torch.searchsorted(seen_N, config.tokens)) + 1) / config.batch_size)


def order(num_rows: int, needed: int, seed: int) -> Tensor:
    """Returns row numbers in the order of training: epoch after epoch, each shuffled by (seed, epoch)."""
    epochs = math.ceil(needed / num_rows)
    generators = (torch.Generator().manual_seed(seed * SEED_STRIDE + epoch) for epoch in range(epochs))
    shuffled = [torch.randperm(num_rows, generator=generator) for generator in generators]
    return torch.cat(shuffled)[:needed] if shuffled else torch.empty(0, dtype=torch.long)


def grouped(order_N: Tensor, sizes_R: Tensor, batch_size: int, seed: int) -> Tensor:
    """Returns `order_N` with rows of similar sizes in the same step: every `STEPS_GROUPED` steps redistribute their
    rows.

    The rows of those steps stay the same, and the steps stay in random order.
    """
    groups = []
    for group, rows_N in enumerate(torch.split(order_N, STEPS_GROUPED * batch_size)):
        steps = torch.split(rows_N[sizes_R[rows_N].sort(stable=True).indices], batch_size)
        generator = torch.Generator().manual_seed(seed * SEED_STRIDE + group)
        groups += [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]
    return torch.cat(groups) if groups else order_N


def micro_batches(
    rows: Rows, chosen_B: Tensor, size: int, device: torch.device = devices.CPU
) -> Iterator[tuple[Tensor, Batch]]:  # fmt: skip
    """Yields (row numbers, batch) of at most `size` rows each, the largest of them at most twice the smallest: padding
    costs less than computing, and the sum over a step does not depend on how it is cut. Batches are on `device`."""
    sizes_B, order_B = rows.sizes[chosen_B].sort(descending=True, stable=True)
    ordered_B = chosen_B[order_B]
    start = 0
    for end in range(1, len(ordered_B) + 1):
        if end == len(ordered_B) or end - start == size or 2 * sizes_B[end] < sizes_B[start]:
            part_B = ordered_B[start:end]
            yield part_B, devices.moved(rows.take(part_B), device)
            start = end
