"""IFEval's verifiable instructions, on texts that follow them and texts that do not."""

from __future__ import annotations

from typing import Any

import pytest

from stages.evaluate.instructions import CHECKS, follows, follows_loosely

CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "punctuation:no_comma": ({}, ["a b"], ["a, b"]),
    "length_constraints:number_words": ({"relation": "at least", "num_words": 3}, ["a b c"], ["a b"]),
    "length_constraints:number_sentences": ({"relation": "less than", "num_sentences": 3}, ["A. B!"], ["A. B! C?"]),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, ["a\n***\nb", "***\na\n***\nb"], ["a"]),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"}, ['a\n\n"So it is'], ["a\n\nit", "so"],
    ),
    "keywords:existence": ({"keywords": ["red", "blue"]}, ["Red and blue"], ["red"]),
    "keywords:frequency": ({"keyword": "red", "relation": "at least", "frequency": 2}, ["red Red"], ["red"]),
    "keywords:forbidden_words": ({"forbidden_words": ["red"]}, ["redder"], ["a Red b"]),
    "keywords:letter_frequency": (
        {"letter": "q", "let_relation": "less than", "let_frequency": 2}, ["Quick"], ["Q q"],
    ),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, ["*a* and *b*"], ["*a* **", "** **"]),
    "detectable_format:title": ({}, ["<<A title>>\nText"], ["<< >>", "title"]),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, ["* a\n- b"], ["* a", "* a\n* b\n* c"]),
    "detectable_format:json_format": ({}, ['```json\n{"a": 1}\n```', "[1]"], ["{a}"]),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2}, ["SECTION 1\na\nSECTION 2\nb"], ["SECTION 1"],
    ),
    "detectable_format:constrained_response": ({}, ["My answer is no."], ["No."]),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, ["[name] in [city]"], ["[name]"]),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, ["Bye\nP. S. more"], ["Bye"]),
    "startend:quotation": ({}, ['"a"'], ['"a', '"']),
    "startend:end_checker": ({"end_phrase": "The end."}, ['Well. the end."'], ["The end. Not"]),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it"}, ["say it\nit"], ["it. Say it"]),
    "combination:two_responses": ({}, ["a\n******\nb"], ["a", "a******a", "a******b******c"]),
    "change_case:english_capital": ({}, ["A B!"], ["A b"]),
    "change_case:english_lowercase": ({}, ["a b!"], ["A b"]),
    "change_case:capital_word_frequency": (
        {"capital_relation": "at least", "capital_frequency": 2}, ["NO and YES"], ["NO and Yes"],
    ),
}  # fmt: skip


def test_every_kind_has_a_case() -> None:
    assert set(CASES) == set(CHECKS)


@pytest.mark.parametrize("kind", CASES)
def test_a_text_follows_or_does_not(kind: str) -> None:
    arguments, good, bad = CASES[kind]
    arguments = arguments | {"unused": None}
    assert [text for text in good if not follows(kind, arguments, text)] == []
    assert [text for text in bad if follows(kind, arguments, text)] == []
    assert not follows(kind, arguments, " \n")


def test_a_loose_check_forgives_a_line_before_and_after() -> None:
    text = "Sure, here it is:\nno commas\nAnything else, friend?"
    assert not follows("punctuation:no_comma", {}, text)
    assert follows_loosely("punctuation:no_comma", {}, text)
    assert follows_loosely("startend:quotation", {}, '**"a"**')
