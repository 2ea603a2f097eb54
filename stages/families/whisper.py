"""Whisper (arXiv 2212.04356): multilingual and English-only, with and without timestamps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.generation import growing_cache
from stages import json_lines
from stages.contracts import Corpus, DataSet, Examples, Log, UserError
from stages.families import Batch, speech_features, whisper_tokens
from stages.families.encoder_decoder import (
    Decoding,
    EncoderDecoder,
    Example,
    ExampleRows,
    cut,
    decoder_tensors,
    load,
    prompt_ids,
    start_of,
)
from stages.families.whisper_windows import any_window

_CUT = ("test",)
"""Splits whose clips of more than a window are cut into pieces; nothing is learned there, so it does not matter which
words fall into which piece."""
FRAMES_PER_POSITION = 2


class Whisper(EncoderDecoder):
    name = "whisper"
    mapping = "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES"

    @property
    def auto_class(self) -> Any:
        from transformers import AutoModelForSpeechSeq2Seq

        return AutoModelForSpeechSeq2Seq

    def load(self, folder: Path, dtype: torch.dtype | None = None) -> Any:
        return any_window(super().load(folder, dtype))

    def build(self, folder: Path) -> Any:
        return any_window(super().build(folder))

    def complete(self, model: Any, folder: Path) -> Any:
        whisper_tokens.complete(model.generation_config, folder, lambda: self.tokenizer(folder))
        return model

    def stacks(self, model: Any) -> tuple[str, str]:
        return "model.encoder.layers", "model.decoder.layers"

    # ---- data ----

    def prompt(self, corpus: Corpus, folder: Path) -> list[int]:
        """Returns `[start, (language, task,) (no timestamps)]`; raises UserError for a language or task the model
        lacks."""
        return whisper_tokens.prompt(self.tokenizer(folder), _speech(corpus), whisper_tokens.is_multilingual(folder))

    def columns(self) -> Any:
        from datasets import Features, List, Value

        text, count = Value("string"), Value("int32")
        return Features(
            {
                "input_features": List(Value("float32")),
                "frames": count,
                "labels": List(count),
                "size": count,
                "reference": text,
                "id": text,
                "piece": count,
                "seconds": Value("float32"),
            }
        )

    def examples(self, corpus: Corpus, split: str, folder: Path, log: Log) -> Iterator[Example]:
        """Yields the examples. Clips of more than a window are left out, or, in splits that are not trained on, cut
        into pieces with the same `id`, counted by `piece`, of which the first has the `reference`."""
        from transformers import AutoConfig, AutoFeatureExtractor

        extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        tokenizer, prompt = self.tokenizer(folder), self.prompt(corpus, folder)
        context = AutoConfig.from_pretrained(folder, local_files_only=True).max_target_positions
        timestamps = bool(_speech(corpus)["timestamps"])
        items = list(json_lines.read(corpus.split(split)))
        long = over = 0
        with log.bar(f"features of {split}", total=len(items), unit="clip") as bar:
            for item in items:
                audio_N, rate = _read(corpus.path / item["audio"], extractor.sampling_rate)
                parts = speech_features.pieces(audio_N, extractor.n_samples, rate)
                long += len(parts) > 1
                if len(parts) == 1:
                    labels = whisper_tokens.labels(tokenizer, prompt, item["text"], len(audio_N) / rate, timestamps)
                    over += len(labels) > context
                else:
                    labels = [*prompt[1:], tokenizer.eos_token_id]
                for piece, part_N in enumerate(parts if len(parts) == 1 or split in _CUT else []):
                    mel_MF = speech_features.log_mel(extractor, part_N)
                    yield {
                        "input_features": mel_MF.ravel(), "frames": mel_MF.shape[1], "labels": labels,
                        "size": mel_MF.shape[1] + len(labels), "reference": "" if piece else item["text"],
                        "id": item["id"], "piece": piece, "seconds": len(part_N) / rate,
                    }  # fmt: skip
                bar.advance()
        if long:
            done = "cut into pieces" if split in _CUT else "left out"
            log.note(f"{split}: {long} of {len(items)} clips are longer than {extractor.chunk_length} s; {done}")
        if over:
            log.note(f"{split}: {over} of {len(items)} transcripts have more than {context} tokens; cut at their end")

    def collate(self, examples: Sequence[Example], length: int, start: int, config: Any) -> Batch:
        """Returns a batch of windows as long as the longest clip needs. `frames_B` of a row are real, the rest is more
        silence."""
        mels = [
            torch.tensor(example["input_features"]).reshape(config.num_mel_bins, example["frames"])
            for example in examples
        ]
        labels = [cut(example["labels"], min(length, config.max_target_positions)) for example in examples]
        return {
            "input_features": speech_features.stacked(mels),
            "frames": torch.tensor([example["frames"] for example in examples]),
        } | decoder_tensors(labels, start, config.pad_token_id, config.max_target_positions)

    def rows(
        self, model: Any, folder: Path, data: DataSet, split: str, length: int, option: str, packed: bool = True
    ) -> SpeechRows:
        assert isinstance(data, Examples)
        # a clip has some 50,000 features: as one array, not as so many numbers
        examples = load(data, split).with_format("numpy", columns=["input_features"], output_all_columns=True)
        window = data.facts()["speech"]["window"]
        return SpeechRows(self, examples, length, start_of(data), model.config, window)

    # ---- batches ----

    def encoder_mask(self, batch: Batch) -> Tensor:
        """Returns the clip with its own silence, which the model hears; silence that only a longer neighbour causes is
        padding."""
        positions_S = torch.arange(
            batch["input_features"].shape[2] // FRAMES_PER_POSITION, device=batch["frames"].device
        )
        return positions_S < (batch["frames"] // FRAMES_PER_POSITION)[:, None]

    def sizes(self, batch: Batch) -> Tensor:
        return batch["frames"] + batch["use"].sum(1)

    def trim(self, batch: Batch) -> Batch:
        frames, length = int(batch["frames"].max()), int(batch["use"].sum(1).max())
        encoder = {"input_features": batch["input_features"][:, :, :frames], "frames": batch["frames"]}
        return encoder | {name: batch[name][:, :length] for name in ("decoder_input_ids", "labels", "use")}

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {name: batch[name] for name in ("input_features", "decoder_input_ids")}

    def example(self, model: Any) -> dict[str, Tensor]:
        features_BMF = torch.zeros(1, model.config.num_mel_bins, 4 * FRAMES_PER_POSITION)
        return {"input_features": features_BMF, "decoder_input_ids": torch.arange(1, 5)[None]}

    # ---- texts ----

    def _decode(self, model: Any, batch: Batch, decoding: Decoding) -> Tensor:
        """Decodes as `WhisperForConditionalGeneration.generate` does on one window: the generation config's tokens are
        suppressed, and if the prompt leaves timestamps open, they follow their rules."""
        from transformers import GenerationMixin, LogitsProcessorList, WhisperTimeStampLogitsProcessor

        settings, rules = model.generation_config, LogitsProcessorList()
        if settings.no_timestamps_token_id not in decoding.prompt:
            rules.append(WhisperTimeStampLogitsProcessor(settings, begin_index=len(decoding.prompt)))
        features_BMF = batch["input_features"]
        # the model's own generate handles audio of any length, and needs whole windows
        ids_BT: Tensor = GenerationMixin.generate(
            model,
            input_features=features_BMF,
            # Whisper sees everything; without this, the mask would be guessed from the padding
            attention_mask=torch.ones_like(features_BMF[:, 0], dtype=torch.long),
            decoder_input_ids=prompt_ids(decoding.prompt, len(features_BMF), features_BMF.device),
            past_key_values=growing_cache(),
            logits_processor=rules,
        )
        return ids_BT


@dataclass(frozen=True)
class SpeechRows(ExampleRows):
    window: str
    """Input of the encoder: `clip` or `full`."""

    @property
    def independent(self) -> bool:
        """Returns False for clips: the encoder hears the silence that a longer neighbour brings."""
        return self.window == "full"

    def full_window(self) -> SpeechRows:
        """Returns the same clips in whole windows, as Whisper was trained."""
        return replace(self, window="full")

    def take(self, chosen_B: Tensor) -> Batch:
        batch = super().take(chosen_B)
        if self.window == "clip":
            return batch
        frames = FRAMES_PER_POSITION * self.config.max_source_positions
        whole_BMF = speech_features.lengthened(batch["input_features"], frames)
        return batch | {"input_features": whole_BMF, "frames": torch.full_like(batch["frames"], frames)}


def _speech(corpus: Corpus) -> dict[str, Any]:
    found: dict[str, Any] | None = corpus.facts().get("speech")
    if not found:
        raise UserError(f"Whisper needs speech, got data of format {corpus.format}", "data.format")
    return found


def _read(path: Path, rate: int) -> tuple[np.ndarray, int]:
    """Returns `audio_N` float32. The data stage made it mono, at the rate that all Whispers use."""
    import soundfile

    audio_N, found = soundfile.read(path, dtype="float32")
    if found != rate:
        raise UserError(f"{path.name} has {found} samples a second; the model's extractor expects {rate}", "model.path")
    return audio_N, rate
