"""Which rows a training step sees: seeded epochs, steps of a number of epochs, micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.schema import Training
from stages.families import Batch

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


def take(rows: Batch, chosen_B: Tensor) -> Batch:
    """The chosen rows, without the columns that are padding in all of them."""
    length = int(rows["use"][chosen_B].any(0).nonzero().max()) + 1
    return {name: tensor[chosen_B, :length] for name, tensor in rows.items()}


def micro_batches(rows: Batch, chosen_B: Tensor, size: int) -> Iterator[tuple[Tensor, Batch]]:
    """(row numbers, batch) of at most `size` rows each."""
    for part_B in torch.split(chosen_B, size):
        yield part_B, take(rows, part_B)
