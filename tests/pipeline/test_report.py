"""The report says what the store holds: models, seeds, speed, sharing, published figures, and what is missing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from pipeline import report
from pipeline.references import Reference, of_table
from pipeline.reporting import quality_figures, study, verdicts
from pipeline.reporting.analysis import Row
from pipeline.reporting.findings import findings
from pipeline.reporting.problems import state
from pipeline.reporting.study import Study
from pipeline.store.store import SHORT
from tests.tiny_reports import Runs, fingerprint

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


@pytest.fixture
def sweep(runs: Runs) -> Runs:
    """2 sparsities × 2 losses, all done."""
    for sparsity, loss, value in ((0.5, "ce", 14.0), (0.5, "squarehead", 11.0), (0.7, "ce", 30.0), (0.7, "kd", 29.0)):
        runs.job(sparsity, loss, value)
    runs.write_sweep()
    return runs


def collected(runs: Runs) -> Study:
    return study.collect([runs.place], None, Path("nowhere"))


def rows(found: Study, kind: str) -> list[Row]:
    return [row for row in found.models if row["kind"] == kind]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    try:
        report.main()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


# ---- what it tells ----


def test_dense_stands_once_one_shot_once_a_level_and_every_job_has_its_model(sweep: Runs) -> None:
    found = collected(sweep)
    assert [len(rows(found, kind)) for kind in ("dense_eval", "one_shot_eval", "evaluate")] == [1, 2, 4]
    assert [row["jobs"] for row in rows(found, "one_shot_eval")] == [(0, 1), (2, 3)]
    best = rows(found, "evaluate")[1]
    facts = [best[key] for key in ("loss", "sparsity", "model_sparsity", "checkpoint_bytes")]
    assert facts == ["squarehead", 0.5, 0.25, 4100]
    quality = found.qualities[best["evaluation"]]["perplexity"]
    assert [quality[key] for key in ("value", "stderr", "higher_is_better")] == [11.0, 1.0, False]
    assert quality["recovery"] == pytest.approx(100 * 10 / 11)
    assert best["seconds"] == 6.0, "dense, prune and fine-tune took 2 s each; sources and the evaluation do not count"


def test_options_are_told_where_jobs_differ_and_only_of_the_models_that_have_them(sweep: Runs) -> None:
    found = collected(sweep)
    assert found.columns == ["sparsity", "distill"], "the seed is the same in all"
    assert rows(found, "dense_eval")[0]["options"] == {}
    assert rows(found, "one_shot_eval")[1]["options"] == {"sparsity": "0.7"}
    assert rows(found, "evaluate")[3]["options"] == {"sparsity": "0.7", "distill": "kd"}


def test_seeds_of_one_model_have_a_mean_and_a_spread(runs: Runs) -> None:
    values = [11.0, 12.0, 16.0]
    for seed, value in enumerate(values):
        runs.job(0.5, "kd", value, seed=seed)
    runs.job(0.5, "ce", 20.0)
    found = collected(runs)
    (over,) = [row for row in found.seeds if row.kind == "evaluate"]
    spread = over.qualities["perplexity"]
    assert (spread.mean, spread.std) == (mean(values), stdev(values))
    assert over.seeds == ("0", "1", "2")
    assert over.options == {"distill": "kd"}, "one seed of ce is no spread"
    assert len(over.evaluations) == 3
    (dense,) = [row for row in found.seeds if row.kind == "dense_eval"]
    assert (dense.seeds, dense.options) == (("0", "1", "2"), {}), "no loss makes a dense model"


def test_groups_that_set_several_options_are_told_by_what_they_set(runs: Runs) -> None:
    runs.job(0.5, "kd", 11.0, row="table/50")
    runs.pattern = "16:64"
    runs.job(0.75, "kd", 20.0, row="table/16of64")
    runs.job(0.75, "ce", 21.0, row="table/16of64")
    found = collected(runs)
    assert found.columns == ["sparsity", "distill"]
    assert [level.series for level in found.levels("perplexity")] == ["ce", "kd", "kd", "one-shot", "one-shot"]


def test_patterns_of_one_sparsity_are_no_seeds_of_each_other(runs: Runs) -> None:
    for pattern, sparsity, value in (("unstructured", 0.5, 11.0), ("2:4", 0.5, 18.0), ("16:32", 0.5, 12.0)):
        runs.pattern = pattern
        runs.job(sparsity, "kd", value, row=f"patterns/{pattern}")
    found = collected(runs)
    told = [(level.series, level.each) for level in found.levels("perplexity") if not level.one_shot]
    assert told == [("16:32", (12.0,)), ("2:4", (18.0,)), ("unstructured", (11.0,))]
    (finding,) = findings(found)
    assert (finding.best, finding.margin) == ("unstructured", "within error of 16:32 (12.00 ± 1.00)")


def test_patterns_of_different_sparsities_are_one_line(runs: Runs) -> None:
    for pattern, sparsity in (("unstructured", 0.5), ("16:32", 0.5), ("unstructured", 0.75), ("16:64", 0.75)):
        runs.pattern = pattern
        runs.job(sparsity, "kd", 12.0, row=f"patterns/{pattern}_{sparsity}")
    told = [level.series for level in collected(runs).levels("perplexity") if not level.one_shot]
    assert told == ["N:M", "N:M", "unstructured", "unstructured"]


def test_at_one_sparsity_quality_is_told_over_the_number_that_differs(runs: Runs) -> None:
    for lr, value in ((1e-4, 14.0), (1e-3, 11.0)):
        runs.job(0.7, "squarehead", value, lr=lr)
        runs.job(0.7, "ce", value + 4, lr=lr)
    found = collected(runs)
    assert found.naming.axis == "finetune.lr"
    told = [(level.series, level.place, level.value) for level in found.levels("perplexity")[:4]]
    assert told == [("ce", 1e-4, 18.0), ("ce", 1e-3, 15.0), ("squarehead", 1e-4, 14.0), ("squarehead", 1e-3, 11.0)]
    (finding,) = findings(found)
    assert finding.best == "squarehead finetune.lr=0.001"
    assert "ce finetune.lr=0.001 (15.00" in finding.margin, "each loss at its own best"
    drawn = quality_figures.quality(found, "perplexity")
    assert drawn
    assert "perplexity over finetune.lr" in drawn


def test_models_judged_on_the_same_windows_are_told_apart_window_by_window(tmp_path: Path) -> None:
    """11.0 and 11.5, each ± 1: level by their errors; but the second is worse in every window."""
    margins = {}
    for kept in (False, True):
        runs = Runs(tmp_path / str(kept), windows=kept)
        runs.job(0.5, "kd", 11.0)
        runs.job(0.5, "ce", 11.5)
        (finding,) = findings(collected(runs))
        margins[kept] = finding.margin
    assert margins[False] == "within error of ce (11.50 ± 1.00)"
    told, low, high = re.fullmatch(r"(.*) by ([\d.]+) to ([\d.]+) .95 % interval, same items.", margins[True]).groups()  # type: ignore[union-attr]
    assert told == "better than ce (11.50 ± 1.00)"
    assert 0 < float(low) < 0.5 < float(high)


def test_seeds_are_told_apart_by_their_means(runs: Runs) -> None:
    """Three seeds each: 2.0 apart with a deviation of 0.7 is clear, 1.0 apart with one of 1.0 is not."""
    for seed, off in enumerate((-1.0, 0.0, 1.0)):
        runs.job(0.5, "kd", 11.0 + 0.7 * off, seed=seed)
        runs.job(0.5, "ce", 13.0 + 0.7 * off, seed=seed)
        runs.job(0.7, "kd", 11.0 + off, seed=seed)
        runs.job(0.7, "ce", 12.0 + off, seed=seed)
    low, high = findings(collected(runs))
    assert low.margin == "better than ce (13.00 ± 0.70) over seeds"
    assert high.margin == "no significant difference to ce (12.00 ± 1.00) over seeds"


def test_models_that_are_level_in_their_windows_are_not_told_apart(runs: Runs) -> None:
    runs.windows = True
    runs.job(0.5, "kd", 11.0)
    runs.job(0.5, "ce", 11.0)
    (finding,) = findings(collected(runs))
    assert finding.margin == "no significant difference to kd (11.00 ± 1.00) on the same items"


def test_the_gain_of_int8_is_told_apart_from_that_of_zeros(runs: Runs) -> None:
    runs.job(0.5, "kd", 11.0, int8=True)
    found = collected(runs)
    (share,) = found.shares
    assert share.steps == {"runtime": 2.0, "int8": 2.0, "zeros": 1.5, "int8 head": None}
    assert share.total == 6.0
    speeds = {row["kind"]: speed for row in found.models if (speed := found.speed(row))}
    backends = {kind: (speed.backend, speed.ratio) for kind, speed in speeds.items()}
    assert backends == {
        "dense_eval": ("engine_fp32", 2.0),
        "dense_eval_q": ("engine_int8", 4.0),
        "evaluate": ("engine_fp32", 3.0),
        "evaluate_q": ("engine_int8", 6.0),
    }
    assert speeds["evaluate_q"].fingerprints == (fingerprint("benchmark", 0.5, "kd", 0),)


def test_the_last_rung_of_a_job_is_its_model_though_others_pass_it(runs: Runs) -> None:
    ladder = runs.job(0.7, "ce", 30.0)
    short = runs.job(0.5, "ce", 14.0)
    for name in ("plan.json", "summary.json"):
        passed = json.loads((short / name).read_text())
        longer = json.loads((ladder / name).read_text())
        at, to = passed.get("nodes", passed), longer.get("nodes", longer)
        to["evaluate_50"] = at["evaluate"]
        (ladder / name).write_text(json.dumps(longer))
    found = collected(runs)
    assert [(row["sparsity"], row["jobs"]) for row in rows(found, "evaluate")] == [(0.5, (1,)), (0.7, (0,))]
    assert rows(found, "rung") == []


def test_what_was_fine_tuned_once_and_pruned_further_is_one_part(runs: Runs) -> None:
    place = runs.job(0.5, "ce", 14.0, until="finetune_50")
    plan = json.loads((place / "plan.json").read_text())
    further = {"stage": "prune", "fingerprint": fingerprint("further"), "inputs": {"model": "finetune_50"}}
    plan["nodes"]["prune_60"] = further | {"status": "run"}
    (place / "plan.json").write_text(json.dumps(plan))
    names = [group.name for group in collected(runs).groups]
    assert "prune, fine-tune" in names
    assert "prune" not in names


def test_what_jobs_share_is_counted_once(sweep: Runs) -> None:
    groups = {group.name: group for group in collected(sweep).groups}
    assert (groups["dense"].results, groups["dense"].uses, groups["dense"].made) == (1, 4, 1)
    assert (groups["dense"].seconds, groups["dense"].saved) == (2.0, 6.0)
    assert (groups["prune"].results, groups["prune"].uses) == (2, 4)
    assert (groups["fine-tune"].results, groups["fine-tune"].saved) == (4, 0.0)
    assert groups["fine-tune"].inputs == ("prune",), "the teacher has come by pruning already"


def test_a_sweep_told_by_its_jobs_alone_is_the_same(sweep: Runs) -> None:
    before = collected(sweep)
    (sweep.place / "sweep.json").unlink()
    for plan in sweep.place.rglob("plan.json"):
        plan.unlink()
    after = collected(sweep)
    assert after.models == before.models
    assert after.groups == before.groups
    assert after.problems == before.problems == []


def test_several_sweeps_are_reported_together(tmp_path: Path) -> None:
    first, second = Runs(tmp_path / "runs"), Runs(tmp_path / "runs", sweep="20260102-120000-000001")
    first.job(0.5, "kd", 11.0)
    second.job(0.8, "kd", 50.0)
    found = study.collect([first.place, second.place], None, tmp_path)
    assert [row["sparsity"] for row in rows(found, "evaluate")] == [0.5, 0.8]
    assert len(rows(found, "dense_eval")) == 1


# ---- published figures ----


@pytest.mark.parametrize(
    ("ours", "stderr", "verdict"),
    [
        (0.30, 0.0125, "within error"),
        (0.35, 0.0125, "better"),
        (0.20, 0.0125, "worse"),
        (0.35, None, "no error known"),
    ],
)
def test_a_verdict_weighs_the_difference_by_our_error(
    tmp_path: Path, ours: float, stderr: float | None, verdict: str
) -> None:
    metric = "squarehead_qa_exact_match_strict_match"
    runs = Runs(tmp_path, metric, True, 0.3, 0.1, "mpt_gsm8k", model="mosaicml/mpt-7b", data="openai/gsm8k")
    runs.job(0.5, "squarehead", ours, error=stderr)
    (told,) = [at for at in collected(runs).comparisons if at.row["kind"] == "evaluate"]
    assert (told.reference.value, told.verdict) == (0.306, verdict)


@pytest.mark.parametrize(
    ("model", "data", "subset", "same"),
    [
        ("google-t5/t5-small", "wmt/wmt14", "de-en", (True, True)),
        ("folder/T5_small/", "wmt14", "de-en", (True, True)),
        ("google/mt5-small", "wmt/wmt14", "fr-en", (False, False)),
        ("google/flan-t5-small", "wmt/wmt14", "", (False, False)),
    ],
)
def test_published_figures_are_of_a_model_and_of_data_by_their_whole_names(
    tmp_path: Path, model: str, data: str, subset: str, same: tuple[bool, bool]
) -> None:
    runs = Runs(tmp_path)
    runs.job(0.75, "squarehead", 24.0)
    (job,) = collected(runs).jobs
    job.config.update(model={"path": model}, data={"path": data, "subset": subset})
    job.config["evaluate"] = {"generation": {"split": "validation"}}
    assert verdicts.same(job, of_table("t5")[0]) == same
    job.config["evaluate"] = {"generation": {"split": "test"}}
    assert verdicts.same(job, of_table("t5")[0]) == (same[0], False)


@pytest.mark.parametrize(
    ("table", "changed", "told"),
    [
        ("wikitext2_opt_125m", {}, []),
        ("wikitext2_opt_125m", {"evaluate.perplexity.joined_by": " "}, ["joined_by=' '"]),
        ("wikitext2_opt_125m", {"data.splits": {"train": "train", "test": "validation"}}, ["splits.test=validation"]),
        ("t5", {"evaluate.generation.tokenize": "13a"}, []),
        ("t5", {"evaluate.generation.tokenize": "char"}, ["tokenize=char, published 13a"]),
        ("t5", {"data.columns": {"source": "translation.de", "target": "translation.en"}}, ["target=translation.en"]),
        ("t5", {"data.splits": {"train": "train", "validation": "test"}}, ["data.splits.validation=test"]),
        ("whisper", {"evaluate.generation.split": "validation"}, ["split=validation"]),
        ("whisper", {"data.speech": {"language": "hi", "task": "translate"}}, ["task=translate"]),
        ("mpt_gsm8k", {"evaluate.tasks": [{"name": "squarehead_qa", "shots": None, "limit": 0}]}, []),
        ("mpt_gsm8k", {"evaluate.tasks": [{"name": "squarehead_qa", "shots": 5, "limit": 9}]}, ["first 9", "5 shots"]),
    ],
)  # fmt: skip
def test_what_was_measured_otherwise_has_no_verdict(table: str, changed: dict[str, object], told: list[str]) -> None:
    published = of_table(table)[0]
    config: dict[str, Any] = {}
    for option, value in ({**published.protocol} | changed).items():
        *sections, name = option.split(".")
        inside = config
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[name] = value
    found = verdicts.differences(config, published)
    assert len(found) == len(told)
    assert all(part in line for part, line in zip(told, found, strict=True))


def test_a_model_that_was_only_pruned_stands_beside_figures_of_such(tmp_path: Path) -> None:
    for steps, losses in ((10, ["squarehead"]), (0, [None])):
        runs = Runs(tmp_path / str(steps), "squarehead_qa_exact_match_strict_match", True, 0.3, 0.1, "mpt_gsm8k")
        record = runs.job(0.5, "squarehead", 0.25) / "job.json"
        told = json.loads(record.read_text())
        told["config"]["finetune"] |= {"steps": steps, "epochs": 0}
        record.write_text(json.dumps(told))
        beside = [at.reference.loss for at in collected(runs).comparisons if at.row["kind"] == "evaluate"]
        assert beside == losses


def test_another_model_has_no_verdict_and_its_recovery_stands_beside_ours(tmp_path: Path) -> None:
    runs = Runs(tmp_path, "wer", reference="whisper", model="owner/whisper-tiny.en", data="owner/clips")
    runs.job(0.5, "squarehead", 30.87)
    told = {at.row["kind"]: at for at in collected(runs).comparisons}
    assert set(told) == {"dense_eval", "evaluate"}, "no one-shot of that table is published"
    assert told["evaluate"].verdict == "no reference (other model)"
    assert told["evaluate"].reference.recovery == pytest.approx(100 * 32.57 / 30.87)


def test_figures_of_another_loss_pattern_or_level_do_not_stand_beside_ours(tmp_path: Path) -> None:
    runs = Runs(tmp_path, "wer", reference="mine")
    runs.job(0.5, "kd", 20.0)
    found = collected(runs)

    def beside(**changed: object) -> int:
        told = {"table": "mine", "title": "t", "source": "s", "family": "whisper", "model": "m", "dataset": "d",
                "metric": "wer", "value": 1.0, "sparsity": 0.5, "loss": "kd"}  # fmt: skip
        return len(verdicts.compare(found.jobs, found.table, [Reference(**(told | changed))]))  # type: ignore[arg-type]

    assert beside() == 1
    wrong = {"table": "theirs", "metric": "cer", "sparsity": 0.6, "loss": "ce", "pattern": "2:4", "int8": True}
    assert [beside(**{key: value}) for key, value in wrong.items()] == [0] * len(wrong)
    assert beside(loss=None) == 1, "that is the one-shot model's"
    assert beside(sparsity=0, loss=None) == 1, "that is the dense model's"


# ---- what is not there ----


def test_failed_unfinished_and_missing_jobs_are_told_and_the_rest_is_reported(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.job(0.5, "ce", 11.0)
    runs.job(0.6, "ce", 12.0, failed="finetune_60")
    runs.job(0.7, "ce", 13.0, until="prune_70", summary=False)
    runs.job(0.8, "ce", 14.0, folder=False)
    runs.write_sweep()
    found = collected(runs)
    assert [state(job, found.results) for job in found.jobs] == [
        "done",
        "failed: finetune_60: out of luck",
        "stopped: at finetune_70, 3 of 8 stages to go",
        "missing: never began",
    ]
    assert [row["sparsity"] for row in rows(found, "evaluate")] == [0.5]
    assert run(monkeypatch, runs.place) == report.INCOMPLETE
    told = capsys.readouterr().out
    for line in ("job 1 (sparsity=0.6): failed", "job 2 (sparsity=0.7): stopped", "job 3 (sparsity=0.8): missing"):
        assert line in told
    assert "fine-tuned" in told
    assert "out of luck" in (runs.place / "report.html").read_text()


def test_a_failed_job_that_was_done_again_is_no_problem(runs: Runs) -> None:
    runs.job(0.5, "ce", 11.0, failed="finetune_50")
    runs.job(0.5, "ce", 11.0)
    runs.job(0.6, "ce", 12.0)
    found = collected(runs)
    assert found.states[0] == f"superseded by {runs.sweep}/1: failed: finetune_50: out of luck"
    assert found.problems == []


def test_a_job_whose_results_are_all_there_is_done_though_it_was_killed_before_it_said_so(runs: Runs) -> None:
    runs.job(0.5, "ce", 11.0, summary=False)
    assert collected(runs).problems == []


def test_a_refused_configuration_is_told(sweep: Runs) -> None:
    place = sweep.place / "4" / ".hydra"
    place.mkdir(parents=True)
    (place / "overrides.yaml").write_text("- sparsity=1.5\n- distill=ce\n")
    found = collected(sweep)
    assert found.states[-1].startswith("not planned: ")
    assert len(found.problems) == 1
    assert "sparsity=1.5" in found.problems[0]


def test_a_deleted_result_is_named_and_told_from_the_summary(sweep: Runs) -> None:
    whole = rows(collected(sweep), "evaluate")[1]
    evaluation = fingerprint("evaluate", 0.5, "squarehead", 0)
    shutil.rmtree(sweep.store.root / "evaluate" / evaluation[:SHORT])
    found = collected(sweep)
    left = rows(found, "evaluate")[1]
    for key in ("value", "stderr", "sparsity", "checkpoint"):
        assert left[key] == whole[key]
    assert len(found.problems) == 1
    assert f"evaluate/{evaluation[:SHORT]}" in found.problems[0]


def test_a_damaged_result_is_named_with_its_file(sweep: Runs) -> None:
    pruned = sweep.store.root / "prune" / fingerprint("prune", 0.5, 0)[:SHORT] / "model.safetensors"
    pruned.chmod(0o600)
    pruned.write_bytes(b"short")
    (problem,) = collected(sweep).problems
    assert "model.safetensors has 5 bytes" in problem


def test_an_evaluation_without_metrics_is_named(runs: Runs) -> None:
    runs.job(0.5, "ce", 11.0)
    (row,) = rows(collected(runs), "evaluate")
    entry = runs.store.find("evaluate", row["evaluation"])
    assert entry
    with runs.store.fill("evaluate", row["evaluation"], lambda who: None, replace=True) as slot:
        slot.publish(
            {key: value for key, value in entry.meta.items() if key not in ("files", "digest")} | {"metrics": {}}
        )
    (problem,) = collected(runs).problems
    assert problem == f"evaluate/{row['evaluation'][:SHORT]} (fine-tuned of job 0): has no metrics"


def test_without_its_store_a_sweep_is_told_from_summaries(sweep: Runs) -> None:
    before = collected(sweep)
    shutil.rmtree(sweep.store.root)
    found = collected(sweep)
    values = [[row["value"] for row in it.models] for it in (before, found)]
    assert values[0] == values[1]
    assert found.problems[-1].startswith("and "), "a line for each of many would hide the others"


def test_a_summary_that_cannot_be_read_is_told(sweep: Runs) -> None:
    (sweep.place / "1" / "summary.json").write_text('{"dense": ')
    (sweep.place / "1" / "plan.json").write_text('{"nodes": ')
    (sweep.place / "sweep.json").unlink()
    (problem,) = collected(sweep).problems
    assert problem.startswith("job 1 ")
    assert "cannot be read" in problem


@pytest.mark.parametrize("content", ["empty", "foreign", "absent"])
def test_nothing_to_report_is_one_line_and_code_2(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "some"
    if content != "absent":
        folder.mkdir()
    if content == "foreign":
        (folder / "photos").mkdir()
        (folder / "notes.txt").write_text("nothing of ours")
    before = sorted(tmp_path.rglob("*"))
    assert run(monkeypatch, folder) == report.NOTHING
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert run(monkeypatch, "--runs", tmp_path) == report.NOTHING


def test_the_newest_sweep_is_reported_and_the_store_left_as_it_is(sweep: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = Runs(sweep.folder, sweep="20260202-120000-000001")
    newer.job(0.5, "kd", 11.0)

    def content() -> dict[str, tuple[int, int]]:
        paths = sorted(path for path in sweep.store.root.rglob("*") if path.is_file())
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}

    before = content()
    assert run(monkeypatch, "--runs", sweep.folder) == 0
    assert content() == before
    assert (newer.place / "report.json").exists()
    assert not (sweep.place / "report.json").exists()
    assert run(monkeypatch, sweep.sweep, "--runs", sweep.folder) == 0
    assert (sweep.place / "report.json").exists(), "a sweep may go by its id"


def test_of_the_newest_run_and_the_newest_sweep_the_other_is_named(
    sweep: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    single = sweep.folder / "jobs" / "20260303-120000-000001"
    shutil.copytree(sweep.place / "0", single)
    assert run(monkeypatch, "--runs", sweep.folder) == 0
    assert (single / "report.json").exists()
    assert f"another: python -m pipeline.report {sweep.place}" in capsys.readouterr().out


def test_passwords_in_uris_are_not_published(sweep: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    for record in sweep.place.rglob("job.json"):
        record.write_text(record.read_text().replace('"uri": ""', '"uri": "https://me:secret@host/mlflow"'))
    for lines in sweep.place.rglob("overrides.yaml"):
        lines.write_text(lines.read_text() + "- tracking.uri=https://me:secret@host/mlflow\n")
    assert run(monkeypatch, sweep.place) == 0
    written = "".join(path.read_text() for path in sweep.place.glob("report.*"))
    assert "https://host/mlflow" in written
    assert "secret" not in written


def test_a_report_needs_neither_torch_nor_mlflow(sweep: Runs) -> None:
    code = (
        "import sys; from pipeline import report; report.main(); print(sorted({'torch', 'mlflow'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(sweep.place)]
    found = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.strip().splitlines()[-1] == "[]"
    assert json.loads((sweep.place / "report.json").read_text())["format"] == 1
