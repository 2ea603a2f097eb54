"""Code shared by encoder-decoders: blocks of two stacks, teacher-forced decoding, states by hooks, generation."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine import architectures
from stages.contracts import Corpus, DataSet, Examples, Log
from stages.families import UNLIMITED, Batch, context_of, linears_in, states_by_hooks
from stages.families.decoding_head import head_input, output_head
from stages.families.hugging_face import HuggingFaceFolder
from stages.model.families import FAMILIES
from stages.tokens import IGNORED

PAD_MULTIPLE = 8
"""Batches are padded to multiples of this: with fewer shapes, torch compiles fewer kernels (a fifth of a step)."""

OWN_RULES = (
    "min_length",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "forced_eos_token_id",
)
"""Settings of published BART, Pegasus and Marian checkpoints."""

Example = dict[str, Any]
"""One row of `Examples`: `labels` (token ids, the prompt's but the first, then the text's and eos), `size` (what it
costs, to bring like rows together), `reference` (the text), `id`, and what the encoder reads."""


@dataclass(frozen=True)
class Decoding:
    """Settings of generation."""

    prompt: list[int]
    """Token ids that the decoder begins with."""
    beams: int
    length_penalty: float
    max_new_tokens: int
    min_new_tokens: int = 0
    """Shortest text."""


class EncoderDecoder(HuggingFaceFolder, ABC):
    name: str

    @property
    def model_types(self) -> set[str]:
        return set(FAMILIES.get(self.name).model_types)

    def context(self, model: Any) -> int:
        return context_of(model.config)

    # ---- data ----

    @abstractmethod
    def prompt(self, corpus: Corpus, folder: Path) -> list[int]:
        """Returns the ids that the decoder begins with, its start token first."""

    @abstractmethod
    def columns(self) -> Any:
        """Returns the `datasets.Features` of the examples."""

    @abstractmethod
    def examples(self, corpus: Corpus, split: str, folder: Path, log: Log) -> Iterator[Example]:
        """Yields the split's items as the model's tokenizer and feature extractor convert them. Raises UserError for
        bad ones."""

    @abstractmethod
    def collate(self, examples: Sequence[Example], length: int, start: int, config: Any) -> Batch:
        """Returns a padded batch, with targets (and sources of text) cut at `length` tokens, eos kept. `start` is the
        token that the decoder begins with, `config` the model's configuration."""

    def rows(
        self, model: Any, folder: Path, data: DataSet, split: str, length: int, option: str, packed: bool = True
    ) -> ExampleRows:
        """Returns a row for each example; they are never packed."""
        assert isinstance(data, Examples)
        limit = min(length, self.context(model))
        return ExampleRows(self, load(data, split), limit, start_of(data), model.config)

    # ---- structure ----

    @abstractmethod
    def stacks(self, model: Any) -> tuple[str, str]:
        """Returns the dotted names of the encoder's and of the decoder's list of blocks."""

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        return [
            (f"{stack}.{i}", block)
            for stack in self.stacks(model)
            for i, block in enumerate(model.get_submodule(stack).children())
        ]

    def prunable(self, model: nn.Module) -> dict[str, nn.Linear]:
        return linears_in(self.blocks(model), model)

    def left_alone(self, model: nn.Module) -> dict[str, str]:
        return {}

    def refused(self, model: nn.Module) -> dict[str, str]:
        return {}

    # ---- batches ----

    @abstractmethod
    def encoder_mask(self, batch: Batch) -> Tensor:
        """Returns a bool (B, encoder positions) mask of what is not padding."""

    def reads_encoder(self, linear: str) -> bool:
        return in_encoder(linear) or architectures.reads_encoder(linear)

    def input_token_mask(self, batch: Batch, linear: str) -> Tensor:
        """Returns the real tokens of the linear's input; keys and values of cross-attention read the encoder's
        states."""
        return self.encoder_mask(batch) if self.reads_encoder(linear) else batch["use"].bool()

    def feature_masks(self, model: nn.Module, batch: Batch) -> list[Tensor | None]:
        """Returns for encoder blocks their real positions, for decoder blocks those with a label, and nothing for the
        head's input: the papers compare the outputs of blocks, before the final norm."""
        names = [name for name, _ in self.blocks(model)]
        encoder_BS, decoder_BT = self.encoder_mask(batch), batch["use"].bool()
        return [encoder_BS if in_encoder(name) else decoder_BT for name in names] + [None]

    def logits_and_labels(self, logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
        return logits_BTV, labels_BT

    # ---- forward ----

    @abstractmethod
    def inputs(self, batch: Batch) -> dict[str, Tensor]: ...

    def hidden(self, model: Any, batch: Batch) -> Tensor:
        """Returns the head's input, including what the model does between its last norm and its head: T5 scales the
        input of a tied head."""
        return head_input(model, self.inputs(batch))

    def states(self, model: Any, batch: Batch) -> list[Tensor]:
        """Returns the raw outputs of all encoder blocks, then of all decoder blocks, and the head's input."""
        found, last_BTD = states_by_hooks(self.blocks(model), lambda: self.hidden(model, batch))
        return [*found, last_BTD]

    def head(self, model: Any) -> nn.Module:
        return output_head(model)

    # ---- texts ----

    @torch.inference_mode()
    def generate(self, model: Any, batch: Batch, decoding: Decoding) -> list[list[int]]:
        """Returns the ids generated for each row, without prompt, eos and padding. The checkpoint's generation settings
        apply, except those that `decoding` sets."""
        own = model.generation_config
        # if passed to `generate`, unset values would be taken from the model's own settings
        model.generation_config = self.settings(own, decoding)
        try:
            ids_BT = self._decode(model, batch, decoding)
        finally:
            model.generation_config = own
        return written(ids_BT, decoding.prompt, model.config.eos_token_id)

    def settings(self, own: Any, decoding: Decoding) -> Any:
        """Returns the checkpoint's `GenerationConfig`, changed according to `decoding`."""
        settings = copy.deepcopy(own)
        settings.decoder_start_token_id = decoding.prompt[0]
        settings.num_beams, settings.do_sample = decoding.beams, False
        settings.length_penalty = decoding.length_penalty
        settings.max_new_tokens, settings.max_length = decoding.max_new_tokens, None
        if decoding.min_new_tokens:
            settings.min_new_tokens = decoding.min_new_tokens
            # BART's settings end a text at its greatest length, whatever the model would write
            settings.forced_eos_token_id = None
        return settings

    @abstractmethod
    def _decode(self, model: Any, batch: Batch, decoding: Decoding) -> Tensor:
        """Returns `ids_BT`, beginning with the prompt, by the model's settings."""


@dataclass(frozen=True)
class ExampleRows:
    """Rows that are read from disk when they are taken."""

    family: EncoderDecoder
    examples: Any
    """A `datasets.Dataset`."""
    length: int
    """The longest source and the longest target, in tokens."""
    start: int
    """Token id that the decoder begins with."""
    config: Any
    """Configuration of the model."""

    @property
    def independent(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def sizes(self) -> Tensor:
        return torch.tensor(self.examples["size"][:])

    def take(self, chosen_B: Tensor) -> Batch:
        columns = self.examples[chosen_B.tolist()]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return self.family.collate(rows, self.length, self.start, self.config)


def load(data: Examples, split: str) -> Any:
    """Returns the `datasets.Dataset` of a split, memory-mapped."""
    from datasets import load_from_disk

    return load_from_disk(str(data.split(split)))


def start_of(data: Examples) -> int:
    return int(data.facts()["prompt"][0])


def in_encoder(name: str) -> bool:
    """Returns whether a module of this dotted name is a part of the encoder."""
    return "encoder" in name.split(".")


def padded(sequences: Sequence[Sequence[int]], value: int, limit: int = UNLIMITED) -> Tensor:
    """Returns `ids_BT`, padded on the right to a multiple of `PAD_MULTIPLE`, unless that exceeds `limit`."""
    longest = max(len(sequence) for sequence in sequences)
    length = max(longest, min(limit, -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE))
    return torch.tensor([[*sequence, *[value] * (length - len(sequence))] for sequence in sequences])


def cut(ids: Sequence[int], length: int) -> list[int]:
    """Returns at most `length` ids; the last one (eos) stays the last."""
    return list(ids) if len(ids) <= length else [*ids[: length - 1], ids[-1]]


def decoder_tensors(labels: Sequence[Sequence[int]], start: int, pad: int, limit: int = UNLIMITED) -> Batch:
    """Returns `decoder_input_ids`, `labels` and `use`: the decoder gets the start token and all labels but the last."""
    return {
        "decoder_input_ids": padded([[start, *ids[:-1]] for ids in labels], pad, limit),
        "labels": padded(labels, IGNORED, limit),
        "use": padded([[1] * len(ids) for ids in labels], 0, limit),
    }


def decoder_start(folder: Path) -> int | None:
    """Returns the token id that the decoder of a checkpoint begins with, from config.json, or generation_config.json,
    or transformers' default for the architecture; None if none of them has it."""
    from transformers import AutoConfig

    for file in ("config.json", "generation_config.json"):
        if (folder / file).exists():
            stated = json.loads((folder / file).read_text(encoding="utf-8")).get("decoder_start_token_id")
            if stated is not None:
                return int(stated)
    return getattr(AutoConfig.from_pretrained(folder, local_files_only=True), "decoder_start_token_id", None)


def own_rules(model: Any) -> dict[str, Any]:
    """Returns the generation settings of a checkpoint that change the texts of a search beyond what `Decoding` sets."""
    stated = {rule: getattr(model.generation_config, rule, None) for rule in OWN_RULES}
    return {rule: value for rule, value in stated.items() if value}


def prompt_ids(prompt: Sequence[int], rows: int, device: torch.device) -> Tensor:
    """Returns `ids_BT` with the prompt in each row."""
    return torch.tensor([list(prompt)] * rows, device=device)


def written(ids_BT: Tensor, prompt: Sequence[int], eos: int) -> list[list[int]]:
    """Returns the ids between the prompt and the first eos."""
    rows = [row[len(prompt) :] for row in ids_BT.tolist()]
    return [row[: row.index(eos)] if eos in row else row for row in rows]
