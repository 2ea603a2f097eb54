"""Text to token windows: the evaluation stream, and packed rows for training and calibration."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.contracts import Corpus, UserError
from stages.families import Batch

IGNORED = -100
"""Label of a token that is not to be learned."""


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def texts(data: Corpus, split: str) -> list[str]:
    """The running texts of a split; for qa each item's prompt and completion together."""
    if data.format == "text":
        return [row["text"] for row in rows(data.split(split))]
    return [row["prompt"] + row["completion"] for row in rows(data.split(split))]


def stream(data: Corpus, split: str, tokenizer: Any, length: int, option: str) -> Tensor:
    """`ids_NL` int64: the texts joined by blank lines, tokenised once, cut into windows of `length`, tail dropped.

    Windows do not overlap and have no padding. Raises UserError when there is not one whole window.
    """
    encoded = tokenizer("\n\n".join(texts(data, split)), add_special_tokens=False, verbose=False)["input_ids"]
    count = len(encoded) // length
    if count == 0:
        raise UserError(f"the split {split!r} has {len(encoded)} tokens, fewer than one window of {length}", option)
    return torch.tensor(encoded[: count * length]).reshape(count, length)


def training_rows(
    data: Corpus, split: str, tokenizer: Any, length: int, model: nn.Module, option: str, packed: bool = True
) -> Batch:
    """All rows of an epoch, N of them, each `length` long: `input_ids`, `labels`, `use` (1 = a real token), and
    what keeps items apart.

    text: the windows of `stream`. qa: items as the tokenizer begins them (with bos, if it has one, as in evaluation),
    each ended by eos, packed whole and greedily into rows: `position_ids` restart with each item, and attention stays
    within it. A model that does not do that (MPT, OPT), or packed=False, gets one item a row and an attention mask. An
    item longer than `length` is cut at its end. Raises UserError for a tokenizer that has no eos.
    """
    if data.format == "text":
        ids_NL = stream(data, split, tokenizer, length, option)
        return {"input_ids": ids_NL, "labels": ids_NL.clone(), "use": torch.ones_like(ids_NL)}
    if tokenizer.eos_token_id is None:
        raise UserError("its tokenizer has no end of sequence (eos), with which items of format qa end", "model.path")
    items = [_ended(tokenizer(text)["input_ids"], tokenizer.eos_token_id)[:length] for text in texts(data, split)]
    by_position = packed and _keeps_items_apart(model)
    filled = _first_fit(items, length) if by_position else [[item] for item in items]
    size = (len(filled), length)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids_NL = torch.full(size, pad)
    labels_NL = torch.full(size, IGNORED)
    mask_NL = torch.zeros(size, dtype=torch.long)
    # padding counts as one more item: position ids that restart at 0 cut it off from what stands before
    positions_NL = torch.zeros(size, dtype=torch.long)
    for n, row in enumerate(filled):
        at = 0
        for item in row:
            span = slice(at, at + len(item))
            ids_NL[n, span] = labels_NL[n, span] = torch.tensor(item)
            # an item must not be predicted from the end of its neighbour
            labels_NL[n, at] = IGNORED
            mask_NL[n, span] = 1
            positions_NL[n, span] = torch.arange(len(item))
            at += len(item)
        positions_NL[n, at:] = torch.arange(length - at)
    batch = {"input_ids": ids_NL, "labels": labels_NL, "use": mask_NL}
    return batch | ({"position_ids": positions_NL} if by_position else {"attention_mask": mask_NL})


def _ended(ids: list[int], eos: int) -> list[int]:
    return ids if ids and ids[-1] == eos else [*ids, eos]


@torch.no_grad()
def _keeps_items_apart(model: nn.Module) -> bool:
    """Whether an item is read as if it stood alone where `position_ids` restart with it. Not all models that take them
    look there for where an item begins (OPT does not), so that is tried out, on two items of two tokens."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    device = next(model.parameters()).device
    positions_BT = torch.tensor([[0, 1, 0, 1]], device=device)
    was_training = model.training
    model.eval()
    one, other = (
        model(input_ids=torch.tensor([[first, 1, 2, 3]], device=device), position_ids=positions_BT, use_cache=False)
        for first in (0, 4)
    )
    model.train(was_training)
    return torch.equal(one.logits[:, 2:], other.logits[:, 2:])


def _first_fit(items: Sequence[list[int]], length: int, open_rows: int = 64) -> list[list[list[int]]]:
    """Packs items, in order, into rows of at most `length` tokens; looks back at the last `open_rows` rows."""
    packed: list[list[list[int]]] = []
    room: list[int] = []
    for item in items:
        start = max(0, len(packed) - open_rows)
        for i in range(start, len(packed)):
            if room[i] >= len(item):
                break
        else:
            i = len(packed)
            packed.append([])
            room.append(length)
        packed[i].append(item)
        room[i] -= len(item)
    return packed
