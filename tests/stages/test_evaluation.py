"""Perplexity by its protocol, lm-eval tasks offline, recovery."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import kernels
from stages import checkpoints, families, json_lines, tokens
from stages.contracts import Artifact, Checkpoint, Corpus, Metrics, UserError
from stages.evaluate import compare, lm_eval_tasks, perplexity
from stages.evaluate import run as evaluate
from stages.evaluate.spec import EvaluateOptions, Task
from stages.quantize import run as quantize
from stages.quantize.spec import Quantize
from tests import tiny
from tests.recording import RecordingLog
from tests.tiny import text_data


def config(
    perplexity: dict[str, object] | None = None, tasks: list[dict[str, object]] | None = None, runtime: str = "torch"
) -> EvaluateOptions:
    return EvaluateOptions.model_validate(
        {"perplexity": perplexity, "generation": None, "tasks": tasks or [], "batch_size": 3, "runtime": runtime}
    )


def whole_test(**changes: object) -> dict[str, object]:
    return {"split": "test", "length": 32, "windows": 0, **changes}


def qa_data(folder: Path, items: int = 5) -> Corpus:
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = [
            {"prompt": f"Question: {i} + 1?\nAnswer:", "completion": f" {i + 1}\n#### {i + 1}", "answer": str(i + 1)}
            for i in range(items)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "meta.json").write_text(json.dumps({"facts": {"format": "qa", "digest": "q"}, "metrics": {}}))
    return Corpus(folder, "qa")


def evaluated(
    tmp_path: Path, inputs: dict[str, Artifact], slice_: EvaluateOptions, name: str = "out"
) -> tuple[dict[str, float], Metrics, RecordingLog]:
    out, log = tmp_path / name, RecordingLog(tmp_path / "resume")
    out.mkdir()
    return evaluate.run(slice_, inputs, out, log), Metrics(out, name), log


@pytest.fixture
def model(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tiny.save_model(tmp_path / "model"), "model")


@pytest.fixture
def texts(tmp_path: Path) -> Corpus:
    return text_data(tmp_path / "texts")


@pytest.mark.parametrize("kind", ["llama", "opt", "mpt"])
def test_perplexity_equals_a_loop_in_double_precision(kind: str, texts: Corpus, tmp_path: Path) -> None:
    model = Checkpoint(tiny.save_model(tmp_path / kind, kind), kind)
    summary, metrics, log = evaluated(tmp_path, {"model": model, "data": texts}, config(whole_test()))
    reference = checkpoints.load(model, torch.float64)
    rows = [row["text"] for row in json_lines.read(texts.split("test"))]
    tokenizer = families.of(model.path).tokenizer(model.path)
    ids = tokenizer("\n\n".join(rows), add_special_tokens=False)["input_ids"]
    total, count, means = 0.0, 0, []
    for at in range(0, len(ids) - 31, 32):
        window = torch.tensor([ids[at : at + 32]])
        with torch.inference_mode():
            log_probabilities = reference(input_ids=window).logits.log_softmax(-1)[0]
        nll = [-float(log_probabilities[i, window[0, i + 1]]) for i in range(31)]
        total, count, means = total + sum(nll), count + 31, [*means, sum(nll) / 31]
    assert summary["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    mean = sum(means) / len(means)
    variance = sum((m - mean) ** 2 for m in means) / (len(means) - 1)
    assert summary["perplexity_stderr"] == pytest.approx(math.exp(mean) * math.sqrt(variance / len(means)), rel=1e-4)
    record = metrics.values()["perplexity"]
    assert record["value"] == summary["perplexity"]
    assert record["protocol"]["windows"] == len(means) == len(ids) // 32
    assert record["protocol"]["predicted_tokens"] == count
    assert record["protocol"]["precision"] == "fp32"
    assert log.bars == ["perplexity"]


def test_windows_take_the_first_and_the_tail_is_dropped(model: Checkpoint, texts: Corpus, tmp_path: Path) -> None:
    tokenizer = families.of(model.path).tokenizer(model.path)
    ids_NL = tokens.stream(texts, "test", tokenizer, 32, "")
    loaded, family = checkpoints.load(model), families.of(model.path)
    nll_N = perplexity.window_losses(loaded, family, ids_NL[:2], 8, RecordingLog(tmp_path))
    inputs = {"model": model, "data": texts}
    summary, metrics, _ = evaluated(tmp_path, inputs, config(whole_test(windows=2)))
    assert summary["perplexity"] == pytest.approx(math.exp(float(nll_N.mean())), rel=1e-6)
    assert metrics.values()["perplexity"]["protocol"]["windows"] == 2
    with pytest.raises(UserError) as caught:
        evaluated(tmp_path, inputs, config(whole_test(windows=10_000)), "more")
    assert caught.value.option == "evaluate.perplexity.windows"


def test_perplexities_are_compared_window_by_window(
    model: Checkpoint, texts: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Checkpoint(tiny.save_model(tmp_path / "other", seed=1), "other")
    inputs = {"model": model, "data": texts}
    _, a, _ = evaluated(tmp_path, inputs, config(whole_test()), "a")
    _, b, _ = evaluated(tmp_path, {"model": other, "data": texts}, config(whole_test()), "b")
    _, few, _ = evaluated(tmp_path, inputs, config(whole_test(windows=2)), "few")
    nll_NA, nll_NB = (np.array([row["nll"] for row in json_lines.read(of.path / "windows.jsonl")]) for of in (a, b))
    (found,) = compare.compare([a], [b], 4000, seed=0)
    assert (found.a, found.b) == (a.values()["perplexity"]["value"], b.values()["perplexity"]["value"])
    assert np.exp(nll_NA.mean()) == pytest.approx(found.a)
    assert found.difference.value == pytest.approx(found.b - found.a)
    # the delta method on the differences of the same windows
    slope_N = found.b * nll_NB - found.a * nll_NA
    error = slope_N.std(ddof=1) / math.sqrt(len(slope_N))
    assert found.difference.high - found.difference.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert compare.main([str(a.path), str(few.path)]) == 2
    assert "perplexity was measured in two ways" in capsys.readouterr().err
    (b.path / "windows.jsonl").unlink()
    assert compare.main([str(a.path), str(b.path)]) == 2
    assert "force=[evaluate]" in capsys.readouterr().err


def test_perplexity_does_not_depend_on_the_batch(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, family = checkpoints.load(model), families.of(model.path)
    ids_NL = torch.randint(0, tiny.VOCABULARY, (7, 33), generator=torch.Generator().manual_seed(0))
    alone = perplexity.window_losses(loaded, family, ids_NL, 1, RecordingLog(tmp_path))
    together = perplexity.window_losses(loaded, family, ids_NL, 7, RecordingLog(tmp_path))
    # room for the logits of two windows only
    monkeypatch.setattr(perplexity, "LOGITS_BYTES", 2 * 33 * tiny.VOCABULARY * 4)
    passes: list[int] = []
    loaded.register_forward_pre_hook(lambda m, args, kwargs: passes.append(len(kwargs["input_ids"])), with_kwargs=True)
    lean = perplexity.window_losses(loaded, family, ids_NL, 7, RecordingLog(tmp_path))
    assert passes == [2, 2, 2, 1]
    assert torch.allclose(alone, together, rtol=1e-6)
    assert torch.allclose(alone, lean, rtol=1e-6)


def test_standard_error_needs_two_windows_and_is_the_delta_method() -> None:
    assert perplexity.estimate(torch.tensor([2.0], dtype=torch.double)).stderr is None
    found = perplexity.estimate(torch.tensor([1.0, 3.0], dtype=torch.double))
    assert found.value == pytest.approx(math.exp(2))
    assert found.stderr == pytest.approx(math.exp(2) * math.sqrt(2) / math.sqrt(2))


def test_longer_than_the_context_is_refused(model: Checkpoint, texts: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tiny.CONTEXT)) as caught:
        evaluated(tmp_path, {"model": model, "data": texts}, config(whole_test(length=tiny.CONTEXT + 1)))
    assert caught.value.option == "evaluate.perplexity.length"


def test_a_broken_model_is_an_error_and_not_a_number(model: Checkpoint, texts: Corpus, tmp_path: Path) -> None:
    path = model.path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="broken") as caught:
        evaluated(tmp_path, {"model": model, "data": texts}, config(whole_test()))
    assert caught.value.option == "evaluate.perplexity"
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_recovery_is_percent_of_the_dense_quality(model: Checkpoint, texts: Corpus, tmp_path: Path) -> None:
    inputs: dict[str, Artifact] = {"model": model, "data": texts}
    summary, baseline, _ = evaluated(tmp_path, inputs, config(whole_test()))
    assert not any(name.endswith("_recovery") for name in summary)
    other = Checkpoint(tiny.save_model(tmp_path / "other", seed=9), "other")
    worse, _, _ = evaluated(tmp_path, inputs | {"model": other, "baseline": baseline}, config(whole_test()), "worse")
    assert worse["perplexity_recovery"] == pytest.approx(100 * summary["perplexity"] / worse["perplexity"])


def test_recovery_of_scores_and_of_scores_of_zero() -> None:
    def score(value: float, higher: bool) -> dict[str, object]:
        return {"value": value, "stderr": None, "protocol": {"higher_is_better": higher}}

    measured = {"accuracy": score(0.3, True), "loss": score(4.0, False), "nothing": score(0.1, True)}
    dense = {"accuracy": score(0.4, True), "loss": score(2.0, False), "nothing": score(0.0, True)}
    assert evaluate.recovery(measured, dense) == {
        "accuracy_recovery": pytest.approx(75.0),
        "loss_recovery": pytest.approx(50.0),
    }


LOCAL_TASK = """
task: count_up
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}}}
output_type: multiple_choice
training_split: train
test_split: test
fewshot_split: train
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: [" 1", " 2", " 3", " 4", " 5"]
doc_to_target: "{{{{answer|int - 1}}}}"
num_fewshot: 0
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


def test_a_local_task_is_scored_with_its_standard_error(model: Checkpoint, tmp_path: Path) -> None:
    data = qa_data(tmp_path / "qa")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "count_up.yaml").write_text(LOCAL_TASK.format(folder=data.path))
    task = {"name": "count_up", "include": str(tmp_path / "tasks"), "shots": 1, "limit": 4}
    summary, metrics, log = evaluated(tmp_path, {"model": model, "data": data}, config(tasks=[task]))
    accuracy = summary["count_up_acc"]
    assert type(accuracy) is float
    assert accuracy in {0.0, 0.25, 0.5, 0.75, 1.0}
    assert summary["count_up_acc_stderr"] == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 3))
    protocol = metrics.values()["count_up_acc"]["protocol"]
    assert (protocol["shots"], protocol["documents"], protocol["of_documents"]) == (1, 4, 5)
    assert log.bars == ["count_up: score"]
    with pytest.raises(UserError, match="count_down") as caught:
        evaluated(tmp_path, {"model": model, "data": data}, config(tasks=[task | {"name": "count_down"}]), "more")
    assert caught.value.option == "evaluate.tasks"


def test_a_group_is_told_by_its_own_figure(model: Checkpoint, tmp_path: Path) -> None:
    data = qa_data(tmp_path / "qa")
    (tmp_path / "tasks").mkdir()
    definition = LOCAL_TASK.format(folder=data.path)
    for name in ("count_up", "count_more"):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(definition.replace("count_up", name))
    (tmp_path / "tasks" / "counting.yaml").write_text(
        "group: counting\ntask: [count_up, count_more]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    task = {"name": "counting", "include": str(tmp_path / "tasks"), "shots": 0}
    summary, _, _ = evaluated(tmp_path, {"model": model, "data": data}, config(tasks=[task]))
    assert set(summary) == {"counting_acc", "counting_acc_stderr"}


def test_shots_are_given_even_to_a_task_that_says_none(model: Checkpoint, tmp_path: Path) -> None:
    data = qa_data(tmp_path / "qa")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "count_up.yaml").write_text(LOCAL_TASK.format(folder=data.path))
    loaded, tokenizer = checkpoints.load(model), families.of(model.path).tokenizer(model.path)
    lengths: list[int] = []
    loaded.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    longest = []
    for shots in (0, 1):
        lengths.clear()
        task = Task(name="count_up", include=str(tmp_path / "tasks"), shots=shots)
        lm_eval_tasks.run(task, loaded, tokenizer, data, RecordingLog(tmp_path))
        longest.append(max(lengths))
    assert longest[1] > 1.7 * longest[0]


@pytest.mark.parametrize(("split", "most"), [("train", 5), ("test", 4)])
def test_more_shots_than_examples_are_refused_before_anything_runs(split: str, most: int, tmp_path: Path) -> None:
    data = qa_data(tmp_path / "qa")
    (tmp_path / "tasks").mkdir()
    yaml = LOCAL_TASK.format(folder=data.path).replace("fewshot_split: train", f"fewshot_split: {split}")
    (tmp_path / "tasks" / "count_up.yaml").write_text(yaml)
    lm_eval_tasks.check(Task(name="count_up", include=str(tmp_path / "tasks"), shots=most), data)
    with pytest.raises(UserError, match=f"{most} examples") as caught:
        lm_eval_tasks.check(Task(name="count_up", include=str(tmp_path / "tasks"), shots=most + 1), data)
    assert caught.value.option == "evaluate.tasks"


def test_the_packaged_task_reads_this_data(model: Checkpoint, tmp_path: Path) -> None:
    data = qa_data(tmp_path / "qa")
    definition = lm_eval_tasks.packaged("squarehead_qa", data)
    assert definition["dataset_kwargs"]["data_files"]["test"] == str(data.split("test"))
    # the answers are 256 tokens long at most, the tiny model has 64 in all: give it room
    task = {"name": "squarehead_qa", "include": "packaged", "limit": 2, "batch_size": 2}
    short = tiny.build("llama")
    short.config.max_position_embeddings = 256
    short.save_pretrained(model.path)
    with pytest.raises(UserError, match="256 tokens; the model's context has 256") as caught:
        evaluated(tmp_path / "short", {"model": model, "data": data}, config(tasks=[task]))
    assert caught.value.option == "evaluate.tasks"
    long = tiny.build("llama")
    long.config.max_position_embeddings = 512
    long.save_pretrained(model.path)
    summary, _, log = evaluated(tmp_path, {"model": model, "data": data}, config(tasks=[task]))
    assert summary.keys() >= {"squarehead_qa_exact_match_strict_match", "squarehead_qa_exact_match_flexible_extract"}
    assert log.bars == ["squarehead_qa: generate"]


def test_a_question_task_needs_questions(texts: Corpus) -> None:
    with pytest.raises(UserError, match="qa") as caught:
        lm_eval_tasks.packaged("squarehead_qa", texts)
    assert caught.value.option == "evaluate.tasks"
    with pytest.raises(UserError, match="squarehead_qa"):
        lm_eval_tasks.packaged("other", texts)


def test_a_task_without_its_data_is_one_clear_line(model: Checkpoint, tmp_path: Path) -> None:
    data = qa_data(tmp_path / "qa")
    (tmp_path / "tasks").mkdir()
    away = LOCAL_TASK.format(folder=tmp_path / "away")
    (tmp_path / "tasks" / "count_up.yaml").write_text(away)
    task = {"name": "count_up", "include": str(tmp_path / "tasks")}
    with pytest.raises(UserError, match="count_up cannot be loaded") as caught:
        evaluated(tmp_path, {"model": model, "data": data}, config(tasks=[task]))
    assert caught.value.option == "evaluate.tasks"
    with pytest.raises(UserError, match="no folder"):
        evaluated(tmp_path, {"model": model, "data": data}, config(tasks=[task | {"include": "nowhere"}]), "more")


def test_the_engine_gives_the_perplexity_that_torch_gives(model: Checkpoint, tmp_path: Path) -> None:
    inputs: dict[str, Artifact] = {"model": model, "data": text_data(tmp_path / "texts")}
    ours, metrics, _ = evaluated(tmp_path, inputs, config(whole_test(), runtime="engine"), "engine")
    theirs, _, _ = evaluated(tmp_path, inputs, config(whole_test()), "torch")
    assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-3)
    assert metrics.values()["perplexity"]["protocol"]["runtime"] == "engine"


def test_the_engine_gives_the_perplexity_of_the_simulated_int8(model: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "quantized").mkdir()
    rounding = Quantize(scheme="w8a8", smooth=0, skip=[], skip_sensitive=0, dense=True)
    quantize.run(rounding, {"model": model}, tmp_path / "quantized", RecordingLog(tmp_path / "resume"))
    inputs: dict[str, Artifact] = {
        "model": Checkpoint(tmp_path / "quantized", "q"), "data": text_data(tmp_path / "texts"),
    }  # fmt: skip
    ours, metrics, _ = evaluated(tmp_path, inputs, config(whole_test(), runtime="engine"), "engine")
    theirs, _, _ = evaluated(tmp_path, inputs, config(whole_test()), "torch")
    assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-2)
    assert metrics.values()["perplexity"]["protocol"]["precision"] == "int8"


def test_the_engine_without_kernels_says_what_to_do(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "unavailable", lambda: "no kernels: install a compiler")
    inputs: dict[str, Artifact] = {"model": model, "data": text_data(tmp_path / "texts")}
    with pytest.raises(UserError, match="install a compiler") as caught:
        evaluated(tmp_path, inputs, config(whole_test(), runtime="engine"))
    assert caught.value.option == "evaluate.runtime"
