"""The record of a run: metrics keep their error, unit and direction; records of older versions are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.record import folders
from pipeline.record import metrics as measured
from pipeline.record.headline import headline
from pipeline.record.job import ended_jobs
from pipeline.record.metrics import Metric
from pipeline.record.outcome import Outcome, is_damaged, read_outcomes, status_of, write_outcomes
from pipeline.record.status import Status
from pipeline.record.sweep import read_shared, sweeps
from pipeline.store.store import Store
from pipeline.sweeps import state as sweep_state

ACCURACY = "squarehead_qa_exact_match_strict_match"
PROTOCOL = {"kind": "lm-eval", "metric": "exact_match", "higher_is_better": None}


def evaluated(folder: Path) -> measured.Metrics:
    stored = {
        "perplexity": {"value": 20.0, "stderr": 0.5, "protocol": {"higher_is_better": False}},
        ACCURACY: {"value": 0.25, "stderr": None, "protocol": PROTOCOL},
    }
    (folder / "metrics.json").write_text(json.dumps(stored))
    summary = {"perplexity": 20.0, "perplexity_stderr": 0.5, "perplexity_recovery": 80.0, ACCURACY: 0.25, "hits": 3.0}
    return measured.of_result("evaluate", summary, folder)


def test_a_metric_keeps_what_the_stage_said_of_it(tmp_path: Path) -> None:
    found = evaluated(tmp_path)
    assert list(found) == ["perplexity", ACCURACY, "hits"]
    assert found["perplexity"] == Metric("perplexity", 20.0, 0.5, "", False, {"higher_is_better": False}, 80.0)
    assert (found[ACCURACY].unit, found[ACCURACY].higher_is_better) == ("fraction", True), "lm-eval's default"
    assert not found["hits"].is_quality
    assert [metric.name for metric in measured.qualities(found)] == [ACCURACY, "perplexity"]
    assert measured.flat(found)["perplexity_recovery"] == 80.0


def test_a_benchmark_says_what_ran_which_model(tmp_path: Path) -> None:
    rows = [{"backend": "engine_int8", "model": "sparse", "status": "ok"}, {"backend": "csr", "model": "sparse"}]
    (tmp_path / "benchmark.json").write_text(json.dumps({"rows": rows}))
    summary = {"engine_int8.sparse.decode_speedup": 2.0, "engine_int8.sparse.prefill_ms": 5.0}
    for folder in (tmp_path, None):
        found = measured.of_result("benchmark", summary, folder)
        speedup = found["engine_int8.sparse.decode_speedup"]
        assert (speedup.value, speedup.unit, speedup.higher_is_better) == (2.0, "x", True)
        assert speedup.protocol == {"backend": "engine_int8", "model": "sparse", "quantity": "decode_speedup"}
        assert found["engine_int8.sparse.prefill_ms"].higher_is_better is False
        assert measured.flat(found) == summary


def test_summaries_have_units_and_directions(tmp_path: Path) -> None:
    found = measured.of_result("finetune", {"validation_loss": 2.0, "sparsity": 0.5, "of_a_plugin": 1.0}, tmp_path)
    assert (found["validation_loss"].unit, found["validation_loss"].higher_is_better) == ("nats", False)
    assert (found["sparsity"].unit, found["sparsity"].higher_is_better) == ("fraction", None)
    assert found["of_a_plugin"].value == 1.0


def test_outcomes_are_read_as_they_were_written(tmp_path: Path) -> None:
    outcome = Outcome("evaluate", "evaluate", "ab" * 32, Status.DONE, 2.5, evaluated(tmp_path))
    lost = Outcome("benchmark", "benchmark", "cd" * 32, Status.FAILED, error="no room")
    write_outcomes({"evaluate": outcome, "benchmark": lost}, tmp_path / "summary.json")
    assert read_outcomes(tmp_path / "summary.json") == {"evaluate": outcome, "benchmark": lost}
    assert status_of({"evaluate": outcome}) == (Status.DONE, "")
    assert status_of({"evaluate": outcome, "benchmark": lost}) == (Status.FAILED, "benchmark: no room")


@pytest.mark.parametrize("text", ["", "[]", '{"dense": {"sta', '{"dense": {}}', '{"dense": 3}'])
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    assert read_outcomes(tmp_path / "summary.json") == {}


def test_a_figure_that_was_changed_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    write_outcomes({"evaluate": Outcome("evaluate", "evaluate", "ab" * 32, Status.DONE, 2.5)}, file)
    file.write_text(file.read_text().replace("2.5", "2.4"))
    assert read_outcomes(file) == {}
    assert is_damaged(file)
    assert not is_damaged(tmp_path / "none_yet.json")


def test_summaries_that_held_plain_numbers_are_read(tmp_path: Path) -> None:
    """Up to version 0.1 the metrics of a node were the stage's summary."""
    plain = {
        "stage": "evaluate", "fingerprint": "ab" * 32, "status": "hit", "seconds": 1.0, "error": "",
        "metrics": {"wer": 4.0, "wer_stderr": 0.1, "wer_recovery": 90.0, "cer": 1.0, "wer_substitutions": 3.0},
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps({"evaluate": plain}))
    found = read_outcomes(tmp_path / "summary.json")["evaluate"]
    assert (found.name, found.status) == ("evaluate", Status.HIT)
    wer = found.metrics["wer"]
    assert (wer.value, wer.stderr, wer.recovery, wer.unit, wer.higher_is_better) == (4.0, 0.1, 90.0, "%", False)
    assert [metric.name for metric in measured.qualities(found.metrics)] == ["wer", "cer"]
    assert found.metrics["wer_substitutions"].value == 3.0


RECORDED = Path(__file__).parents[1] / "recorded"
"""What a sweep and a job left behind that version 0.1 ran, and the results of their evaluations and benchmark."""


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RECORDED, tmp_path / "runs"))


def test_a_job_of_an_older_version_is_read(recorded: Path) -> None:
    alone, of_sweep = sorted(ended_jobs(recorded), key=lambda job: job.sweep)
    assert (alone.sweep, of_sweep.sweep) == ("", "20261128-113453-499410")
    assert {outcome.status for outcome in alone.outcomes.values()} == {Status.HIT}
    assert status_of(of_sweep.outcomes) == (Status.DONE, "")
    assert of_sweep.swept_parameters == folders.read_job(of_sweep.folder).swept_parameters == {"distill": "ce"}
    for job in (alone, of_sweep):
        found = headline(job.outcomes)
        assert found.quality is not None
        assert (found.quality.name, found.quality.higher_is_better) == ("perplexity", False)
        assert found.quality.recovery == pytest.approx(101.57, abs=0.01)
        assert found.sparsity == pytest.approx(0.5)
        assert found.speedup is not None
        assert found.speedup.protocol["backend"] == "engine_fp32"


def test_a_sweep_of_an_older_version_is_read(recorded: Path) -> None:
    (sweep,) = sweeps(recorded)
    assert [job.name for job in sweep.jobs] == ["distill=ce", "distill=squarehead", "distill=kd"]
    assert [job.swept_parameters["distill"] for job in sweep.jobs] == ["ce", "squarehead", "kd"]
    assert sweep.jobs[0].nodes["finetune_50"].stage == "finetune"
    shared = read_shared(sweep.folder)
    assert {outcome.name for outcome in shared.values()} >= {"model", "dense", "dense_eval"}
    state = sweep_state.read(sweep)
    assert [job.status for job in state.jobs] == [Status.DONE, Status.NOT_RUN, Status.NOT_RUN]
    assert state.jobs[0].headline.recovery == pytest.approx(101.57, abs=0.01)


def test_results_of_an_older_version_say_the_same_as_the_summary_of_their_job(recorded: Path) -> None:
    store = Store(recorded / "store")
    (job,) = (job for job in ended_jobs(recorded) if job.sweep)
    for outcome in job.outcomes.values():
        if outcome.stage in ("evaluate", "benchmark"):
            entry = store.find(outcome.stage, outcome.fingerprint)
            assert entry is not None
            stored = measured.of_result(entry.stage, entry.meta["metrics"], entry.path)
            assert measured.flat(stored) == measured.flat(outcome.metrics) == entry.meta["metrics"]
            assert [(it.name, it.higher_is_better) for it in stored.values()] == [
                (it.name, it.higher_is_better) for it in outcome.metrics.values()
            ]
    assert stored["engine_int8.sparse.decode_speedup"].protocol["model"] == "sparse"
