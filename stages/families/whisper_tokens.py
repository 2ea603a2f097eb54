"""Whisper's special tokens: those that the decoder begins with, and those that it learns to write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.contracts import UserError

MULTILINGUAL_VOCABULARY = 51865
"""Number of embeddings from which on a Whisper is multilingual, by OpenAI's rule; `.en` models have one less."""
SECONDS_PER_TIMESTAMP = 0.02
WINDOW_SECONDS = 30
TIMESTAMPS = [f"<|{i * SECONDS_PER_TIMESTAMP:.2f}|>" for i in range(round(WINDOW_SECONDS / SECONDS_PER_TIMESTAMP) + 1)]
NO_TIMESTAMPS = "<|notimestamps|>"
START = "<|startoftranscript|>"
LANGUAGE, TASK = "data.speech.language", "data.speech.task"
"""Options of the two settings."""


def is_multilingual(folder: Path) -> bool:
    """Returns what the generation settings of a checkpoint state; old settings lack it, then the vocabulary decides."""
    from transformers import AutoConfig

    settings = folder / "generation_config.json"
    stated = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    if "is_multilingual" in stated:
        return bool(stated["is_multilingual"])
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return bool(stated.get("lang_to_id")) or config.vocab_size >= MULTILINGUAL_VOCABULARY


def complete(settings: Any, folder: Path, tokenizer: Callable[[], Any]) -> None:
    """Fills in generation settings that fine-tunes of 2022 leave to the tokenizer."""
    if getattr(settings, "no_timestamps_token_id", None) is None:
        settings.no_timestamps_token_id = token_id(tokenizer(), NO_TIMESTAMPS)
    if getattr(settings, "is_multilingual", None) is None:
        settings.is_multilingual = is_multilingual(folder)


def prompt(tokenizer: Any, speech: dict[str, Any], multilingual: bool) -> list[int]:
    """Returns `[start, (language, task,) (no timestamps)]`. `speech` holds language, task and timestamps of the data.

    Raises UserError for a language or task that the model does not know.
    """
    tokens = [START]
    language, task = speech["language"], speech["task"]
    if multilingual:
        if not _knows(tokenizer, f"<|{language}|>"):
            raise UserError(f"the model has no language {language!r}; expected a code such as en or hi", LANGUAGE)
        tokens += [f"<|{language}|>", f"<|{task}|>"]
    elif language != "en":
        raise UserError(f"the model is English-only, got the language {language!r}", LANGUAGE)
    elif task != "transcribe":
        raise UserError(f"the model is English-only and can only transcribe, got {task!r}", TASK)
    if not speech["timestamps"]:
        tokens.append(NO_TIMESTAMPS)
    return [token_id(tokenizer, token) for token in tokens]


def labels(tokenizer: Any, prompt_ids: list[int], text: str, seconds: float, timestamps: bool) -> list[int]:
    """Returns the prompt without its first token, the text with the leading space of Whisper's own transcripts, and the
    end. With timestamps, the text is between 0 and the clip's end."""
    ids = tokenizer(f" {text.strip()}", add_special_tokens=False)["input_ids"]
    if timestamps:
        last = min(round(seconds / SECONDS_PER_TIMESTAMP), len(TIMESTAMPS) - 1)
        ids = [token_id(tokenizer, TIMESTAMPS[0]), *ids, token_id(tokenizer, TIMESTAMPS[last])]
    return [*prompt_ids[1:], *ids, tokenizer.eos_token_id]


def token_id(tokenizer: Any, token: str) -> int:
    """Returns the id of a token. Raises UserError if the tokenizer lacks one that every Whisper has."""
    if not _knows(tokenizer, token):
        raise UserError(f"the tokenizer has no token {token}; expected Whisper's own", "model.path")
    return int(tokenizer.convert_tokens_to_ids(token))


def _knows(tokenizer: Any, token: str) -> bool:
    """Returns whether the tokenizer has the token; it maps unknown ones to the end of the text."""
    return bool(tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids(token)) == token)
