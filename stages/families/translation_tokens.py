"""How the tokenizers of translation models mark the languages of a pair, and what their decoders begin with.

mBART, M2M100 and NLLB have a token for each language, before or after a text, which also comes first in the decoder;
multilingual Marian models read the target language before the source, as `>>fra<<`. T5, BART, Pegasus and Marian models
of one pair have no such tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.contracts import UserError

SOURCE, TARGET = "data.languages.source", "data.languages.target"
"""Options of the two languages."""
INSTRUCTION = "translate "
"""Prefix of T5's sources, which states the task in words."""
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TranslationTokenizer:
    """A model's tokenizer with the languages of the data."""

    tokenizer: Any
    prefix: str
    """Text that Marian reads before each source; empty: none."""
    target: int | None
    """Id of the decoder's token for the target language; None: there is none."""
    languages: frozenset[int]
    """Ids of all such tokens."""

    def sources(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the sources as the model reads them, with the token of the source language if the tokenizer adds
        one."""
        found: list[list[int]] = self.tokenizer([f"{self.prefix}{text}" for text in texts])["input_ids"]
        return found

    def targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns what the decoder writes: each text, ended by eos, without the token of its language."""
        has_mark = self.target is not None
        ids = self.tokenizer(text_target=list(texts), add_special_tokens=not has_mark)["input_ids"]
        eos = self.tokenizer.eos_token_id
        return [row if row and row[-1] == eos else [*row, eos] for row in ids]

    def prompt(self, start: int | None) -> list[int]:
        """Returns `[start, (language)]`, or `[language]` for models that begin with the language itself, such as
        mBART-cc25. `start` comes from the checkpoint. Raises UserError if it has none."""
        if self.target is not None:
            return [self.target] if start is None or start in self.languages else [start, self.target]
        if start is None:
            raise UserError(
                "neither config.json nor generation_config.json has a decoder_start_token_id, the token that the "
                "decoder begins with",
                "model.path",
            )
        return [start]


def with_languages(tokenizer: Any, source: str, target: str) -> TranslationTokenizer:
    """Returns the tokenizer with `source` and `target` by its own names (en_XX, eng_Latn, fra); empty if it has none.

    Raises UserError for languages that the tokenizer needs and does not get, or does not know.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("its tokenizer has no end of sequence (eos), with which texts end", "model.path")
    if codes := getattr(tokenizer, "supported_language_codes", None):
        names = {code.strip("<>"): code for code in codes}
        if source:
            raise UserError(f"this tokenizer marks the target language alone; leave it empty, got {source!r}", SOURCE)
        return TranslationTokenizer(tokenizer, f"{names[_known(target, names, TARGET)]} ", None, frozenset())
    ids = _language_ids(tokenizer) if hasattr(tokenizer, "src_lang") else {}
    if not ids:
        for language, option in ((source, SOURCE), (target, TARGET)):
            if language:
                raise UserError(f"the model's tokenizer marks no languages; leave it empty, got {language!r}", option)
        return TranslationTokenizer(tokenizer, "", None, frozenset())
    tokenizer.src_lang = _known(source, ids, SOURCE)
    tokenizer.tgt_lang = _known(target, ids, TARGET)
    return TranslationTokenizer(tokenizer, "", ids[target], frozenset(ids.values()))


def check_instruction(tokens: TranslationTokenizer, source: str) -> None:
    """Raises UserError if sources state the task in words to a model that can only translate: a Marian, or one with
    language tokens."""
    only_translates = tokens.target is not None or hasattr(tokens.tokenizer, "supported_language_codes")
    if only_translates and source.startswith(INSTRUCTION):
        raise UserError(
            f"sources begin with {source[: len(INSTRUCTION) + 20]!r}, as T5 needs it; this model would translate that; "
            "expected '{source}'",
            "data.prompt",
        )


def _language_ids(tokenizer: Any) -> dict[str, int]:
    """Returns the id of each language that the vocabulary has a token for, by name."""
    if codes := getattr(tokenizer, "lang_code_to_id", None):
        found = {code.strip("_") if code.startswith("__") else code: int(i) for code, i in codes.items()}
        return {code: i for code, i in found.items() if i != tokenizer.unk_token_id}
    named = {getattr(tokenizer, name, None) for name in _NAMED}
    names = [token for token in tokenizer.all_special_tokens if token not in named]
    return {name: int(tokenizer.convert_tokens_to_ids(name)) for name in names}


def _known(language: str, names: Any, option: str) -> str:
    some = ", ".join(sorted(names)[:5])
    if not language:
        raise UserError(f"the model's tokenizer marks languages; expected one of its {len(names)}, as {some}", option)
    if language not in names:
        raise UserError(f"the model's tokenizer has no language {language!r}; expected one as {some}", option)
    return language
