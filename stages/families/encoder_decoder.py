"""What encoder-decoders have in common: blocks of two stacks, teacher-forced decoding, states by hooks, generation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.contracts import Corpus, DataSet, Examples, Log
from stages.families import Batch, linears_in, states_by_hooks
from stages.families.hugging_face import HuggingFaceFolder
from stages.tokens import IGNORED

LENGTHS = 8
"""Batches are padded to multiples of it: with fewer shapes, torch makes fewer kernels (a fifth of a step)."""

Example = dict[str, Any]
"""One row of `Examples`: `labels` (token ids, the prompt's but the first, then the text's and eos), `size` (what it
costs, to bring like rows together), `reference` (the text), `id`, and what the encoder reads."""


@dataclass(frozen=True)
class Decoding:
    """How to write a text."""

    prompt: list[int]
    """Token ids that the decoder begins with."""
    beams: int
    length_penalty: float
    max_new_tokens: int


class EncoderDecoder(HuggingFaceFolder, ABC):
    encoder_blocks: str
    """Dotted name of the encoder's list of blocks."""
    decoder_blocks: str
    cross_attention: tuple[str, ...]
    """Ends of the names of linears in the decoder that read the encoder's states."""

    # ---- data ----

    @abstractmethod
    def prompt(self, corpus: Corpus, folder: Path) -> list[int]:
        """What the decoder begins with, its start token first."""

    @abstractmethod
    def columns(self) -> Any:
        """`datasets.Features` of the examples."""

    @abstractmethod
    def examples(self, corpus: Corpus, split: str, folder: Path, log: Log) -> Iterator[Example]:
        """The split's items as the model's tokenizer and feature extractor see them. Raises UserError for bad ones."""

    @abstractmethod
    def collate(self, examples: Sequence[Example], length: int, config: Any) -> Batch:
        """A padded batch, targets (and sources of text) cut at `length` tokens, eos kept. `config`: the model's."""

    def rows(
        self, model: Any, folder: Path, data: DataSet, split: str, length: int, option: str, packed: bool = True
    ) -> ExampleRows:
        """Each example is a row; they are never packed."""
        assert isinstance(data, Examples)
        return ExampleRows(self, load(data, split), length, model.config)

    # ---- structure ----

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        return [
            (f"{stack}.{i}", block)
            for stack in (self.encoder_blocks, self.decoder_blocks)
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
        """bool (B, encoder positions): what is no padding."""

    def reads_encoder(self, linear: str) -> bool:
        return linear.startswith(f"{self.encoder_blocks}.") or linear.endswith(self.cross_attention)

    def read_by(self, batch: Batch, linear: str) -> Tensor:
        """Keys and values of cross-attention see the encoder's states."""
        return self.encoder_mask(batch) if self.reads_encoder(linear) else batch["use"].bool()

    def compared(self, model: nn.Module, batch: Batch) -> list[Tensor | None]:
        """Encoder blocks: its real positions. Decoder blocks: those with a label. Not the head's input: the papers
        compare what the blocks put out, before the final norm."""
        names = [name for name, _ in self.blocks(model)]
        encoder_BS, decoder_BT = self.encoder_mask(batch), batch["use"].bool()
        return [encoder_BS if name.startswith(f"{self.encoder_blocks}.") else decoder_BT for name in names] + [None]

    def logits_and_labels(self, logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
        return logits_BTV, labels_BT

    # ---- forward ----

    @abstractmethod
    def hidden(self, model: Any, batch: Batch) -> Tensor: ...

    def states(self, model: Any, batch: Batch) -> list[Tensor]:
        """Raw outputs of all encoder blocks, then of all decoder blocks; and what the head reads."""
        found, last_BTD = states_by_hooks(self.blocks(model), lambda: self.hidden(model, batch))
        return [*found, last_BTD]

    def head(self, model: Any) -> nn.Module:
        head: nn.Module = model.get_output_embeddings()
        return head

    @abstractmethod
    def generate(self, model: Any, batch: Batch, decoding: Decoding) -> list[list[int]]:
        """The ids written for each row, without prompt, eos and padding."""


@dataclass(frozen=True)
class ExampleRows:
    """Rows that lie on disk until they are taken."""

    family: EncoderDecoder
    examples: Any
    """A `datasets.Dataset`."""
    length: int
    config: Any
    """The model's."""

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
        return self.family.collate(rows, self.length, self.config)


def load(data: Examples, split: str) -> Any:
    """The `datasets.Dataset` of a split, memory-mapped."""
    from datasets import load_from_disk

    return load_from_disk(str(data.split(split)))


def padded(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    """`ids_BT`, padded on the right to a multiple of `LENGTHS`."""
    longest = max(len(sequence) for sequence in sequences)
    length = -(-longest // LENGTHS) * LENGTHS
    return torch.tensor([[*sequence, *[value] * (length - len(sequence))] for sequence in sequences])


def cut(ids: Sequence[int], length: int) -> list[int]:
    """At most `length` ids; the last one (eos) stays the last."""
    return list(ids) if len(ids) <= length else [*ids[: length - 1], ids[-1]]


def decoder_tensors(labels: Sequence[Sequence[int]], start: int, pad: int) -> Batch:
    """`decoder_input_ids`, `labels` and `use`: the decoder is given the start token and all labels but the last."""
    return {
        "decoder_input_ids": padded([[start, *ids[:-1]] for ids in labels], pad),
        "labels": padded(labels, IGNORED),
        "use": padded([[1] * len(ids) for ids in labels], 0),
    }


def written(ids_BT: Tensor, prompt: Sequence[int], eos: int) -> list[list[int]]:
    """What stands between the prompt and the first eos."""
    rows = [row[len(prompt) :] for row in ids_BT.tolist()]
    return [row[: row.index(eos)] if eos in row else row for row in rows]
