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
    """(row numbers, batch) of at most `size` rows each; rows of like size together, so that padding costs little."""
    order_B = rows.sizes[chosen_B].argsort(descending=True, stable=True)
    for part_B in torch.split(chosen_B[order_B], size):
        yield part_B, rows.take(part_B)
