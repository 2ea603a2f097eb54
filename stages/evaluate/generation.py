"""Generates an encoder-decoder's outputs for the items of a split: batched decoding, its speed, and the hypotheses on
disk."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stages import devices
from stages.contracts import Bar, Log, UserError
from stages.evaluate.spec import Generation
from stages.families.encoder_decoder import Decoding, ExampleRows


@dataclass(frozen=True)
class Item:
    """One text; the pieces of a clip that was cut are joined."""

    id: str
    reference: str
    hypothesis: str
    tokens: int
    cut_off: bool
    """Whether it, or one of its pieces, was ended by max_new_tokens instead of the model."""


@dataclass(frozen=True)
class Decoded:
    items: list[Item]
    speed: dict[str, float]
    """Decoding time `seconds`, and rates; for speech the `real_time_factor`, that time over the duration of the
    audio."""


def chosen_items(config: Generation, examples: Any) -> list[list[int]]:
    """Returns the row numbers of each of the first `config.limit` items. Raises UserError for more items than there
    are."""
    grouped = _items(examples)
    if not grouped:
        raise UserError(f"the split {config.split!r} has no items", "evaluate.generation.split")
    if config.limit > len(grouped):
        raise UserError(
            f"the split {config.split!r} has {len(grouped)} items, not {config.limit}", "evaluate.generation.limit"
        )
    return grouped[: config.limit or None]


def decode(
    config: Generation, rows: ExampleRows, prompt: list[int], batch_size: int, model: Any, tokenizer: Any, log: Log
) -> Decoded:
    """Decodes the first `config.limit` items, rows of similar size together, the largest first.

    Raises UserError for more items than there are, and for a model whose logits are not finite.
    """
    decoding = Decoding(prompt, config.beams, config.length_penalty, config.max_new_tokens)
    examples = rows.examples.with_format(None)
    grouped = chosen_items(config, examples)
    chosen = [row for item in grouped for row in item]
    with _checked(model), log.bar(f"decode {config.split}", total=len(chosen), unit="row") as bar:
        ids_of, seconds = _decode(rows, chosen, batch_size, model, decoding, bar)
    texts = tokenizer.batch_decode([ids_of[row] for row in chosen], skip_special_tokens=True)
    text_of = dict(zip(chosen, texts, strict=True))
    names, references = examples["id"][:], examples["reference"][:]
    items = [
        Item(
            id=names[item[0]],
            reference=references[item[0]],
            hypothesis=" ".join(filter(None, (text_of[row].strip() for row in item))),
            tokens=sum(len(ids_of[row]) for row in item),
            cut_off=any(len(ids_of[row]) >= config.max_new_tokens for row in item),
        )
        for item in grouped
    ]
    speed = {
        "seconds": seconds,
        "tokens_per_second": sum(item.tokens for item in items) / seconds,
        "items_per_second": len(items) / seconds,
    }
    if "seconds" in examples.column_names:
        heard = examples["seconds"][:]
        speed["real_time_factor"] = seconds / sum(heard[row] for row in chosen)
    return Decoded(items, speed)


def save(items: Sequence[Item], counts: Sequence[dict[str, int]], path: Path) -> None:
    """Writes a line for each item: `id`, `reference`, `hypothesis`, `tokens`, and its `counts` of errors, if any."""
    with path.open("w", encoding="utf-8") as file:
        for item, counted in zip(items, counts, strict=True):
            row = {
                "id": item.id, "reference": item.reference, "hypothesis": item.hypothesis, "tokens": item.tokens,
                **counted,
            }  # fmt: skip
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _items(examples: Any) -> list[list[int]]:
    """Returns the rows of each item: one, or those from a first piece (0) to the next first piece."""
    if "piece" not in examples.column_names:
        return [[row] for row in range(len(examples))]
    grouped: list[list[int]] = []
    for row, piece in enumerate(examples["piece"][:]):
        if piece == 0:
            grouped.append([])
        grouped[-1].append(row)
    return grouped


def _decode(
    rows: ExampleRows, chosen: list[int], batch_size: int, model: Any, decoding: Decoding, bar: Bar
) -> tuple[dict[int, list[int]], float]:  # fmt: skip
    """Returns the ids of each row, and the seconds that the model took for them."""
    chosen_N = torch.tensor(chosen)
    by_size_N = chosen_N[rows.sizes[chosen_N].argsort(descending=True, stable=True)]
    found: dict[int, list[int]] = {}
    seconds, tokens = 0.0, 0
    for chosen_B in torch.split(by_size_N, batch_size):
        batch = devices.moved(rows.take(chosen_B), model.device)
        start = time.perf_counter()
        ids_of_B = rows.family.generate(model, batch, decoding)
        seconds += time.perf_counter() - start
        found |= dict(zip(chosen_B.tolist(), ids_of_B, strict=True))
        tokens += sum(len(ids) for ids in ids_of_B)
        bar.advance(len(chosen_B), tokens_per_second=tokens / seconds)
    return found, seconds


@contextmanager
def _checked(model: Any) -> Iterator[None]:
    """Checks the logits of every step: a search over values that are not finite would still give some text."""

    def check(module: Any, args: Any, output: Any) -> None:
        if not bool(output.logits.isfinite().all()):
            raise UserError("the model's logits are not finite: this model is broken", "evaluate.generation")

    handle = model.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()
