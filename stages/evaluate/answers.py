"""Generates a causal model's answers to the items of a data set, for metrics that read texts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stages import json_lines
from stages.contracts import Log, UserError
from stages.data.formats import rows_of
from stages.evaluate.metrics import Judged, MetricOptions
from stages.options import Seed

if TYPE_CHECKING:
    from stages.items.encoding import Items, Question

OPTION = "evaluate.metrics"


class ItemOptions(MetricOptions):
    split: str = "test"
    """Split whose items are evaluated."""
    limit: int = Field(0, ge=0)
    """Evaluate the first so many items; 0: all."""


class AnswerOptions(ItemOptions):
    max_new_tokens: int = Field(128, ge=1)
    """Longest answer."""
    prompt_tokens: int = Field(0, ge=0)
    """The longest prompt. A longer one loses the end of the part that may be cut, as in training. 0: what the model's
    context leaves beside the answer."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature; 0: greedy decoding."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample among the most probable tokens that together have this probability."""
    top_k: int = Field(0, ge=0)
    """Sample among this many most probable tokens; 0: all."""
    seed: Seed = 0
    """Seed of the samples."""


@dataclass(frozen=True)
class Answer:
    question: Question
    text: str
    tokens: int
    """Tokens without the one that ends the answer."""
    stopped: bool
    """Whether the model ended the answer itself."""


def rows_of_items(options: ItemOptions, judged: Judged) -> list[dict[str, Any]]:
    """Returns the rows of items. Raises UserError for running text, and for fewer items than configured."""
    if rows_of(judged.tests) not in ("items", "conversations"):
        raise UserError(f"{options.name} needs items, which data of format {judged.tests.format} do not have", OPTION)
    found = list(islice(json_lines.read(judged.tests.split(options.split)), options.limit or None))
    if len(found) < options.limit:
        raise UserError(f"the split {options.split!r} has {len(found)} items, not {options.limit}", OPTION)
    return found


def items(judged: Judged) -> Items:
    from stages.items.encoding import Items

    return Items(judged.tests, judged.tokenizer)


def questions(options: AnswerOptions, judged: Judged) -> list[Question]:
    """Returns the prompts of the items. Raises UserError for prompts that do not fit beside the answer and may not be
    cut."""
    room = judged.family.context(judged.model) - options.max_new_tokens
    if room < 1:
        raise UserError(
            f"answers of {options.max_new_tokens} tokens leave no room for a prompt in the model's context",
            f"{OPTION}.{options.name}.max_new_tokens",
        )
    asking = items(judged)
    room = min(room, options.prompt_tokens or room)
    return [asking.ask(row, room, f"{OPTION}.{options.name}") for row in rows_of_items(options, judged)]


def answer(
    options: AnswerOptions, judged: Judged, log: Log, samples: int = 1, distinct: bool = False
) -> list[Answer]:  # fmt: skip
    """Returns `samples` answers to each question, those of one question consecutively. `distinct`: items with the same
    prompt are asked once."""
    import torch

    once = questions(options, judged)
    if distinct:
        first: dict[tuple[int, ...], Question] = {}
        for question in once:
            first.setdefault(tuple(question.ids), question)
        once = list(first.values())
    asked = [question for question in once for _ in range(samples)]
    stops = items(judged).stops()
    settings = _settings(options, judged, stops)
    order = sorted(range(len(asked)), key=lambda number: -len(asked[number].ids))
    found: dict[int, Answer] = {}
    torch.manual_seed(options.seed)
    with torch.inference_mode(), log.bar(f"{options.name}: answer", total=len(asked), unit="item") as bar:
        for begin in range(0, len(order), judged.batch_size):
            chosen = order[begin : begin + judged.batch_size]
            written = _generated(judged, [asked[number].ids for number in chosen], settings)
            for number, ids in zip(chosen, written, strict=True):
                found[number] = _answer(asked[number], ids, stops, judged.tokenizer)
            bar.advance(len(chosen))
    return [found[number] for number in range(len(asked))]


def protocol(options: AnswerOptions, judged: Judged, answers: Sequence[Answer]) -> dict[str, Any]:
    """Returns the part of the protocol that all measurements of answers share."""
    sampled = {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k, "seed": options.seed}
    return {
        "split": options.split,
        "items": len({answer.question.id for answer in answers}),
        "decoding": sampled if options.temperature else "greedy",
        "max_new_tokens": options.max_new_tokens,
        "prompt_tokens": options.prompt_tokens,
        "data_digest": judged.tests.digest,
        "stderr": "items independent",
    }


def save(judged: Judged, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one line for each item into `<name>.jsonl` of the result."""
    assert judged.out is not None
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (judged.out / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def mean_and_error(scores: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean of independent items and its standard error, which is None for a single item."""
    count = len(scores)
    mean = sum(scores) / count
    if count < 2:
        return mean, None
    return mean, math.sqrt(sum((score - mean) ** 2 for score in scores) / (count - 1) / count)


def _settings(options: AnswerOptions, judged: Judged, stops: set[int]) -> Any:
    """Returns generation settings from the options alone; the settings in the model's own folder are ignored."""
    from transformers import GenerationConfig

    drawn = {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
    return GenerationConfig(
        do_sample=options.temperature > 0,
        max_new_tokens=options.max_new_tokens,
        eos_token_id=sorted(stops),
        pad_token_id=judged.tokenizer.eos_token_id,
        use_cache=True,
        **(drawn if options.temperature else {}),
    )


def _generated(judged: Judged, prompts: list[list[int]], settings: Any) -> list[list[int]]:
    """Returns the new ids of each prompt; prompts are padded on the left."""
    import torch

    longest = max(len(ids) for ids in prompts)
    ids_BT = torch.full((len(prompts), longest), settings.pad_token_id)
    mask_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(prompts):
        ids_BT[row, longest - len(ids) :] = torch.tensor(ids)
        mask_BT[row, longest - len(ids) :] = 1
    device = judged.model.device
    out_BT = judged.model.generate(
        input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), generation_config=settings
    )
    found: list[list[int]] = out_BT[:, longest:].tolist()
    return found


def _answer(question: Question, ids: list[int], stops: set[int], tokenizer: Any) -> Answer:
    end = next((at for at, token in enumerate(ids) if token in stops), None)
    own = ids[:end]
    return Answer(question, tokenizer.decode(own, skip_special_tokens=True), len(own), end is not None)
