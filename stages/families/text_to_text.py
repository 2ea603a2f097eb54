"""Code shared by encoder-decoders that read and write text: pairs of texts as tokens, padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.generation import growing_cache
from stages import json_lines
from stages.contracts import Corpus, Log
from stages.families import Batch, context_of
from stages.families.encoder_decoder import (
    Decoding,
    EncoderDecoder,
    Example,
    cut,
    decoder_start,
    decoder_tensors,
    padded,
    prompt_ids,
)
from stages.families.translation_tokens import TranslationTokenizer, check_instruction, with_languages

TOKENIZED_AT_ONCE = 1000


class TextToText(EncoderDecoder):
    mapping = "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"

    @property
    def auto_class(self) -> Any:
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM

    # ---- data ----

    def prompt(self, corpus: Corpus, folder: Path) -> list[int]:
        """Returns `[start, (target language)]`; raises UserError if languages of the data and of the model do not
        fit."""
        return self._tokens(corpus, folder).prompt(self.start(folder))

    def complete(self, model: Any, folder: Path) -> Any:
        """Fills in the settings from which transformers' `generate` takes the decoder's start."""
        if model.generation_config.decoder_start_token_id is None:
            model.generation_config.decoder_start_token_id = self.start(folder)
        return model

    def start(self, folder: Path) -> int | None:
        """Returns the token that the decoder begins with, as the checkpoint states it."""
        return decoder_start(folder)

    def columns(self) -> Any:
        from datasets import Features, List, Value

        ids, text = List(Value("int32")), Value("string")
        return Features({"input_ids": ids, "labels": ids, "size": Value("int32"), "reference": text, "id": text})

    def examples(self, corpus: Corpus, split: str, folder: Path, log: Log) -> Iterator[Example]:
        from transformers import AutoConfig

        tokens, prompt = self._tokens(corpus, folder), self.prompt(corpus, folder)
        limit = context_of(AutoConfig.from_pretrained(folder, local_files_only=True))
        items = list(json_lines.read(corpus.split(split)))
        if items:
            check_instruction(tokens, items[0]["source"])
        too_long = 0
        with log.bar(f"tokenize {split}", total=len(items), unit="pair") as bar:
            for at in range(0, len(items), TOKENIZED_AT_ONCE):
                some = items[at : at + TOKENIZED_AT_ONCE]
                sources = tokens.sources([item["source"] for item in some])
                targets = tokens.targets([item["target"] for item in some])
                for item, source, target in zip(some, sources, targets, strict=True):
                    labels = [*prompt[1:], *target]
                    too_long += max(len(source), len(labels)) > limit
                    yield {
                        "input_ids": source, "labels": labels, "size": len(source) + len(labels),
                        "reference": item["target"], "id": item["id"],
                    }  # fmt: skip
                bar.advance(len(some))
        if too_long:
            log.note(f"{split}: {too_long} of {len(items)} pairs have more than {limit} tokens; cut at their end")

    def _tokens(self, corpus: Corpus, folder: Path) -> TranslationTokenizer:
        languages = corpus.facts().get("languages") or {"source": "", "target": ""}
        return with_languages(self.tokenizer(folder), languages["source"], languages["target"])

    def collate(self, examples: Sequence[Example], length: int, start: int, config: Any) -> Batch:
        limit = context_of(config)
        length = min(length, limit)
        sources = [cut(example["input_ids"], length) for example in examples]
        encoder = {
            "input_ids": padded(sources, config.pad_token_id, limit),
            "attention_mask": padded([[1] * len(ids) for ids in sources], 0, limit),
        }
        labels = [cut(example["labels"], length) for example in examples]
        return encoder | decoder_tensors(labels, start, config.pad_token_id, limit)

    # ---- batches ----

    def encoder_mask(self, batch: Batch) -> Tensor:
        return batch["attention_mask"].bool()

    def sizes(self, batch: Batch) -> Tensor:
        return batch["attention_mask"].sum(1) + batch["use"].sum(1)

    def trim(self, batch: Batch) -> Batch:
        source = int(batch["attention_mask"].sum(1).max())
        target = int(batch["use"].sum(1).max())
        of_source = ("input_ids", "attention_mask")
        return {name: tensor[:, : source if name in of_source else target] for name, tensor in batch.items()}

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}

    def example(self, model: Any) -> dict[str, Tensor]:
        ids_BT = torch.arange(1, 5)[None]
        return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "decoder_input_ids": ids_BT}

    # ---- texts ----

    def _decode(self, model: Any, batch: Batch, decoding: Decoding) -> Tensor:
        ids_BT: Tensor = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=prompt_ids(decoding.prompt, len(batch["input_ids"]), model.device),
            past_key_values=growing_cache(),
        )
        return ids_BT
