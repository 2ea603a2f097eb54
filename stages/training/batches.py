"""Which rows a training step sees: seeded epochs, steps of a number of epochs, micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.schema import Training
from stages.families import Batch, Rows

EPOCHS = 1_000_003
"""Distance of two seeds' random streams: the epochs (and steps) of one seed are not those of the next."""


def count_steps(config: Training, num_rows: int) -> int:
    """Optimizer steps: as configured, or those that see every row at least `epochs` times."""
    return config.steps or math.ceil(config.epochs * num_rows / config.batch_size)


def order(num_rows: int, needed: int, seed: int) -> Tensor:
    """Row numbers in the order of training: epoch after epoch, each shuffled by (seed, epoch)."""
    epochs = math.ceil(needed / num_rows)
    generators = (torch.Generator().manual_seed(seed * EPOCHS + epoch) for epoch in range(epochs))
    shuffled = [torch.randperm(num_rows, generator=generator) for generator in generators]
    return torch.cat(shuffled)[:needed] if shuffled else torch.empty(0, dtype=torch.long)


def micro_batches(rows: Rows, chosen_B: Tensor, size: int) -> Iterator[tuple[Tensor, Batch]]:
    """(row numbers, batch) of at most `size` rows each, the largest of them at most twice the smallest: padding costs
    less than computing, and what a step adds up to does not depend on how it is cut."""
    sizes_B, order_B = rows.sizes[chosen_B].sort(descending=True, stable=True)
    ordered_B = chosen_B[order_B]
    start = 0
    for end in range(1, len(ordered_B) + 1):
        if end == len(ordered_B) or end - start == size or 2 * sizes_B[end] < sizes_B[start]:
            part_B = ordered_B[start:end]
            yield part_B, rows.take(part_B)
            start = end
