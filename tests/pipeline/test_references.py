"""Published figures are what was published: read as printed, with their sources, in the unit of our metrics."""

from __future__ import annotations

import pytest

from pipeline import references
from stages.contracts import UserError
from stages.model.families import FAMILIES


def figures(table: str, **asked: object) -> dict[float, float]:
    """{sparsity: value} of the rows that are as asked."""
    rows = [row for row in references.of_table(table) if all(getattr(row, k) == v for k, v in asked.items())]
    assert len({row.sparsity for row in rows}) == len(rows), "the rows differ in more than sparsity"
    return {row.sparsity: row.value for row in rows}


def test_every_figure_says_where_it_was_read() -> None:
    for row in references.load():
        assert row.source, row
        assert row.model, row
        assert row.dataset, row
        assert row.title, row
        assert row.family in FAMILIES.names(), row
        assert row.value > 0, row
        assert 0 <= row.sparsity < 1, row
        assert row.speedup is None or row.speedup_over, row


def test_no_figure_stands_there_twice() -> None:
    keys = [
        (row.table, row.metric, row.sparsity, row.method, row.loss, row.pattern, row.int8) for row in references.load()
    ]
    assert len(set(keys)) == len(keys)


def test_translation_and_speech_are_the_papers() -> None:
    assert figures("t5", loss="squarehead") == {0.75: 24.67}
    assert figures("t5", sparsity=0) == {0: 25.91}
    whisper = {row.sparsity: (row.value, row.speedup, row.higher_is_better) for row in references.of_table("whisper")}
    assert whisper == {0: (32.57, 1.0, False), 0.5: (30.87, 1.58, False)}


def test_gsm8k_of_mpt_is_the_papers_in_the_unit_of_our_metric() -> None:
    assert figures("mpt_gsm8k", sparsity=0, int8=False) == {0: 0.282}
    assert figures("mpt_gsm8k", method="sparsegpt", loss=None) == {0.5: 0.232, 0.6: 0.183, 0.7: 0.143, 0.8: 0.095}
    assert figures("mpt_gsm8k", loss="squarehead", int8=False) == {0.5: 0.306, 0.6: 0.288, 0.7: 0.28, 0.8: 0.231}
    quantized = {0: 0.278, 0.5: 0.3071, 0.6: 0.2835, 0.7: 0.2707, 0.75: 0.2661, 0.8: 0.211}
    assert figures("mpt_gsm8k", int8=True) == quantized
    speed = {(row.sparsity, row.int8): row.speedup for row in references.of_table("mpt_gsm8k") if row.speedup}
    fp32, int8 = [1.0, 1.78, 2.08, 2.62, 3.35], [4.0, 5.73, 6.72, 7.52, 9.08]
    levels = [0, 0.5, 0.6, 0.7, 0.8]
    assert speed == {(s, False): x for s, x in zip(levels, fp32, strict=True)} | {
        (s, True): x for s, x in zip(levels, int8, strict=True)
    }


def test_llama_is_the_papers() -> None:
    assert figures("llama2_gsm8k", loss=None) == {0: 0.3752, 0.5: 0.3313}
    assert figures("llama2_gsm8k", loss="squarehead") == {0.5: 0.3805}
    assert figures("llama2_speed", int8=True) == {0: 19, 0.5: 29, 0.6: 35, 0.7: 40, 0.8: 48}
    assert figures("llama2_mmlu") == {0: 0.469, 0.5: 0.413, 0.7: 0.365}
    assert figures("llama2_hellaswag") == {0: 0.786, 0.5: 0.765, 0.7: 0.741}
    assert figures("llama2_winogrande") == {0: 0.74, 0.5: 0.721, 0.7: 0.695}
    assert figures("llama2_gsm8k_5shot") == {0: 0.145, 0.5: 0.0917, 0.7: 0.0796}
    assert figures("llama2_pretraining_hellaswag", method="sparse pretraining") == {0.5: 0.773, 0.7: 0.746}
    assert figures("llama2_pretraining_arc", method="pruned") == {0.5: 0.496, 0.7: 0.403}


def test_anchors_of_pruners_are_the_published_ones() -> None:
    assert figures("wikitext2_opt_125m", method="sparsegpt", pattern="unstructured") == {0.5: 36.85, 0.6: 49.83}
    assert figures("wikitext2_opt_125m", pattern="2:4") == {0.5: 60.7}
    assert figures("wikitext2_opt_350m", method="magnitude") == {0.5: 97.8}
    assert figures("wikitext2_llama2_7b", method="wanda") == {0.5: 6.42}


def test_recovery_is_over_the_dense_row_whichever_way_is_better() -> None:
    mpt = {(row.sparsity, row.loss, row.int8): row for row in references.of_table("mpt_gsm8k")}
    assert mpt[0.7, "squarehead", False].recovery == pytest.approx(100 * 28.0 / 28.2)
    assert mpt[0.7, "squarehead", True].recovery == pytest.approx(100 * 27.07 / 28.2)
    whisper = references.of_table("whisper")[1]
    assert whisper.recovery == pytest.approx(100 * 32.57 / 30.87)
    assert all(row.recovery is None for row in references.of_table("llama2_summaries_rouge1"))


def test_an_unknown_table_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="no published table 't6'; there are: t5, whisper, mpt_gsm8k"):
        references.of_table("t6")
