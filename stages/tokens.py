"""Converts text to windows of tokens: the evaluation stream, and packed rows for training and calibration."""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stages import json_lines
from stages.contracts import Corpus, UserError
from stages.data.formats import rows_of
from stages.families import Batch
from stages.items.encoding import Items, Tokens
from stages.options import Bos

IGNORED = -100
"""Label of a token that is not learned."""


def texts(data: Corpus, split: str) -> list[str]:
    """Yields the running texts of a split; for items each one's prompt and completion together, for conversations the
    turns."""
    kind = rows_of(data)
    if kind == "texts":
        return [row["text"] for row in json_lines.read(data.split(split))]
    if kind == "conversations":
        return ["\n\n".join(turn["content"] for turn in row["messages"]) for row in json_lines.read(data.split(split))]
    return [row["prompt"] + row["completion"] for row in json_lines.read(data.split(split))]


def prefix(tokenizer: Any) -> list[int]:
    """Returns what the tokenizer puts before a text: its BOS, or nothing."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return list(whole[:at])


def stream(
    data: Corpus, split: str, tokenizer: Any, length: int, option: str, bos: Bos = "window", joined_by: str = "\n\n",
    documents: int = 0,
) -> Tensor:  # fmt: skip
    """Returns `ids_NL` int64: the texts of a split, or the first `documents` of them, joined, tokenised once, cut into
    windows of `length`, tail dropped.

    Windows do not overlap and have no padding. `bos`: each window begins as the tokenizer begins a text, or the first
    only. Raises UserError when there is not one whole window, or fewer documents.
    """
    found = texts(data, split)
    if documents > len(found):
        raise UserError(f"the split {split!r} has {len(found)} rows, not {documents}", "evaluate.perplexity.documents")
    begin = prefix(tokenizer)
    encoded = tokenizer(joined_by.join(found[: documents or None]), add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    total = len(encoded)
    if bos == "stream":
        encoded, begin = [*begin, *encoded], []
    own = length - len(begin)
    count = len(encoded) // own if own > 0 else 0
    if count == 0:
        raise UserError(
            f"the split {split!r} has {total} tokens, fewer than one window of {length}: shorten it or add texts",
            option,
        )
    ids_NL = torch.tensor(encoded[: count * own]).reshape(count, own)
    return torch.cat([torch.tensor(begin, dtype=torch.long).expand(count, len(begin)), ids_NL], 1)


def document_windows(
    data: Corpus, split: str, tokenizer: Any, length: int, count: int, seed: int, option: str
) -> Tensor:
    """Returns `ids_NL`: `count` random stretches of `length` tokens, each of a random document that is longer, drawn
    one after the other as in the released code of SparseGPT and Wanda. Raises UserError if no document is longer."""
    found = texts(data, split)
    draw = random.Random(seed)
    chosen: list[Tensor] = []
    short: set[int] = set()
    while len(chosen) < count:
        number = draw.randint(0, len(found) - 1)
        ids = [] if number in short else tokenizer(found[number], verbose=False)["input_ids"]
        if len(ids) <= length:
            short.add(number)
            if len(short) == len(found):
                raise UserError(f"no document of the split {split!r} has more than {length} tokens", option)
            continue
        at = draw.randint(0, len(ids) - length - 1)
        chosen.append(torch.tensor(ids[at : at + length]))
    return torch.stack(chosen)


def training_rows(
    data: Corpus, split: str, tokenizer: Any, length: int, model: nn.Module, option: str, packed: bool = True
) -> Batch:
    """Returns all N rows of an epoch, each `length` long: `input_ids`, `labels`, `use` (1 = a real token), and what
    separates items.

    texts: the windows of `stream`. items and conversations: as the tokenizer begins them (with bos, if it has one, as
    in evaluation), each ended by eos, packed whole and greedily into rows: `position_ids` restart with each item, and
    attention stays within it. A model that does not support that (MPT, OPT), or packed=False, gets one item a row and
    an attention mask. Labels are the tokens that the data define as learned (`stages.items.encoding`). Raises UserError
    for a tokenizer that has no eos.
    """
    if rows_of(data) == "texts":
        ids_NL = stream(data, split, tokenizer, length, option)
        return {"input_ids": ids_NL, "labels": ids_NL.clone(), "use": torch.ones_like(ids_NL)}
    encoder = Items(data, tokenizer)
    encoded = (encoder.encode(row, length, option) for row in json_lines.read(data.split(split)))
    items = [item for item in encoded if item is not None]
    by_position = packed and keeps_items_apart(model)
    filled = _first_fit(items, length) if by_position else [[item] for item in items]
    shape = (len(filled), length)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids_NL = torch.full(shape, pad)
    labels_NL = torch.full(shape, IGNORED)
    mask_NL = torch.zeros(shape, dtype=torch.long)
    # padding counts as one more item: position ids that restart at 0 separate it from the items before
    positions_NL = torch.zeros(shape, dtype=torch.long)
    for n, row in enumerate(filled):
        at = 0
        for item in row:
            size = len(item.ids)
            span = slice(at, at + size)
            ids_NL[n, span] = ids_S = torch.tensor(item.ids)
            labels_NL[n, span] = ids_S.where(torch.tensor(item.learned), IGNORED)
            # an item must not be predicted from the end of its neighbour
            labels_NL[n, at] = IGNORED
            mask_NL[n, span] = 1
            positions_NL[n, span] = torch.arange(size)
            at += size
        positions_NL[n, at:] = torch.arange(length - at)
    batch = {"input_ids": ids_NL, "labels": labels_NL, "use": mask_NL}
    return batch | ({"position_ids": positions_NL} if by_position else {"attention_mask": mask_NL})


@torch.no_grad()
def keeps_items_apart(model: nn.Module) -> bool:
    """Returns whether the model separates items where `position_ids` restart. Not all models that take them do (OPT
    does not), so it is tested on two items of two tokens."""
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
    # experts multiply other batches of tokens when the first item changes, which rounds differently; a leak is far more
    largest = float(one.logits.abs().max())
    return float((one.logits[:, 2:] - other.logits[:, 2:]).abs().max()) <= 1e-4 * largest


def _first_fit(items: Sequence[Tokens], length: int, open_rows: int = 64) -> list[list[Tokens]]:
    """Packs items, in order, into rows of at most `length` tokens; looks back at the last `open_rows` rows."""
    packed: list[list[Tokens]] = []
    room: list[int] = []
    for item in items:
        start = max(0, len(packed) - open_rows)
        for i in range(start, len(packed)):
            if room[i] >= len(item.ids):
                break
        else:
            i = len(packed)
            packed.append([])
            room.append(length)
        packed[i].append(item)
        room[i] -= len(item.ids)
    return packed
