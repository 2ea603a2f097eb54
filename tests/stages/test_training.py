"""Dense and sparse training: resuming, divergence, what it achieves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.contracts import Artifact, Checkpoint, UserError
from stages.dense import run as dense
from stages.dense.spec import DenseOptions
from stages.finetune import resume
from stages.finetune import run as finetune
from tests import tiny
from tests.recording import DyingLog, Killed, RecordingLog
from tests.running_stages import assert_same_weights, finetuned, timeless, weights_of
from tests.stage_options import ALL, TASK, finetuning, training
from tests.tiny import text_data
from tests.tiny_training import FAMILY, sparse

# ---- resuming, divergence ----


@pytest.mark.parametrize(("kind", "optimizer"), [("llama", "adamw"), ("opt", "adamw"), ("llama", "adafactor")])
def test_a_resumed_run_equals_an_uninterrupted_one(kind: str, optimizer: str, tmp_path: Path) -> None:
    inputs = {
        "model": sparse(tmp_path / "sparse", kind),
        "teacher": Checkpoint(tiny.save_model(tmp_path / "dense", kind, seed=1), "dense"),
        "data": text_data(tmp_path / "texts"),
    }
    if kind == "opt":
        config = json.loads((inputs["model"].path / "config.json").read_text()) | {"dropout": 0.2}
        (inputs["model"].path / "config.json").write_text(json.dumps(config))
    asked = finetuning(steps=9, checkpoint_every=2, eval_every=3, optimizer=optimizer)
    whole, whole_out, whole_log = finetuned(asked, inputs, tmp_path, "whole")
    dying, out = DyingLog(tmp_path / "resume", last=5), tmp_path / "out"
    out.mkdir()
    with pytest.raises(Killed):
        finetune.run(asked, inputs, out, dying)
    assert sorted(path.name for path in dying.resume.iterdir()) == ["step_00000002", "step_00000004"]
    log = RecordingLog(dying.resume)
    log.points = dying.points
    metrics = finetune.run(asked, inputs, out, log)
    assert_same_weights(whole_out, Checkpoint(out, "resumed"))
    assert {**metrics, "tokens_per_second": 0} == {**whole, "tokens_per_second": 0}
    assert timeless(log.points) == timeless(whole_log.points)


def test_a_checkpoint_half_written_is_not_resumed_from(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    whole, whole_out, _ = finetuned(finetuning(steps=3), inputs, tmp_path, "whole")
    half = tmp_path / "resume_b" / "writing"
    half.mkdir(parents=True)
    (half / "weights.safetensors").write_bytes(b"half")
    found, out, _ = finetuned(finetuning(steps=3), inputs, tmp_path, "b")
    assert found["validation_loss"] == whole["validation_loss"]
    assert_same_weights(out, whole_out)


def test_divergence_stops_with_the_step_and_keeps_the_last_good_checkpoint(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    config = finetuning(TASK, steps=40, lr=30.0, clip_norm=0, warmup_steps=30, checkpoint_every=1, divergence=1.5)
    with pytest.raises(UserError, match=r"diverged at step \d+: loss .* over 1.5 times .*step_0") as caught:
        finetuned(config, inputs, tmp_path)
    assert caught.value.option == "finetune.divergence"
    kept = resume.last(tmp_path / "resume_a")
    assert kept is not None
    assert int(kept.name.removeprefix("step_")) > 0
    assert all(torch.isfinite(tensor).all() for tensor in load_file(kept / "weights.safetensors").values())


def test_infinite_loss_stops_dense_training(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    config = DenseOptions(training=training(steps=30, lr=1e30, clip_norm=0, warmup_steps=0), distill=TASK)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="diverged at step 2") as caught:
        dense.run(config, inputs, tmp_path / "out", RecordingLog(tmp_path / "resume"))
    assert caught.value.option == "dense.training.lr"


# ---- what training achieves, and what it refuses ----


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 1e-2), ("adafactor", 0.3)])
def test_dense_training_learns_the_toy_text(
    optimizer: str, lr: float, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    out, log = tmp_path / "out", RecordingLog(tmp_path / "resume")
    out.mkdir()
    steps = {"steps": 40, "batch_size": 8, "micro_batch_size": 8, "eval_every": 20}
    config = DenseOptions(training=training(**steps, optimizer=optimizer, lr=lr), distill=TASK)
    metrics = dense.run(config, {"model": inputs["teacher"], "data": inputs["data"]}, out, log)
    validation = [(step, values["validation_loss"]) for step, values in log.points if "validation_loss" in values]
    assert [step for step, _ in validation] == [20, 40]
    assert metrics["validation_loss"] == validation[-1][1] < 3.6 < log.points[0][1]["loss"]
    assert metrics["steps"] == 40
    assert metrics["tokens"] == 40 * 8 * 32
    assert metrics["sparsity"] == 0
    losses = [values["loss"] for _, values in log.points if "loss" in values]
    assert metrics["train_loss"] == pytest.approx(sum(losses[-10:]) / 10)
    assert set(log.points[0][1]) == {"loss", "loss_ce", "lr", "grad_norm", "tokens_per_second"}
    assert Checkpoint(out, "").masks is None
    assert FAMILY.tokenizer(out)("the river")["input_ids"]


def test_bf16_and_activation_checkpointing_train_alike(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    plain, _, _ = finetuned(finetuning(steps=6), inputs, tmp_path, "plain")
    recomputed, _, _ = finetuned(finetuning(steps=6, activation_checkpointing=True), inputs, tmp_path, "recomputed")
    assert recomputed["validation_loss"] == pytest.approx(plain["validation_loss"], rel=1e-5)
    both = finetuning(steps=6, precision="bf16", activation_checkpointing=True)
    bf16, bf16_out, _ = finetuned(both, inputs, tmp_path, "bf16")
    assert bf16["validation_loss"] == pytest.approx(plain["validation_loss"], rel=2e-2)
    assert bf16["validation_loss"] != plain["validation_loss"]
    assert all(tensor.dtype == torch.float32 for tensor in weights_of(bf16_out).values())


def test_no_steps_pass_the_model_through(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    assert isinstance(inputs["model"], Checkpoint)
    metrics, out, _ = finetuned(finetuning(steps=0), inputs, tmp_path)
    assert_same_weights(inputs["model"], out)
    assert metrics["steps"] == 0
    assert "train_loss" not in metrics


def test_sequences_longer_than_the_context_are_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        finetuned(finetuning(sequence_length=tiny.CONTEXT + 1), inputs, tmp_path)
    assert caught.value.option == "finetune.sequence_length"
    out = tmp_path / "out"
    out.mkdir()
    config = DenseOptions(training=training(sequence_length=tiny.CONTEXT + 1), distill=TASK)
    with pytest.raises(UserError) as caught:
        dense.run(config, inputs, out, RecordingLog(tmp_path / "resume"))
    assert caught.value.option == "dense.training.sequence_length"


def test_weights_that_are_not_finite_are_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    assert isinstance(inputs["model"], Checkpoint)
    path = inputs["model"].path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.norm\.weight holds NaN"):
        finetuned(finetuning(), inputs, tmp_path)


def test_skipping_all_tokens_is_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        finetuned(finetuning(ALL.model_copy(update={"skip_first": 32})), inputs, tmp_path)
    assert caught.value.option == "distill.skip_first"


def test_an_unresolved_precision_is_a_bug(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not resolved"):
        finetuned(finetuning(precision="auto"), inputs, tmp_path)
