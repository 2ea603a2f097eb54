"""Checks the verifiable instructions of IFEval (arXiv 2311.07911): whether a text follows one, from its kind and
arguments.

Words, sentences and words in capitals are counted by regular expressions, so that nothing has to be downloaded; the
paper's own code splits sentences by a trained model, and requires English for `english_capital` and
`english_lowercase`. `language:response_language` is not checked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

LANGUAGE = "language:response_language"
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}


def follows(kind: str, arguments: Mapping[str, Any], text: str) -> bool:
    """Returns whether the text follows the instruction; an empty text follows none. Raises KeyError for an unknown
    kind."""
    given = {name: value for name, value in arguments.items() if value is not None}
    return bool(text.strip()) and CHECKS[kind](text, given)


def follows_loosely(kind: str, arguments: Mapping[str, Any], text: str) -> bool:
    """Returns whether the text follows it also without asterisks, without the first line or without the last one."""
    lines = text.split("\n")
    cuts = ["\n".join(lines[begin:end]).strip() for begin, end in ((0, None), (1, None), (0, -1), (1, -1))]
    return any(follows(kind, arguments, form) for cut in [text, *cuts] for form in (cut, cut.replace("*", "")))


def _compared(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


def _words(text: str, given: Mapping[str, Any]) -> bool:
    return _compared(len(re.findall(r"\w+", text)), given["relation"], given["num_words"])


def _sentences(text: str, given: Mapping[str, Any]) -> bool:
    found = [part for part in re.split(r"(?<=[.!?])[\"')\]]*\s+|\n+", text.strip()) if re.search(r"\w", part)]
    return _compared(len(found), given["relation"], given["num_sentences"])


def _paragraphs(text: str, given: Mapping[str, Any]) -> bool:
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    inner = parts[bool(not parts[0]) : len(parts) - bool(len(parts) > 1 and not parts[-1])]
    return all(inner) and bool(len(inner) == given["num_paragraphs"])


def _first_word(text: str, given: Mapping[str, Any]) -> bool:
    parts = re.split(r"\n\n", text)
    count = sum(1 for part in parts if part.strip())
    nth = given["nth_paragraph"]
    if count != given["num_paragraphs"] or nth > len(parts) or not parts[nth - 1].strip():
        return False
    word = re.match(r"[\"']*([^\s.,?!\"']*)", parts[nth - 1].strip())
    return word is not None and word.group(1).lower() == str(given["first_word"]).lower()


def _keywords(text: str, given: Mapping[str, Any]) -> bool:
    return all(re.search(word, text, re.IGNORECASE) for word in given["keywords"])


def _frequency(text: str, given: Mapping[str, Any]) -> bool:
    return _compared(len(re.findall(given["keyword"], text, re.IGNORECASE)), given["relation"], given["frequency"])


def _forbidden(text: str, given: Mapping[str, Any]) -> bool:
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in given["forbidden_words"])


def _letters(text: str, given: Mapping[str, Any]) -> bool:
    count = text.lower().count(str(given["letter"]).lower())
    return _compared(count, given["let_relation"], given["let_frequency"])


def _highlights(text: str, given: Mapping[str, Any]) -> bool:
    single = [found for found in re.findall(r"\*[^\n\*]*\*", text) if found.strip("*").strip()]
    double = [found for found in re.findall(r"\*\*[^\n\*]*\*\*", text) if found.strip("*").strip()]
    return bool(len(single) + len(double) >= given["num_highlights"])


def _title(text: str, given: Mapping[str, Any]) -> bool:
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", text))


def _bullets(text: str, given: Mapping[str, Any]) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return bool(len(stars) + len(dashes) == given["num_bullets"])


def _json(text: str, given: Mapping[str, Any]) -> bool:
    bare = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True


def _sections(text: str, given: Mapping[str, Any]) -> bool:
    parts = re.split(rf"\s?{given['section_spliter']}\s?\d+\s?", text)
    return bool(len(parts) - 1 >= given["num_sections"])


def _constrained(text: str, given: Mapping[str, Any]) -> bool:
    return any(answer in text for answer in _ANSWERS)


def _placeholders(text: str, given: Mapping[str, Any]) -> bool:
    return bool(len(re.findall(r"\[.*?\]", text)) >= given["num_placeholders"])


def _postscript(text: str, given: Mapping[str, Any]) -> bool:
    marker = str(given["postscript_marker"]).strip()
    pattern = _POSTSCRIPTS.get(marker, re.escape(marker.lower()))
    return re.search(rf"\s*{pattern}.*$", text.lower(), re.MULTILINE) is not None


def _quotation(text: str, given: Mapping[str, Any]) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def _end(text: str, given: Mapping[str, Any]) -> bool:
    return text.strip().strip('"').lower().endswith(str(given["end_phrase"]).strip().lower())


def _repeated(text: str, given: Mapping[str, Any]) -> bool:
    return text.strip().lower().startswith(str(given["prompt_to_repeat"]).strip().lower())


def _two(text: str, given: Mapping[str, Any]) -> bool:
    parts = [part.strip() for part in text.split("******")]
    inner = [part for number, part in enumerate(parts) if part or number not in (0, len(parts) - 1)]
    return len(inner) == 2 and all(inner) and inner[0] != inner[1]


def _capital_words(text: str, given: Mapping[str, Any]) -> bool:
    count = sum(word.isupper() for word in re.findall(r"\b[\w'-]+\b", text))
    return _compared(count, given["capital_relation"], given["capital_frequency"])


CHECKS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "punctuation:no_comma": lambda text, given: "," not in text,
    "length_constraints:number_words": _words,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "keywords:existence": _keywords,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": _title,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:json_format": _json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:constrained_response": _constrained,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "startend:quotation": _quotation,
    "startend:end_checker": _end,
    "combination:repeat_prompt": _repeated,
    "combination:two_responses": _two,
    "change_case:english_capital": lambda text, given: text.isupper(),
    "change_case:english_lowercase": lambda text, given: text.islower(),
    "change_case:capital_word_frequency": _capital_words,
}
