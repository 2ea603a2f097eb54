"""What a job comes to: the metric that matters most comes first, whatever else was measured."""

from pipeline.record.headline import headline, node_headline
from pipeline.record.metrics import of_result
from pipeline.record.outcome import Outcome, Outcomes
from pipeline.record.status import Status
from pipeline.record.text import describe
from stages.contracts import Metrics
from stages.index import STAGES

ACCURACY = "squarehead_qa_exact_match_strict_match"


def made(stage: str, **metrics: float) -> Outcome:
    return Outcome(stage, stage, "ab" * 32, Status.DONE, 2.0, of_result(stage, metrics, None))


def quality(outcomes: Outcomes) -> str:
    found = headline(outcomes).quality
    return found.name if found else ""


def test_accuracy_is_compared_first_and_what_says_how_it_came_about_never() -> None:
    assert quality({"evaluate": made("evaluate", perplexity=3.0, **{ACCURACY: 0.5})}) == ACCURACY
    wer = made("evaluate", wer_substitutions=1.0, wer_stderr=0.1, wer=4.0, cer=1.0)
    assert quality({"evaluate": wer}) == "wer"
    assert quality({"dense_eval": wer}) == "wer"
    assert quality({}) == ""


def test_the_dense_model_is_no_sparse_job_s_own() -> None:
    dense, pruned = made("evaluate", perplexity=15.0), made("evaluate", perplexity=33.0)
    prune = made("prune", sparsity=0.5)
    found = headline({"dense_eval": dense, "prune_50": prune, "one_shot_eval": pruned})
    assert found.numbers()["perplexity"] == 33.0
    only_int8 = {"dense_eval": dense, "prune_50": prune, "evaluate_q": made("evaluate", perplexity=34.0)}
    numbers = headline(only_int8).numbers()
    assert "perplexity" not in numbers
    assert (numbers["int8_perplexity"], numbers["dense_perplexity"]) == (34.0, 15.0)
    assert headline({"dense_eval": dense}).numbers()["perplexity"] == 15.0, "nothing was to be pruned"


def test_recovery_is_that_of_the_metric_compared_first() -> None:
    both = made("evaluate", perplexity=20.0, perplexity_recovery=80.0, **{ACCURACY: 0.5, f"{ACCURACY}_recovery": 90.0})
    found = headline({"evaluate": both}).numbers()
    assert found["recovery"] == 90.0
    assert found["perplexity"] == 20.0


def test_a_job_is_led_by_a_speed_whose_quality_was_measured() -> None:
    speeds = {f"{backend}.sparse.decode_speedup": value for backend, value in
              (("engine_int8", 6.0), ("engine_int8_head", 9.0), ("gone", 12.0))}  # fmt: skip
    outcomes = {"benchmark": made("benchmark", **speeds)}
    assert headline(outcomes).numbers()["best_decode_speedup"] == 6.0


def test_every_node_has_one_number_to_show() -> None:
    speeds = {"engine_int8.sparse.decode_speedup": 6.25, "torch_fp32.dense.decode_speedup": 9.0}
    shown = [
        (made("model", bytes=5.0, parameters=134_515_008.0), "parameters 134,515,008"),
        (made("prune", mean_layer_error=0.1, sparsity=0.5), "sparsity 50 %"),
        (made("finetune", sparsity=0.5, validation_loss=2.3456), "validation_loss 2.346 nats"),
        (
            made("evaluate", perplexity=22.312, perplexity_stderr=0.519, perplexity_recovery=91.23),
            "perplexity 22.31 ± 0.52 (recovery 91.2 %)",
        ),
        (made("benchmark", **speeds), "engine_int8 sparse 6.25 x"),
    ]
    for outcome, expected in shown:
        metric = node_headline(outcome)
        assert metric is not None
        assert describe(metric) == expected


def test_every_stage_that_pipelines_run_says_which_number_stands_for_it() -> None:
    silent = {name for name, stage in STAGES.items() if not any(metric.headline for metric in stage.metrics)}
    evaluations = {name for name, stage in STAGES.items() if stage.makes is Metrics}
    assert silent == evaluations >= {"evaluate"}, "an evaluation is led by its most important quality"
    for stage in STAGES.values():
        names = [metric.name for metric in stage.metrics]
        assert len(set(names)) == len(names), stage.name
