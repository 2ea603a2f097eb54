"""Small random T5 and Whisper through every stage: masks, int8, texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from engine.architectures import reads_encoder
from stages import checkpoints, masks
from stages.calibrate import run as calibrate
from stages.calibrate.samples import load_samples
from stages.contracts import Artifact, Calibration, Checkpoint, Examples, UserError
from stages.dense import run as dense
from stages.dense.spec import DenseOptions
from stages.evaluate import run as evaluate
from stages.evaluate.spec import EvaluateOptions
from stages.finetune import run as finetune
from stages.finetune.spec import FinetuneOptions
from stages.finetune.teacher import CachedTeacher
from stages.prepare import run as prepare
from stages.prepare.spec import PrepareOptions
from stages.prune import run as prune
from stages.prune.spec import PruneOptions
from stages.quantize import quantized, sensitivity
from stages.quantize import run as quantize
from stages.quantize.quantized import Int8Linear
from tests import tiny_encoder_decoders as tiny_models
from tests.composed import config
from tests.recording import RecordingLog
from tests.running_stages import ran, weights_of
from tests.stage_options import TASK, calibrating, distilling, generating, pruning, quantizing, training
from tests.tiny_encoder_decoders import family_of
from tests.tiny_pairs import start

KINDS = ("t5", "t5_gated", "whisper")

# ---- every stage ----


@dataclass(frozen=True)
class Task:
    kind: str
    folder: Path
    model: Checkpoint
    """Dense, fine-tuned."""
    data: Examples
    calibration: Calibration

    def ran(self, stage: Any, asked: Any, name: str, **inputs: Artifact) -> tuple[Checkpoint, RecordingLog]:
        """The stage's result; its metrics are the fact `metrics`."""
        return ran(self.folder, stage, asked, name, inputs)


@pytest.fixture(scope="module", params=KINDS)
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Task:
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    model, corpus = start(kind, folder)
    prepared = ran(folder, prepare, PrepareOptions(), "examples", {"model": model, "data": corpus})[0]
    data = Examples(prepared.path, "examples")
    asked = DenseOptions(training=training(optimizer="adafactor"), distill=TASK)
    trained, log = ran(folder, dense, asked, "dense", {"model": model, "data": data})
    assert log.found["metrics"]["steps"] == 4
    inputs: dict[str, Artifact] = {"model": trained, "data": data}
    drawn = ran(folder, calibrate, calibrating(), "calibration", inputs)[0]
    return Task(kind, folder, trained, data, Calibration(drawn.path, "calibration"))


def linears(checkpoint: Checkpoint) -> set[str]:
    """Every linear but the head."""
    model = checkpoints.load(checkpoint)
    found = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Int8Linear)}
    return found - {"lm_head", "proj_out"}


@pytest.fixture(scope="module")
def half(task: Task) -> Checkpoint:
    asked = PruneOptions(prune=pruning(), sparsity=0.5)
    return task.ran(prune, asked, "half", model=task.model, calibration=task.calibration)[0]


@pytest.mark.parametrize(
    ("method", "pattern", "sparsity"),
    [("sparsegpt", "unstructured", 0.75), ("wanda", "unstructured", 0.75), ("magnitude", "unstructured", 0.75),
     ("sparsegpt", "2:4", 0.5)],
)  # fmt: skip
def test_pruning_is_exact_in_every_linear_and_touches_nothing_else(
    method: str, pattern: str, sparsity: float, task: Task
) -> None:
    asked = PruneOptions(prune=pruning(method=method, pattern=pattern), sparsity=sparsity)
    name = f"{method} {pattern.replace(':', ' of ')}"
    pruned, log = task.ran(prune, asked, name, model=task.model, calibration=task.calibration)
    found = masks.of(pruned)
    assert found.keys() == linears(task.model)
    assert len(found) == {"t5": 2 * 6 + 2 * 10, "t5_gated": 2 * 7 + 2 * 11, "whisper": 2 * 6 + 2 * 10}[task.kind]
    before, after = weights_of(task.model), weights_of(pruned)
    for linear, keep_OI in found.items():
        assert int(keep_OI.sum()) == keep_OI.numel() * (1 - sparsity), linear
        assert not after[f"{linear}.weight"][~keep_OI].any()
        if pattern == "2:4":
            assert (keep_OI.reshape(len(keep_OI), -1, 4).sum(-1) == 2).all()
    others = before.keys() - {f"{linear}.weight" for linear in found}
    assert all(torch.equal(before[other], after[other]) for other in others)
    kept = {"t5": "shared", "t5_gated": "lm_head", "whisper": "model.encoder.conv2"}[task.kind]
    assert f"{kept}.weight" in others
    assert log.found["metrics"]["sparsity"] == sparsity


LOSSES: dict[str, dict[str, float]] = {
    "ce": {"ce": 1},
    "kd": {"ce": 1, "kd": 1},
    "squarehead": {"squarehead": 1},
    "mix": {"ce": 0.5, "kd": 1, "squarehead": 1},
}


@pytest.mark.parametrize("loss", LOSSES)
def test_fine_tuning_moves_the_kept_weights_alone(loss: str, task: Task, half: Checkpoint) -> None:
    before = weights_of(task.model)
    asked = FinetuneOptions(training=training(weight_decay=0, lr=1e-3), distill=distilling(eps=1e-8, **LOSSES[loss]))
    tuned, log = task.ran(finetune, asked, f"tuned {loss}", model=half, data=task.data, teacher=task.model)
    assert masks.digest(masks.of(tuned)) == masks.digest(masks.of(half))
    old, new = weights_of(half), weights_of(tuned)
    for name, keep_OI in masks.of(half).items():
        moved_OI = old[f"{name}.weight"] != new[f"{name}.weight"]
        assert not moved_OI[~keep_OI].any()
        assert moved_OI[keep_OI].float().mean() > 0.5, name
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(task.model).items())
    named = {key.removeprefix("loss_") for key in log.points[0][1] if key.startswith("loss_")}
    assert named == LOSSES[loss].keys()
    if loss not in ("kd", "squarehead"):
        return
    cached = asked.model_copy(update={"training": training(weight_decay=0, lr=1e-3, teacher_cache_gb=1)})
    inputs: dict[str, Artifact] = {"model": half, "data": task.data, "teacher": task.model}
    _, again = task.ran(finetune, cached, f"cached {loss}", **inputs)
    assert "teacher states" in again.bars
    for (step, live), (other, stored) in zip(log.points, again.points, strict=True):
        assert step == other
        for key in live.keys() - {"tokens_per_second", "lr", "grad_norm"}:
            assert stored[key] == pytest.approx(live[key], rel=1e-2), (step, key)


def test_states_that_depend_on_the_batch_are_not_kept(tmp_path: Path) -> None:
    model = tiny_models.build("whisper")
    rows = tiny_models.rows("whisper", model, window="clip")
    live: Any = SimpleNamespace(head=model.proj_out)
    asked = training(teacher_cache_gb=1)
    with pytest.raises(UserError, match=r"finetune.teacher_cache_gb: .* data.speech.window=full"):
        CachedTeacher(live, rows, torch.arange(2), asked, RecordingLog(tmp_path), "finetune")


def test_a_sparse_model_is_pruned_further_quantized_and_writes_texts(task: Task, half: Checkpoint) -> None:
    asked = PruneOptions(prune=pruning(), sparsity=0.75)
    sparse, _ = task.ran(prune, asked, "sparse", model=half, calibration=task.calibration)
    before, after = masks.of(half), masks.of(sparse)
    assert all(not (after[name] & ~keep_OI).any() for name, keep_OI in before.items()), "a zero came back"
    int8, told = task.ran(
        quantize, quantizing(smooth=0.5, skip_sensitive=1), "int8", model=sparse, calibration=task.calibration
    )
    skipped, folded = told.found["skipped"], told.found["folded"]
    assert linears(task.model) == linears(int8)
    assert len(skipped) == 1
    assert skipped.keys() == set(int8.quantization["ignore"]) - {"lm_head", "proj_out"}
    # the encoder's last norm feeds the keys and values of all decoder blocks, and nothing else
    norm = {"whisper": "model.encoder.layer_norm"}.get(task.kind, "encoder.final_layer_norm")
    assert set(folded[norm]) == {name for name in after if reads_encoder(name)}
    sparse_model, int8_model = checkpoints.load(sparse), checkpoints.load(int8)
    for name, layer in quantized.linears(int8_model).items():
        assert not layer.weight[~after[name]].any()
        assert float((layer.weight == 0).float().mean()) >= 0.75
    samples = load_samples(task.calibration)
    with torch.no_grad():
        exact, rounded = (m(**family_of(task.kind).inputs(samples)).logits for m in (sparse_model, int8_model))
    real_BT = samples["labels"] >= 0
    assert (rounded - exact)[real_BT].norm() < 0.1 * exact[real_BT].norm()
    stored = {name: tensor for name, tensor in weights_of(int8).items() if tensor.dtype != torch.int8}
    given = weights_of(sparse)
    for name, tensor in stored.items():
        changed = folded.keys() | skipped.keys()
        if "scale" not in name and name.removesuffix(".weight").removesuffix(".bias") not in changed:
            assert torch.equal(tensor, given[name]), name
    generation = generating(max_new_tokens=5, beams=2)
    judged = EvaluateOptions.model_validate(
        {"perplexity": None, "generation": generation, "tasks": [], "batch_size": 3, "runtime": "torch"}
    )
    for name, model in (("sparse", sparse), ("int8", int8)):
        texts, told = task.ran(evaluate, judged, f"texts of {name}", model=model, data=task.data)
        metrics = told.found["metrics"]
        assert {"wer", "cer"} <= metrics.keys() if task.kind == "whisper" else {"bleu", "chrf"} <= metrics.keys()
        lines = (texts.path / "hypotheses.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == [f"test-{i}" for i in range(len(lines))]
        assert len(lines) == (2 if task.kind == "whisper" else 4)


@pytest.mark.parametrize("kind", ["t5", "whisper"])
def test_sensitivity_is_the_rise_of_the_models_own_loss(kind: str, tmp_path: Path) -> None:
    model = tiny_models.build(kind)
    batch = tiny_models.rows(kind, model).take(torch.arange(4))
    names = list(family_of(kind).prunable(model))
    # of both stacks, and the keys of cross-attention, which read the encoder from inside the decoder
    chosen = [
        names[0],
        names[11],
        next(name for name in names if reads_encoder(name)),
        names[-1],
    ]
    read = {name: batch[name] for name in ("input_ids", "attention_mask", "input_features") if name in batch}
    with torch.no_grad():
        for name in chosen:  # one large weight a row: the others round coarsely, and the loss rises clearly
            model.get_submodule(name).weight[:, 0] = 20
        found = sensitivity.loss_increases(
            model, family_of(kind), chosen, batch, quantized.Int8Linear.of, RecordingLog(tmp_path)
        )
        base = model(**read, labels=batch["labels"]).loss.item()
        for name in chosen:
            linear = model.get_submodule(name)
            model.set_submodule(name, Int8Linear.of(linear))
            rise = model(**read, labels=batch["labels"]).loss.item() - base
            model.set_submodule(name, linear)
            assert found[name] == pytest.approx(rise, abs=1e-5)
            assert abs(rise) > 1e-4


# ---- bad input ----


@pytest.mark.parametrize(
    ("chosen", "data", "reads"),
    [("whisper", "text", "speech"), ("whisper", "translation", "speech"), ("t5", "speech", "translation"),
     ("t5", "qa", "translation"), ("causal_lm", "speech", "messages or prompted or qa or text")],
)  # fmt: skip
def test_a_family_is_not_given_data_that_it_cannot_read(chosen: str, data: str, reads: str) -> None:
    with pytest.raises(UserError) as caught:
        config(f"model.family={chosen}", f"data={data}", "data.path=own.jsonl")
    assert caught.value.option == "data.format"
    assert caught.value.message == f"the family {chosen} reads data of format {reads}, got {data}"


def test_samples_and_lengths_beyond_what_there_is_are_refused(task: Task) -> None:
    cases: list[tuple[str, Any, Any]] = [("calibrate.samples", calibrate, calibrating(samples=41))]
    if task.kind == "whisper":
        long = training(sequence_length=65)
        cases += [
            ("calibrate.length", calibrate, calibrating(length=65)),
            ("finetune.sequence_length", finetune, FinetuneOptions(training=long, distill=TASK)),
            ("dense.training.sequence_length", dense, DenseOptions(training=long, distill=TASK)),
        ]
    for i, (option, stage, asked) in enumerate(cases):
        with pytest.raises(UserError) as caught:
            task.ran(stage, asked, f"refused {i}", model=task.model, data=task.data)
        assert caught.value.option == option
        assert "\n" not in str(caught.value)
