"""Counts the rows of a data set's splits, for checks before a stage works on them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from stages import families
from stages.contracts import Checkpoint, DataSet


@cache
def num_rows(model: Checkpoint, data: DataSet, split: str, length: int, option: str) -> int:
    """Returns the number of rows of at most `length` tokens, one item each, as `Family.rows` makes them. Raises
    UserError, with `option`, if the split has none."""
    family = families.of(model.path)
    return len(family.rows(shell(model), model.path, data, split, length, option, packed=False))


@cache
def shell(model: Checkpoint) -> Any:
    """Returns the model without weights, on the meta device: its architecture and configuration."""
    with torch.device("meta"):
        return families.of(model.path).build(model.path)
