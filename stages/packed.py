"""Rows of a packed corpus: windows of its tokens, read in place from the files of its shards.

Row r of a part is its tokens r·L ... (r + 1)·L - 1, whatever shards they lie in; tokens after the last whole window are
not read. So the rows of a step follow from the seed and the step's number alone (`stages.finetune.batches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.contracts import PackedCorpus, UserError
from stages.families import Batch, Rows

IGNORED = -100


@dataclass(frozen=True)
class Tokens:
    """A part of a corpus as one sequence."""

    shards: Sequence[NDArray[Any]]
    """Memory-mapped shards."""
    starts: Sequence[NDArray[np.uint64]]
    """Starts of documents in each shard."""

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Returns the end of each shard in the whole."""
        return np.cumsum([len(shard) for shard in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def window(self, begin: int, length: int) -> NDArray[np.int64]:
        """Returns `ids_L`, across the borders of shards."""
        ids_L = np.empty(length, dtype=np.int64)
        filled = 0
        shard = int(np.searchsorted(self.ends, begin, side="right"))
        while filled < length:
            inside = begin + filled - (int(self.ends[shard]) - len(self.shards[shard]))
            part = self.shards[shard][inside : inside + length - filled]
            ids_L[filled : filled + len(part)] = part
            filled += len(part)
            shard += 1
        return ids_L

    def positions(self, begin: int, length: int) -> NDArray[np.int64]:
        """Returns `position_L`: 0 at the start of the window and of each document in it, counting up between."""
        shard = int(np.searchsorted(self.ends, begin, side="right"))
        restarts = [0]
        while shard < len(self.shards) and (offset := int(self.ends[shard]) - len(self.shards[shard])) < begin + length:
            starts = self.starts[shard]
            low, high = np.searchsorted(starts, np.array([max(begin - offset, 0), begin + length - offset], np.uint64))
            restarts += [int(start) + offset - begin for start in starts[low:high]]
            shard += 1
        # each position is its distance from the last restart
        last_L = np.zeros(length, dtype=np.int64)
        last_L[restarts] = restarts
        return np.arange(length) - np.maximum.accumulate(last_L)


def train_tokens(corpus: PackedCorpus) -> Tokens:
    index = corpus.index()
    return _tokens([corpus.path / f"train_{number:05d}.bin" for number in range(len(index["train"]))], index["dtype"])


def validation_tokens(corpus: PackedCorpus) -> dict[str, Tokens]:
    """Returns the number of validation tokens by source."""
    index = corpus.index()
    return {name: _tokens([corpus.path / f"validation_{name}.bin"], index["dtype"]) for name in index["validation"]}


def _tokens(files: Sequence[Path], dtype: str) -> Tokens:
    return Tokens(
        [np.memmap(file, dtype=dtype, mode="r") for file in files],
        [np.load(file.with_suffix(".starts.npy"), mmap_mode="r") for file in files],
    )


@dataclass(frozen=True)
class Windows:
    """Consecutive windows of `length` tokens as rows. `apart`: attention and positions restart with each document."""

    tokens: Tokens
    length: int
    apart: bool

    independent = True

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    @cached_property
    def sizes(self) -> Tensor:
        return torch.full((1,), self.length).expand(len(self))

    def take(self, chosen_B: Tensor) -> Batch:
        begins = [row * self.length for row in chosen_B.tolist()]
        ids_BT = torch.from_numpy(np.stack([self.tokens.window(begin, self.length) for begin in begins]))
        batch = {"input_ids": ids_BT, "labels": ids_BT, "use": torch.ones_like(ids_BT)}
        if not self.apart:
            return batch
        positions_BT = torch.from_numpy(np.stack([self.tokens.positions(begin, self.length) for begin in begins]))
        # a document must not be predicted from the end of its neighbour
        return batch | {"labels": ids_BT.masked_fill(positions_BT == 0, IGNORED), "position_ids": positions_BT}


@dataclass(frozen=True)
class Alternating:
    """Rows of several parts in turn, as long as each has any, so that the first n come from all of them."""

    parts: Sequence[Windows]

    independent = True

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @cached_property
    def _places(self) -> Tensor:
        """Returns `(part, row)_N2`."""
        longest = max(map(len, self.parts))
        return torch.tensor(
            [(p, row) for row in range(longest) for p, part in enumerate(self.parts) if row < len(part)]
        )

    @cached_property
    def sizes(self) -> Tensor:
        return torch.full((1,), self.parts[0].length).expand(len(self))

    def take(self, chosen_B: Tensor) -> Batch:
        batches = [self.parts[part].take(torch.tensor([row])) for part, row in self._places[chosen_B].tolist()]
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def rows(corpus: PackedCorpus, split: str, length: int, apart: bool, option: str) -> Rows:
    """Returns the rows of a part: `train`; `validation`, of all sources in turn; or `validation.SOURCE`. Raises
    UserError, with `option`, if a part has no whole window."""
    if split == "train":
        parts = {split: train_tokens(corpus)}
    else:
        found = validation_tokens(corpus)
        parts = found if split == "validation" else {split: found[split.removeprefix("validation.")]}
    for name, tokens in parts.items():
        if len(tokens) < length:
            raise UserError(
                f"{name} has {len(tokens)} tokens, fewer than one window of {length}: shorten it or add texts",
                option,
            )
    windows = [Windows(tokens, length, apart) for tokens in parts.values()]
    return windows[0] if len(windows) == 1 else Alternating(windows)
