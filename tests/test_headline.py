"""What a job comes to: the metric that matters most comes first, whatever else was measured."""

from pipeline.headline import first_metric, headline, main_metric

ACCURACY = "squarehead_qa_exact_match_strict_match"


def evaluated(**metrics: float) -> dict[str, object]:
    return {"stage": "evaluate", "status": "done", "seconds": 2.0, "metrics": metrics}


def test_accuracy_is_compared_first_and_what_says_how_it_came_about_never() -> None:
    assert first_metric(["perplexity", ACCURACY]) == ACCURACY
    assert first_metric(["wer", "cer"]) == "wer"
    assert first_metric([]) == ""
    wer = evaluated(wer_substitutions=1.0, wer_stderr=0.1, wer=4.0, cer=1.0)
    assert main_metric({"evaluate": wer}) == "wer"
    assert main_metric({"dense_eval": wer}) == "wer"
    assert main_metric({}) == ""


def test_the_dense_model_is_no_sparse_job_s_own() -> None:
    dense, pruned = evaluated(perplexity=15.0), evaluated(perplexity=33.0)
    prune = {"stage": "prune", "status": "done", "seconds": 1.0, "metrics": {"sparsity": 0.5}}
    assert headline({"dense_eval": dense, "prune_50": prune, "one_shot_eval": pruned})["perplexity"] == 33.0
    only_int8 = headline({"dense_eval": dense, "prune_50": prune, "evaluate_q": evaluated(perplexity=34.0)})
    assert "perplexity" not in only_int8
    assert (only_int8["int8_perplexity"], only_int8["dense_perplexity"]) == (34.0, 15.0)
    assert headline({"dense_eval": dense})["perplexity"] == 15.0, "nothing was to be pruned"


def test_recovery_is_that_of_the_metric_compared_first() -> None:
    both = evaluated(perplexity=20.0, perplexity_recovery=80.0, **{ACCURACY: 0.5, f"{ACCURACY}_recovery": 90.0})
    found = headline({"evaluate": both})
    assert found["recovery"] == 90.0
    assert found["perplexity"] == 20.0
