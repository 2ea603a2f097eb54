"""Workloads of a benchmark: one prompt of a text, or real sentences and clips for an encoder-decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.bench.decoding import Prompt
from stages import checkpoints, counts, families, tokens
from stages.benchmark.spec import BenchmarkOptions
from stages.contracts import Checkpoint, Corpus, DataSet, Examples, UserError
from stages.families import Family
from stages.families.encoder_decoder import EncoderDecoder, ExampleRows


@dataclass(frozen=True)
class Sample(Prompt):
    """A prompt, or the input of an encoder, with what is known of the answer."""

    written: int = 0
    """Number of tokens of its own text including the end, if it has one."""
    audio_seconds: float | None = None


@dataclass(frozen=True)
class Workload:
    samples: list[Sample]
    new_tokens: int
    """Greedy steps after the first token of each sample, whatever the tokens are."""
    beams: int
    """Beams of a search for as many tokens; 0: no search."""
    described: dict[str, Any]
    """Description for the record's protocol."""


def of(config: BenchmarkOptions, dense: Checkpoint, data: DataSet) -> Workload:
    """Returns the workload. Raises UserError if the data are too short, or the decoded tokens do not fit the model's
    context."""
    family = families.of(dense.path)
    if isinstance(family, EncoderDecoder):
        return _examples(config, family, dense, data)
    if config.beams > 1:
        raise UserError(f"beams are measured for encoder-decoders only, not for {family.name}", "benchmark.beams")
    assert isinstance(data, Corpus)
    context = family.context(counts.shell(dense))
    checkpoints.check_length(context, config.prompt_tokens + config.new_tokens, "benchmark.prompt_tokens")
    tokenizer = family.tokenizer(dense.path)
    ids_1T = tokens.stream(data, "test", tokenizer, config.prompt_tokens, "benchmark.prompt_tokens")[:1]
    described = {"workload": f"prompt of {config.prompt_tokens} tokens", "prompt_tokens": config.prompt_tokens}
    return Workload([Sample(ids_1T)], config.new_tokens, 0, described)


def _examples(config: BenchmarkOptions, family: Family, dense: Checkpoint, data: DataSet) -> Workload:
    assert isinstance(data, Examples)
    model = counts.shell(dense)
    context = family.context(model)
    prompt = list(data.facts()["prompt"])
    checkpoints.check_length(context, len(prompt) + config.new_tokens, "benchmark.new_tokens")
    rows = family.rows(model, dense.path, data, "test", context, "benchmark.samples")
    assert isinstance(rows, ExampleRows)
    labels = rows.examples.with_format(None)["labels"][:]
    # a piece of a longer clip has no text of its own, only the prompt and the end
    whole = [row for row, ids in enumerate(labels) if len(ids) > len(prompt)]
    if len(whole) < config.samples:
        raise UserError(f"the test split has {len(whole)} examples with a text", "benchmark.samples")
    chosen_K = evenly(rows.sizes[whole], config.samples)
    ids_1T = torch.tensor([prompt])
    samples = []
    for row in (whole[i] for i in chosen_K.tolist()):
        batch = rows.take(torch.tensor([row]))
        encoder = {name: tensor for name, tensor in family.inputs(batch).items() if name != "decoder_input_ids"}
        # labels begin with the prompt but its start token; `use` leaves out their padding
        written = int(batch["use"].sum()) - len(prompt) + 1
        samples.append(Sample(ids_1T, encoder, written, _seconds(rows.examples, row)))
    described = {
        "workload": f"{config.samples} examples of the test split",
        "prompt_tokens": len(prompt),
        "samples": [rows.examples["id"][whole[i]] for i in chosen_K.tolist()],
        "prefill_ms": "the encoder and the decoder's first token, mean of the samples",
        "beams": config.beams,
    }
    if samples[0].audio_seconds is not None:
        described["real_time_factor"] = (
            "encoder and greedy decoding of as many tokens as the transcripts have, over the seconds of audio"
        )
    return Workload(samples, config.new_tokens, config.beams if config.beams > 1 else 0, described)


def evenly(size_N: Tensor, count: int) -> Tensor:
    """Returns `chosen_K`: the middles of `count` equal parts of the rows ordered by size."""
    order_N = size_N.argsort(stable=True)
    return order_N[(2 * torch.arange(count) + 1) * len(size_N) // (2 * count)]


def _seconds(examples: Any, row: int) -> float | None:
    return float(examples["seconds"][row]) if "seconds" in examples.column_names else None
