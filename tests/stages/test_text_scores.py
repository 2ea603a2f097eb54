"""What texts are worth: BLEU, chrF, WER, normalisers and tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import pytest
import sacrebleu

from stages.contracts import UserError
from stages.evaluate import normalizers, scoring, word_errors
from stages.evaluate.generation import Item
from stages.evaluate.spec import Generation
from stages.evaluate.translation_scores import TranslationScore
from stages.sources.packages import Package
from tests import tiny_packages
from tests.recording import RecordingLog
from tests.stage_options import generating

REFERENCES = ["the cat sat on the mat today", "a dog barks", "rivers run to the sea", "no words in common here"]
HYPOTHESES = ["the cat sat on a mat today", "a dog", "rivers run fast to the deep sea", ""]


# ---- BLEU and chrF ----


@pytest.mark.parametrize(("name", "reference"), [("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)])
def test_scores_of_summed_statistics_are_sacrebleus_of_those_sentences(
    name: str, reference: Callable[..., Any]
) -> None:
    metric = TranslationScore(name)
    stats_NK = metric.stats(REFERENCES, HYPOTHESES)
    for drawn in ([0, 1, 2, 3], [2, 2, 0, 3], [3, 3, 3, 3]):
        theirs = reference([HYPOTHESES[i] for i in drawn], [[REFERENCES[i] for i in drawn]])
        assert metric.score(stats_NK[drawn].sum(0)[None])[0] == pytest.approx(theirs.score, abs=1e-9)
    assert metric.signature.startswith("nrefs:1|case:mixed|")
    assert f"version:{sacrebleu.__version__}" in metric.signature


# ---- WER ----


def test_the_kinds_of_errors_are_counted_for_each_clip() -> None:
    found = word_errors.words(["a b c d", "one two", "x y"], ["a X c d e f", "", "y"])
    assert found.substitutions.tolist() == [1, 0, 0]
    assert found.deletions.tolist() == [0, 2, 1]
    assert found.insertions.tolist() == [2, 0, 0]
    assert found.hits.tolist() == [3, 0, 1]
    assert found.stats.tolist() == [[3, 4], [2, 2], [1, 2]]


def test_rates_are_jiwers() -> None:
    words, characters = word_errors.words(REFERENCES, HYPOTHESES), word_errors.characters(REFERENCES, HYPOTHESES)
    assert word_errors.rate(words.stats.sum(0)[None])[0] == pytest.approx(100 * jiwer.wer(REFERENCES, HYPOTHESES))
    assert word_errors.rate(characters.stats.sum(0)[None])[0] == pytest.approx(100 * jiwer.cer(REFERENCES, HYPOTHESES))


@pytest.fixture
def spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """The package of the spelling map, small, where pip finds it."""
    content = json.dumps({"colour": "color"}).encode()
    files = {normalizers.SPELLING_INSIDE: content, "whisper_normalizer/__init__.py": b"raise ImportError"}
    name, version = normalizers.SPELLING.name, normalizers.SPELLING.version
    path = tiny_packages.wheel(tmp_path / "index", name, version, files)
    package = Package(name, version, path.rpartition("=")[2])
    monkeypatch.setattr(normalizers, "SPELLING", package)
    monkeypatch.setenv("SQUAREHEAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return package


def test_normalisers_are_whispers_and_leave_no_word_without_letters(spelling: Package, tmp_path: Path) -> None:
    log = RecordingLog(tmp_path / "resume")
    english, basic, none = (normalizers.load(name, log) for name in ("english", "basic", "none"))
    text = " Mr. Smith's  colour... isn't twenty-one percent % [noise] ..."
    assert english.apply(text) == "mister smith is color is not 21%"
    assert basic.apply(text) == "mr smith s colour isn t twenty one percent"
    assert none.apply(text) == "Mr. Smith's colour... isn't twenty-one percent % [noise] ..."
    assert english.apply("...") == ""
    assert english.protocol["spelling_map"] == "whisper-normalizer==0.1.15"
    assert english.protocol["tokens_without_letter_or_digit"] == "dropped"
    assert none.protocol == {"normalizer": "none"}


def test_a_spelling_map_that_cannot_be_had_is_one_clear_line(
    spelling: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"whisper-normalizer==0\.1\.15") as caught:
        normalizers.load("english", RecordingLog(tmp_path / "resume"))
    assert caught.value.option == "evaluate.generation.normalizer"


def test_references_without_words_are_left_out_and_counted(tmp_path: Path) -> None:
    items = [Item("a", "[noise]", "x y", 0, False), Item("b", "the red river", "the river", 2, False)]
    log = RecordingLog(tmp_path)
    scored = scoring.transcripts(items, Generation(**generating(normalizer="basic")), log)
    assert scored.metrics["wer"]["value"] == pytest.approx(100 * jiwer.wer("the red river", "the river"))
    assert scored.metrics["cer"]["value"] == pytest.approx(100 * jiwer.cer("the red river", "the river"))
    assert scored.metrics["wer"]["protocol"]["left_out_without_words"] == 1
    assert [counts["words"] for counts in scored.counts] == [0, 3]
    assert "1 of 2 references" in log.notes[0]
    with pytest.raises(UserError, match="no reference has words left") as caught:
        scoring.transcripts(items[:1], Generation(**generating(normalizer="basic")), log)
    assert caught.value.option == "evaluate.generation.normalizer"


WORDS_WITH_MARKS = {
    "Hindi": ("प्राचीन संस्कृति", "प्रचीन संस्कृति"),
    "Tamil": ("தமிழ் மொழி", "தமிழ் மொழ"),
    "vowelled Arabic": ("كِتَاب جَدِيد", "كُتُب جَدِيد"),
    "Bengali": ("আমার বাড়ি", "আমার বাড়া"),
    "Hebrew with points": ("שָׁלוֹם עוֹלָם", "שָׁלֹם עוֹלָם"),
    "Turkish, whose small İ has a sign": ("i̇stanbul güzel", "i̇zmir güzel"),
}


@pytest.mark.parametrize("language", WORDS_WITH_MARKS)
def test_words_with_vowel_signs_are_whole_for_the_unicode_normaliser_and_refused_by_whispers(
    language: str, tmp_path: Path
) -> None:
    reference, hypothesis = WORDS_WITH_MARKS[language]
    items, log = [Item("a", f"{reference}!", hypothesis, 2, False)], RecordingLog(tmp_path)
    found = scoring.transcripts(items, Generation(**generating(normalizer="unicode")), log)
    assert found.metrics["wer"]["value"] == pytest.approx(100 * jiwer.wer(reference, hypothesis))
    with pytest.raises(UserError, match="cuts words at signs") as caught:
        scoring.transcripts(items, Generation(**generating(normalizer="basic")), log)
    assert caught.value.option == "evaluate.generation.normalizer"


@pytest.mark.parametrize(
    ("text", "spaces"), [("今天天气很好", False), ("วันนี้อากาศดี", False), ("오늘은 날씨가 좋습니다", True)]
)
def test_a_word_error_rate_of_a_script_without_spaces_has_a_word_beside_it(
    text: str, spaces: bool, tmp_path: Path
) -> None:
    log = RecordingLog(tmp_path)
    scoring.transcripts([Item("a", text, text, 2, False)], Generation(**generating(normalizer="unicode")), log)
    assert any("read cer" in note for note in log.notes) != spaces


@pytest.mark.parametrize(
    ("reference", "hypothesis", "tokenizer"),
    [
        ("我们今天去北京看长城。", "我们今天去上海看长城。", "zh"),
        ("今日は北京へ行きます。", "今日は上海へ行きます。", "char"),
        ("今日はｶﾀｶﾅを書きます。", "今日はｶﾅを書きます。", "char"),
        ("วันนี้เราไปกรุงเทพฯ", "วันนี้เราไปเชียงใหม่", "char"),
        ("Heute fahren wir nach Peking.", "Heute fahren wir nach Berlin.", "13a"),
        ("Сегодня мы едем в Пекин.", "Сегодня мы едем в Москву.", "13a"),
        ("오늘 우리는 베이징에 갑니다.", "오늘 우리는 서울에 갑니다.", "13a"),
    ],
)
def test_bleu_takes_the_tokenizer_that_the_script_needs(reference: str, hypothesis: str, tokenizer: str) -> None:
    items = [Item(str(i), reference, hypothesis, 1, False) for i in range(4)]
    found = scoring.translations(items, Generation(**generating())).metrics["bleu"]
    expected = sacrebleu.corpus_bleu([hypothesis] * 4, [[reference] * 4], tokenize=tokenizer).score
    assert found["value"] == pytest.approx(expected)
    assert f"tok:{tokenizer}" in found["protocol"]["signature"]


def test_a_tokenizer_whose_package_is_missing_is_refused_in_a_line() -> None:
    items = [Item("a", "今日は北京へ行きます。", "今日は上海へ行きます。", 1, False)]
    with pytest.raises(UserError, match="needs the packages") as caught:
        scoring.translations(items, Generation(**generating(tokenize="ja-mecab")))
    assert caught.value.option == "evaluate.generation.tokenize"
