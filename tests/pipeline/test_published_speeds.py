"""Published speed-ups stand beside ours: each over the dense model in its own runtime, with a verdict by our rounds."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from pipeline import references
from pipeline.references import Reference
from pipeline.reporting import page, speed_axes, speed_figures, speed_tables, speed_verdicts, study, writers
from pipeline.reporting.cells import Table
from pipeline.reporting.speed_verdicts import SpeedComparison, merged, verdict
from pipeline.reporting.study import Study
from tests.tiny_reports import Runs, fingerprint, forget_evaluations

ACCURACY = "squarehead_qa_exact_match_strict_match"


def collected(runs: Runs) -> Study:
    return study.collect([runs.place], None, Path("nowhere"))


def of_mpt(folder: Path) -> Runs:
    """A model that is not MPT-7B, compared with its table."""
    return Runs(folder / "runs", ACCURACY, True, 0.3, 0.05, "mpt_gsm8k", model="owner/tiny", data="owner/sums")


def told(found: Study) -> dict[tuple[float, str, str], SpeedComparison]:
    return {(at.reference.sparsity, at.precision, at.gain): at for at in found.speed_comparisons}


def texts(table: Table, *keys: str) -> list[tuple[str, ...]]:
    return [tuple(row[key].text if key in row else "" for key in keys) for row in table.rows]


# ---- the published figures ----


def test_the_share_of_zeros_is_over_the_dense_model_of_the_same_precision() -> None:
    mpt = {(at.sparsity, at.precision): at for at in references.of_speed("mpt_gsm8k")}
    assert mpt[0.5, "fp32"].zeros_speedup == 1.78
    assert mpt[0.5, "int8"].zeros_speedup == pytest.approx(5.73 / 4.0)
    assert mpt[0.0, "int8"].zeros_speedup is None, "a dense model has none"
    assert (0.75, "int8") not in mpt, "its speed is not published"


def test_rates_are_told_as_speedups_over_their_dense_row() -> None:
    llama = {at.sparsity: at.zeros_speedup for at in references.of_speed("llama2_speed")}
    assert llama == {0: None} | {
        s: pytest.approx(rate / 19) for s, rate in ((0.5, 29), (0.6, 35), (0.7, 40), (0.8, 48))
    }


def test_a_table_of_quality_may_have_its_speeds_in_another() -> None:
    assert references.of_speed("llama2_gsm8k") == references.of_speed("llama2_speed")
    assert references.of_speed("t5") == []


def test_every_published_speed_says_what_ran_on_what_and_over_what() -> None:
    timed = [row for row in references.load() if row.speedup]
    assert {row.table for row in timed} == {"whisper", "mpt_gsm8k", "llama2_speed"}
    for row in timed:
        assert row.speedup_over in ("fp32", "int8"), row
        assert row.ran == f"{row.model}, {row.runtime}, {row.hardware}", row
        assert row.runtime, row
        assert row.hardware, row
        assert not row.speed_table, row


# ---- ours beside them ----


def test_ours_is_over_the_dense_model_in_our_engine_and_the_whole_over_torch(tmp_path: Path) -> None:
    runs = of_mpt(tmp_path)
    runs.job(0.5, "squarehead", 0.3, int8=True)
    found = told(collected(runs))
    assert {key: (at.ours, at.published) for key, at in found.items()} == {
        (0.0, "int8", "int8"): (40 / 20, 4.0),
        (0.5, "fp32", "zeros"): (30 / 20, 1.78),
        (0.5, "int8", "int8 and zeros"): (60 / 20, 5.73),
        (0.5, "int8", "zeros"): (60 / 40, pytest.approx(5.73 / 4)),
    }
    assert {key: at.whole for key, at in found.items()} == {
        (0.0, "int8", "int8"): 4.0, (0.5, "fp32", "zeros"): 3.0,
        (0.5, "int8", "int8 and zeros"): 6.0, (0.5, "int8", "zeros"): 6.0,
    }  # fmt: skip
    zeros = found[0.5, "fp32", "zeros"]
    assert (zeros.slowest, zeros.fastest) == pytest.approx((0.9 * 1.5, 1.5 / 0.9)), "round by round"
    assert zeros.benchmarks == (fingerprint("benchmark", 0.5, "squarehead", 0),)
    verdicts = {key: at.verdict for key, at in found.items()}
    assert verdicts == {
        (0.0, "int8", "int8"): "behind",
        (0.5, "fp32", "zeros"): "behind",
        (0.5, "int8", "int8 and zeros"): "behind",
        (0.5, "int8", "zeros"): "about level",
    }


def test_a_faster_engine_is_ahead(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs", "wer", reference="whisper")
    runs.rates["engine_fp32", "sparse"] = 2 * runs.rates["engine_fp32", "dense"]
    runs.job(0.5, "squarehead", 20.0, int8=True)
    (at,) = collected(runs).speed_comparisons
    assert (at.gain, at.ours, at.published, at.verdict) == ("zeros", 2.0, 1.58, "ahead")


@pytest.mark.parametrize(
    ("slowest", "fastest", "said"),
    [
        (1.6, 1.7, "ahead"),
        (1.4, 1.5, "behind"),
        (1.4, 1.7, "about level"),
        (1.58, 1.7, "about level"),
        (1.4, 1.58, "about level"),
        (1.58, 1.58, "about level"),
    ],
)
def test_a_verdict_needs_all_of_our_rounds(slowest: float, fastest: float, said: str) -> None:
    assert verdict(1.58, slowest, fastest) == said


def test_other_levels_patterns_and_tables_without_speed_have_nothing_beside_them(tmp_path: Path) -> None:
    for number, (reference, sparsity, pattern) in enumerate(
        (("whisper", 0.67, "unstructured"), ("whisper", 0.5, "2:4"), ("t5", 0.75, "unstructured"),
         ("", 0.5, "unstructured"))
    ):  # fmt: skip
        runs = Runs(tmp_path / str(number), "wer", reference=reference, pattern=pattern)
        runs.job(sparsity, "squarehead", 20.0, int8=True)
        found = collected(runs)
        assert found.speeds
        assert found.speed_comparisons == []
        table = speed_tables.published(found)
        if reference == "whisper":  # what only the paper has
            assert texts(table, "zeros", "ours", "there", "verdict") == [("50 %", "", "1.58", "not measured here")]
        else:
            assert table.rows == []
            assert "Speed beside published" not in page.html(found)
            assert "published" not in writers.comma_separated(found)


def test_a_sweep_without_benchmarks_shows_no_speed(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs", "wer", reference="whisper")
    runs.job(0.5, "squarehead", 20.0)
    assert speed_tables.published(collected(runs)).rows == []


def test_models_that_differ_in_values_alone_stand_in_one_row(tmp_path: Path) -> None:
    runs = of_mpt(tmp_path)
    for loss, seed, rate in (("ce", 0, 30.0), ("squarehead", 0, 34.0), ("squarehead", 1, 50.0)):
        runs.rates["engine_fp32", "sparse"] = rate
        runs.job(0.5, loss, 0.3, seed=seed, int8=True)
    found = collected(runs)
    (zeros,) = [at for at in merged(found.speed_comparisons) if (at.gain, at.precision) == ("zeros", "fp32")]
    assert (zeros.ours, zeros.slowest, zeros.fastest) == pytest.approx((1.7, 0.9 * 1.5, 2.5 / 0.9))
    assert zeros.verdict == "about level", "of one seed it is behind, of another ahead"
    assert len(zeros.benchmarks) == 3
    (int8,) = [at for at in merged(found.speed_comparisons) if at.gain == "int8"]
    assert len(int8.benchmarks) == 3


def test_the_table_names_what_ran_there_and_tells_our_kinds_apart(tmp_path: Path) -> None:
    runs = of_mpt(tmp_path)
    runs.job(0.5, "squarehead", 0.3, int8=True)
    table = speed_tables.published(collected(runs))
    assert table.title == "Speed beside published figures: MPT-7B, DeepSparse, 8 cores with AVX-512 VNNI"
    ours = [row for row in texts(table, "zeros", "precision", "gain", "ours", "there", "whole", "verdict") if row[3]]
    assert ours == [
        ("none", "int8", "int8", "2.00 (2.00–2.00)", "4.00", "4.00", "behind"),
        ("50 %", "fp32", "zeros", "1.50 (1.35–1.67)", "1.78", "3.00", "behind"),
        ("50 %", "int8", "int8 and zeros", "3.00 (2.70–3.33)", "5.73", "6.00", "behind"),
        ("50 %", "int8", "zeros", "1.50 (1.35–1.67)", "1.43", "6.00", "about level"),
    ]
    assert len(table.rows) == len(ours) + 9, "of 60, 70 and 80 % the paper has three ratios each"
    assert any("figure in the makers' blog" in note for note in table.notes)


def test_no_file_says_that_a_speed_was_reproduced(tmp_path: Path) -> None:
    runs = of_mpt(tmp_path)
    runs.job(0.5, "squarehead", 0.3, int8=True)
    found = collected(runs)
    for written in (page.html(found), writers.markdown(found), writers.latex(found), writers.as_json(found)):
        assert "Whisper" not in written
        assert re.search(r"MPT-7B, DeepSparse, 8 cores with AVX-512 VNNI", written)
        assert "about level" in written
        assert not re.search(r"reproduced|confirms", written)


# ---- the files ----


def test_csv_and_json_hold_both_ratios_unrounded(tmp_path: Path) -> None:
    runs = of_mpt(tmp_path)
    runs.job(0.5, "squarehead", 0.3, int8=True)
    found = collected(runs)
    rows = {row["kind"]: row for row in csv.DictReader(io.StringIO(writers.comma_separated(found)))}
    quantized = rows["evaluate_q"]
    assert float(quantized["speedup_by_zeros"]) == 1.5
    assert float(quantized["speedup_by_zeros_published"]) == 5.73 / 4
    assert float(quantized["speedup_by_int8_and_zeros_published"]) == 5.73
    assert quantized["speedup_by_zeros_verdict"] == "about level"
    assert quantized["published_speed_of"].startswith("MPT-7B")
    assert float(rows["evaluate"]["speedup_by_zeros_published"]) == 1.78
    assert float(rows["dense_eval_q"]["speedup_by_int8_published"]) == 4.0
    assert rows["dense_eval"]["published_speed_of"] == rows["one_shot_eval"]["published_speed_of"] == ""
    written = json.loads(writers.as_json(found))["published_speeds"]
    assert len(written) == 4
    assert {at["benchmarks"][0] for at in written} == {fingerprint("benchmark", 0.5, "squarehead", 0)}
    assert sorted(at["published"] for at in written) == [5.73 / 4, 1.78, 4.0, 5.73]


def test_without_evaluations_the_csv_has_a_row_for_each_model_of_each_backend(tmp_path: Path) -> None:
    runs = of_mpt(tmp_path)
    place = runs.job(0.5, "squarehead", 0.3, int8=True)
    forget_evaluations(place)
    found = collected(runs)
    assert found.models == []
    rows = {(row["backend"], row["model"]): row for row in csv.DictReader(io.StringIO(writers.comma_separated(found)))}
    assert float(rows["engine_fp32", "sparse"]["decode_tokens_per_second"]) == 30.0
    assert float(rows["engine_fp32", "sparse"]["speedup_by_zeros_published"]) == 1.78
    assert rows["onnx_fp32", "sparse"]["decode_tokens_per_second"] == ""


# ---- the plot ----


def test_the_plot_has_the_papers_points_and_ours_over_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = of_mpt(tmp_path)
    runs.job(0.5, "squarehead", 0.33, int8=True)
    seen: list[tuple[list[str], list[tuple[float, float]]]] = []
    write = speed_axes.write_names

    def spy(axes, points, names, colors, around) -> None:  # type: ignore[no-untyped-def]
        seen.append((list(names), [(point.speedup, point.quality) for point in around]))
        write(axes, points, names, colors, around)

    monkeypatch.setattr(speed_axes, "write_names", spy)
    drawn = speed_figures.beside_published(collected(runs))
    assert drawn
    assert "published, fp32: MPT-7B, DeepSparse, 8 cores with AVX-512 VNNI" in drawn
    assert "published, int8: MPT-7B, DeepSparse" in drawn
    ((names, places),) = seen
    for ours in ((1.0, 100.0), (1.5, 110.0), (3.0, 100 * 1.01 * 0.33 / 0.3)):
        assert any(place == pytest.approx(ours) for place in places), ours
    for theirs in ((1.0, 100.0), (1.78, 100 * 30.6 / 28.2), (9.08, 100 * 21.1 / 28.2)):
        assert any(place == pytest.approx(theirs) for place in places), theirs
    assert names.count("80 %") == 2, "fp32 and int8"


@pytest.mark.parametrize("reference", ["", "t5", "llama2_gsm8k"])
def test_without_quality_and_speed_of_one_published_model_there_is_no_such_plot(tmp_path: Path, reference: str) -> None:
    runs = Runs(tmp_path / "runs", ACCURACY, True, 0.3, 0.05, reference)
    runs.job(0.5, "squarehead", 0.33, int8=True)
    found = collected(runs)
    assert speed_figures.beside_published(found) is None
    assert speed_figures.pareto(found)


def test_a_published_level_stands_once_whatever_losses_it_has() -> None:
    same = {"table": "t", "title": "t", "source": "s", "family": "t5", "model": "m", "dataset": "d", "metric": "bleu",
            "value": 1.0, "sparsity": 0.5, "speedup": 2.0}  # fmt: skip
    rows = [Reference(**same, loss=loss) for loss in ("kd", "ce")]  # type: ignore[arg-type]
    rows.append(Reference(**(same | {"pattern": "2:4"})))  # type: ignore[arg-type]
    assert [(at.loss, at.pattern) for at in speed_verdicts.by_level(rows)] == [("kd", "unstructured"), (None, "2:4")]
