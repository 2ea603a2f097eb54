"""Dense and sparse training: masks under the optimizer, the teacher, resuming, divergence, schedules, packing."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from stages import checkpoints, families, masks
from stages.calibrate import run as calibrate
from stages.contracts import Artifact, Calibration, Checkpoint, Corpus, UserError
from stages.dense import run as dense
from stages.dense.spec import DenseOptions
from stages.devices import CPU
from stages.families.causal_lm import TensorRows
from stages.finetune import batches, objective, resume
from stages.finetune import run as finetune
from stages.finetune.optim import MaskedOptimizer, learning_rate
from stages.finetune.spec import CubicOptions, Distill, FinetuneOptions, Training
from stages.finetune.teacher import CachedTeacher, Teacher
from stages.prune.spec import Prune
from stages.schedule import cubic
from stages.tokens import training_rows
from tests import tiny
from tests.recording import RecordingLog
from tests.stage_options import pruning

FAMILY = families.get("causal_lm")
TASK = Distill(ce=1, kd=0, squarehead=0, temperature=1, eps=0, normalize="layer", skip_first=0)
ALL = Distill(ce=1, kd=0.5, squarehead=1, temperature=2, eps=1e-8, normalize="layer", skip_first=0)


def training(**changes: object) -> Training:
    given = {
        **tiny.TRAINING, "lr": 1e-2, "decay": "linear", "weight_decay": 0.1, "betas": (0.9, 0.99), "clip_norm": 1.0,
        "divergence": 5.0, "activation_checkpointing": False, "teacher_cache_gb": 0, "seed": 3,
    }  # fmt: skip
    return Training.model_validate({**given, **changes})


def slice_(distill: Distill = ALL, cubic_slice: CubicOptions | None = None, **changes: object) -> FinetuneOptions:
    return FinetuneOptions(training=training(**changes), distill=distill, cubic=cubic_slice)


def text_data(folder: Path) -> Corpus:
    tiny.save_texts(folder)
    return described(folder, "text")


def described(folder: Path, kind: str) -> Corpus:
    (folder / "meta.json").write_text(json.dumps({"facts": {"format": kind, "digest": "d"}, "metrics": {}}))
    return Corpus(folder, "data")


def qa_data(folder: Path) -> Corpus:
    folder.mkdir(parents=True)
    items = [tiny.sentences(1, seed)[0].split() for seed in range(24)]
    rows = [
        {"prompt": " ".join(words[: 2 + i % 3]), "completion": " " + " ".join(words[5 : 7 + i % 5]), "answer": "x"}
        for i, words in enumerate(items)
    ]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return described(folder, "qa")


def sparse(folder: Path, kind: str = "llama", seed: int = 0) -> Checkpoint:
    """A tiny model with random masks of about 60 %."""
    tiny.save_model(folder, kind, seed)
    model = FAMILY.load(folder)
    generator = torch.Generator().manual_seed(1)
    pruned = {n: torch.rand(m.weight.shape, generator=generator) > 0.6 for n, m in FAMILY.prunable(model).items()}
    masks.apply_(model, pruned)
    model.save_pretrained(folder)
    masks.save(pruned, folder / "masks.safetensors")
    return Checkpoint(folder, "sparse")


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    return {
        "model": sparse(tmp_path / "sparse"),
        "teacher": Checkpoint(tiny.save_model(tmp_path / "dense", seed=1), "dense"),
        "data": text_data(tmp_path / "texts"),
    }


def run(
    config: FinetuneOptions, inputs: Mapping[str, Artifact], folder: Path, name: str = "a"
) -> tuple[dict[str, float], Checkpoint, RecordingLog]:
    out, log = folder / f"out_{name}", RecordingLog(folder / f"resume_{name}")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return finetune.run(config, inputs, out, log), Checkpoint(out, name), log


def weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return load_file(checkpoint.path / "model.safetensors")


def assert_same_weights(a: Checkpoint, b: Checkpoint) -> None:
    left, right = weights_of(a), weights_of(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


# ---- masks and the optimizer ----


@pytest.mark.parametrize(
    ("kind", "optimizer"), [("llama", "adamw"), ("opt", "adamw"), ("mpt", "adamw"), ("llama", "adafactor")]
)
def test_pruned_weights_stay_zero_over_training_save_and_reload(kind: str, optimizer: str, tmp_path: Path) -> None:
    inputs = {
        "model": sparse(tmp_path / "sparse", kind),
        "teacher": Checkpoint(tiny.save_model(tmp_path / "dense", kind, seed=1), "dense"),
        "data": text_data(tmp_path / "texts"),
    }
    metrics, out, _ = run(slice_(steps=12, optimizer=optimizer), inputs, tmp_path)
    before, after = masks.of(inputs["model"]), masks.of(out)
    assert masks.digest(before) == masks.digest(after)
    assert metrics["sparsity"] == pytest.approx(masks.sparsity(before))
    model, start = checkpoints.load(out), checkpoints.load(inputs["model"])
    zeros = sum(int((~keep_OI).sum()) for keep_OI in before.values())
    assert metrics["model_sparsity"] == pytest.approx(zeros / sum(p.numel() for p in model.parameters()))
    for name, keep_OI in before.items():
        moved_OI = model.get_submodule(name).weight != start.get_submodule(name).weight
        assert not moved_OI[~keep_OI].any()
        assert moved_OI[keep_OI].float().mean() > 0.9


def masked_optimizer(keep: float, **changes: object) -> tuple[Any, MaskedOptimizer, masks.Masks]:
    model = tiny.build()
    pruned = {name: torch.rand(linear.weight.shape) < keep for name, linear in FAMILY.prunable(model).items()}
    return model, MaskedOptimizer(model, training(**changes), pruned), pruned


def backward(model: Any) -> None:
    ids_BT = torch.randint(0, tiny.VOCABULARY, (2, 8))
    model(input_ids=ids_BT, labels=ids_BT).loss.backward()


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_zeros_survive_momentum_and_weight_decay(kind: str) -> None:
    model, optimizer, pruned = masked_optimizer(0.5, weight_decay=0.5, optimizer=kind)
    for _ in range(20):
        backward(model)
        optimizer.step(0.05)
        masks.check(model, pruned)


def test_moments_of_newly_pruned_weights_are_zeroed() -> None:
    model, optimizer, _ = masked_optimizer(1.0)
    for _ in range(3):
        backward(model)
        optimizer.step(1e-2)
    grown = {name: torch.rand(linear.weight.shape) < 0.5 for name, linear in FAMILY.prunable(model).items()}
    optimizer.set_masks(grown)
    masks.check(model, grown)
    for name, keep_OI in grown.items():
        state = optimizer.inner.state[model.get_submodule(name).weight]
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not state[moment][~keep_OI].any()
            assert state[moment][keep_OI].count_nonzero() > 0
    backward(model)
    optimizer.step(1e-2)
    masks.check(model, grown)


def test_masks_may_grow_under_adafactor() -> None:
    """It has no momentum that could move a pruned weight, and its factored variances no entry of a single one."""
    model, optimizer, _ = masked_optimizer(1.0, optimizer="adafactor")
    for _ in range(3):
        backward(model)
        optimizer.step(1e-2)
    grown = {name: torch.rand(linear.weight.shape) < 0.5 for name, linear in FAMILY.prunable(model).items()}
    optimizer.set_masks(grown)
    before = {name: model.get_submodule(name).weight.detach().clone() for name in grown}
    backward(model)
    optimizer.step(1e-2)
    masks.check(model, grown)
    for name, keep_OI in grown.items():
        weight_OI = model.get_submodule(name).weight
        assert set(optimizer.inner.state[weight_OI]) == {"step", "row_var", "col_var"}
        assert (weight_OI != before[name])[keep_OI].float().mean() > 0.9


def test_gradients_are_masked_before_they_are_clipped() -> None:
    model, optimizer, pruned = masked_optimizer(0.2)
    backward(model)
    for name, keep_OI in pruned.items():
        model.get_submodule(name).weight.grad[~keep_OI] = 1e6
    ones = torch.ones(())
    kept = [p.grad * pruned.get(name.removesuffix(".weight"), ones) for name, p in model.named_parameters()]
    expected = torch.stack([gradient.norm() for gradient in kept]).norm()
    assert optimizer.step(1e-3).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_weight_decay_leaves_norms_alone(kind: str) -> None:
    model, optimizer, _ = masked_optimizer(1.0, weight_decay=0.5, optimizer=kind)
    decays = {id(p): group["weight_decay"] for group in optimizer.inner.param_groups for p in group["params"]}
    for parameter in model.parameters():
        assert decays[id(parameter)] == (0.5 if parameter.dim() >= 2 else 0.0)


def test_clip_norm_zero_leaves_gradients_alone(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    _, free, _ = run(slice_(steps=2, clip_norm=0), inputs, tmp_path, "free")
    _, loose, _ = run(slice_(steps=2, clip_norm=1e9), inputs, tmp_path, "loose")
    _, tight, _ = run(slice_(steps=2, clip_norm=1e-8), inputs, tmp_path, "tight")
    assert_same_weights(free, loose)
    with pytest.raises(AssertionError):
        assert_same_weights(free, tight)


# ---- steps, learning rates, rows ----


def test_learning_rate_closed_form() -> None:
    config = training(lr=1.0, warmup_steps=3)
    rates = [learning_rate(step, 11, config) for step in range(12)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0])
    cosine = training(lr=2.0, warmup_steps=0, decay="cosine")
    assert [learning_rate(step, 4, cosine) for step in (0, 1, 2, 4)] == pytest.approx(
        [2, 1 + math.sqrt(0.5), 1, 0], abs=1e-12
    )
    constant = training(lr=2.0, warmup_steps=1, decay="constant")
    assert [learning_rate(step, 4, constant) for step in range(4)] == [1, 2, 2, 2]


def test_epochs_become_steps_by_rows() -> None:
    assert batches.count_steps(training(steps=0, epochs=2), 10) == 5  # 20 rows in batches of 4
    assert batches.count_steps(training(steps=0, epochs=0.5), 10) == 2
    assert batches.count_steps(training(steps=7), 10) == 7


def test_every_epoch_is_a_shuffle_of_all_rows_and_begins_alike_whatever_its_length() -> None:
    long = batches.order(10, 35, seed=5)
    assert torch.equal(batches.order(10, 12, seed=5), long[:12])
    epochs = [long[:10], long[10:20], long[20:30]]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(batches.order(10, 10, seed=6), epochs[0])


def test_grouping_by_length_moves_rows_between_neighbouring_steps_only() -> None:
    sizes_R = torch.arange(100) % 10
    order_N = batches.order(100, 3 * batches.STEPS_GROUPED * 4, seed=5)
    grouped_N = batches.grouped(order_N, sizes_R, 4, seed=5)
    assert torch.equal(grouped_N, batches.grouped(order_N, sizes_R, 4, seed=5))
    assert not torch.equal(grouped_N, batches.grouped(order_N, sizes_R, 4, seed=6))
    span = batches.STEPS_GROUPED * 4
    for some_N, instead_N in zip(order_N.split(span), grouped_N.split(span), strict=True):
        assert sorted(some_N.tolist()) == sorted(instead_N.tolist())
        steps_SB = sizes_R[instead_N].view(-1, 4)
        assert (steps_SB.max(1).values - steps_SB.min(1).values).max() <= 1
        assert not torch.equal(steps_SB[:, 0].sort().values, steps_SB[:, 0])


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_packed_rows_have_the_loss_of_their_items(kind: str, tmp_path: Path) -> None:
    """What a token sees and is taught does not depend on its neighbours in the row; OPT, which takes positions but does
    not look there for where an item begins, gets rows of one item."""
    data, folder = qa_data(tmp_path / "qa"), tiny.save_model(tmp_path / "m", kind)
    model, tokenizer = FAMILY.load(folder), FAMILY.tokenizer(folder)
    packed = training_rows(data, "train", tokenizer, 48, model, "")
    items = [(row["prompt"] + row["completion"]) for row in map(json.loads, data.split("train").open())]
    assert len(packed["input_ids"]) < len(items) / 2 if kind == "llama" else len(packed["input_ids"]) == len(items)
    assert ("position_ids" in packed) == (kind == "llama")
    head, total, count = FAMILY.head(model), 0.0, 0
    for item in items:
        ids_BT = torch.tensor([[*tokenizer(item)["input_ids"], tokenizer.eos_token_id]])
        learned = ids_BT.shape[1] - 1
        total += model(input_ids=ids_BT, labels=ids_BT).loss.item() * learned
        count += learned
    rows = TensorRows(packed, FAMILY)
    found = objective.validation_loss(model, head, FAMILY, rows, len(rows), 2, "fp32")
    assert found == pytest.approx(total / count, rel=1e-5)


def test_items_begin_and_end_as_the_tokenizer_has_it_in_evaluation(tmp_path: Path) -> None:
    data, folder = qa_data(tmp_path / "qa"), tiny.save_model(tmp_path / "m")
    model, tokenizer = FAMILY.load(folder), FAMILY.tokenizer(folder)
    plain = training_rows(data, "train", tokenizer, 48, model, "", packed=False)
    bos, eos = 5, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="bos $A", special_tokens=[("bos", bos)])
    begun = training_rows(data, "train", tokenizer, 48, model, "", packed=False)
    assert begun["input_ids"][:, 0].tolist() == [bos] * len(begun["input_ids"])
    assert torch.equal(begun["input_ids"][:, 1:], plain["input_ids"][:, :-1])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A eos", special_tokens=[("eos", eos)])
    ended = training_rows(data, "train", tokenizer, 48, model, "", packed=False)
    assert torch.equal(ended["input_ids"], plain["input_ids"]), "one eos is enough"
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end of sequence"):
        training_rows(data, "train", tokenizer, 48, model, "", packed=False)


def test_mpt_trains_on_padded_items(tmp_path: Path) -> None:
    inputs = {
        "model": sparse(tmp_path / "sparse", "mpt"),
        "teacher": Checkpoint(tiny.save_model(tmp_path / "dense", "mpt", seed=1), "dense"),
        "data": qa_data(tmp_path / "qa"),
    }
    metrics, _, log = run(slice_(steps=20, sequence_length=48), inputs, tmp_path)
    assert metrics["validation_loss"] < log.points[0][1]["loss_ce"] - 0.5


# ---- the teacher ----


def test_no_teacher_is_read_without_distillation(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    del inputs["teacher"]
    _, _, log = run(slice_(TASK, steps=2), inputs, tmp_path)
    assert {name for name in log.points[0][1] if name.startswith("loss")} == {"loss", "loss_ce"}
    with pytest.raises(UserError, match="need a teacher"):
        run(slice_(ALL, steps=2), inputs, tmp_path, "b")


def test_a_changed_teacher_is_noticed(inputs: dict[str, Artifact]) -> None:
    assert isinstance(inputs["teacher"], Checkpoint)
    teacher = Teacher(inputs["teacher"], FAMILY, training(), all_layers=True, device=CPU)
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    teacher.check_untouched()
    next(teacher.model.parameters()).data[0, 0] += 1
    with pytest.raises(AssertionError, match="changed the teacher"):
        teacher.check_untouched()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cached_states_are_those_of_the_live_teacher(
    precision: str, inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that a killed run left are used again, on a disk that has no room for others."""
    teacher = inputs["teacher"]
    assert isinstance(teacher, Checkpoint)
    assert isinstance(inputs["data"], Corpus)
    config = training(teacher_cache_gb=1, precision=precision)
    live = Teacher(teacher, FAMILY, config, all_layers=True, device=CPU)
    rows = FAMILY.rows(live.model, teacher.path, inputs["data"], "train", 32, "")
    log = RecordingLog(tmp_path / "resume")
    cached = CachedTeacher(live, rows, torch.tensor([5, 2, 9, 2]), config, log, "finetune")
    asked = torch.tensor([9, 2])
    batch = rows.take(asked)
    for found, expected in zip(cached.states(asked, batch), live.states(asked, batch), strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected.float(), rtol=2**-7, atol=1e-3)
    again = RecordingLog(tmp_path / "resume")
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    CachedTeacher(live, rows, torch.tensor([5, 2, 9, 2]), config, again, "finetune")
    assert log.bars
    assert not again.bars, "a complete cache was made again"


@pytest.mark.parametrize("all_layers", [True, False])
def test_states_of_padded_rows_are_cached_without_the_padding(
    all_layers: bool, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    teacher, data = inputs["teacher"], qa_data(tmp_path / "qa")
    assert isinstance(teacher, Checkpoint)
    config = training(teacher_cache_gb=1)
    live = Teacher(teacher, FAMILY, config, all_layers, CPU)
    rows = FAMILY.rows(live.model, teacher.path, data, "train", 48, "", packed=False)
    log = RecordingLog(tmp_path / "resume")
    cached = CachedTeacher(live, rows, torch.arange(12), config, log, "finetune")
    layers = 2 if all_layers else 1
    stored = int(rows.sizes[:12].sum()) * layers * 32 * 2
    assert (log.resume / "teacher_states.bf16").stat().st_size == stored
    asked = torch.tensor([7, 0, 11])
    batch = rows.take(asked)
    use_BT = batch["use"].bool()
    assert not use_BT.all()
    found = cached.states(asked, batch)
    assert len(found) == layers
    for h_BTD, expected_BTD in zip(found, live.states(asked, batch), strict=True):
        torch.testing.assert_close(h_BTD[use_BT].float(), expected_BTD[use_BT], rtol=2**-7, atol=1e-3)
        assert not h_BTD[~use_BT].any()


def test_training_from_the_cache_equals_the_live_teacher(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    live, _, _ = run(slice_(steps=6), inputs, tmp_path, "live")
    cached, _, log = run(slice_(steps=6, teacher_cache_gb=1), inputs, tmp_path, "cached")
    assert cached["validation_loss"] == pytest.approx(live["validation_loss"], rel=2e-3)
    assert log.bars == ["teacher states", "finetune"]
    # rows x tokens x layers x width x 2 bytes
    assert (log.resume / "teacher_states.bf16").stat().st_size == 24 * 32 * 2 * 32 * 2


def test_a_cache_over_budget_is_refused_before_any_work(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"9\.83e-05 GB") as caught:
        run(slice_(steps=6, teacher_cache_gb=1e-6), inputs, tmp_path)
    assert caught.value.option == "finetune.teacher_cache_gb"
    assert not list((tmp_path / "resume_a").iterdir())


def test_a_teacher_of_another_shape_is_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    wide = tmp_path / "opt"
    tiny.save_model(wide, "opt")
    config = json.loads((wide / "config.json").read_text()) | {"num_hidden_layers": 1}
    (wide / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="of the teacher are"):
        run(slice_(), inputs | {"teacher": Checkpoint(wide, "wide")}, tmp_path)


# ---- resuming, divergence ----


class Killed(Exception):  # noqa: N818
    pass


class DyingLog(RecordingLog):
    """Stops the stage when step `last` has been logged."""

    def __init__(self, folder: Path, last: int) -> None:
        super().__init__(folder)
        self.last = last

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        super().metrics(values, step)
        if step == self.last:
            raise Killed


def timeless(points: list[tuple[int, dict[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    return [(step, {**values, "tokens_per_second": 0}) for step, values in points]


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
    asked = slice_(steps=9, checkpoint_every=2, eval_every=3, optimizer=optimizer)
    whole, whole_out, whole_log = run(asked, inputs, tmp_path, "whole")
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
    whole, whole_out, _ = run(slice_(steps=3), inputs, tmp_path, "whole")
    half = tmp_path / "resume_b" / "writing"
    half.mkdir(parents=True)
    (half / "weights.safetensors").write_bytes(b"half")
    found, out, _ = run(slice_(steps=3), inputs, tmp_path, "b")
    assert found["validation_loss"] == whole["validation_loss"]
    assert_same_weights(out, whole_out)


def test_divergence_stops_with_the_step_and_keeps_the_last_good_checkpoint(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    config = slice_(TASK, steps=40, lr=30.0, clip_norm=0, warmup_steps=30, checkpoint_every=1, divergence=1.5)
    with pytest.raises(UserError, match=r"diverged at step \d+: loss .* over 1.5 times .*step_0") as caught:
        run(config, inputs, tmp_path)
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


# ---- the cubic schedule ----


def prune_config(method: str) -> Prune:
    return pruning(method=method, micro_batch_size=4)


def calibration(folder: Path) -> Calibration:
    folder.mkdir()
    ids_NL = torch.randint(0, tiny.VOCABULARY, (4, 32), generator=torch.Generator().manual_seed(0)).int()
    save_file({"input_ids": ids_NL, "labels": ids_NL.clone(), "use": torch.ones_like(ids_NL)}, folder / calibrate.FILE)
    return Calibration(folder, "calibration")


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_cubic_schedule_ends_exactly_and_is_nested(method: str, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    schedule = CubicOptions(
        prune=prune_config(method), initial=0.0, final=0.75, begin_step=1, end_step=8, update_every=3
    )
    inputs = inputs | {"model": inputs["teacher"], "calibration": calibration(tmp_path / "calibration")}
    seen: list[masks.Masks] = []

    class Watching(RecordingLog):
        def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
            super().metrics(values, step)
            if checkpoint := resume.last(self.resume):
                seen.append(masks.load(checkpoint / "masks.safetensors"))

    log, out = Watching(tmp_path / "resume"), tmp_path / "out"
    out.mkdir()
    metrics = finetune.run(slice_(cubic_slice=schedule, steps=10, checkpoint_every=1), inputs, out, log)
    assert metrics["sparsity"] == 0.75
    by_step = {step: values["sparsity"] for step, values in log.points if "sparsity" in values}
    for step, sparsity in by_step.items():
        last_update = max((at for at in (0, 4, 7, 8) if at <= step), default=0)
        expected = cubic(last_update, 1, 8, 0.0, 0.75)
        assert sparsity == pytest.approx(expected, abs=0.02 if method == "wanda" else 1e-3)
    for earlier, later in itertools.pairwise(seen):
        assert not any(torch.any(later[name] & ~keep_OI) for name, keep_OI in earlier.items())
    assert masks.sparsity(seen[-1]) == 0.75
    assert sum(bar.startswith("prune") for bar in log.bars) == 3


def test_pruning_inside_training_is_no_divergence(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    """SquareHead alone starts at 0 where the student is still the teacher."""
    schedule = CubicOptions(
        prune=prune_config("magnitude"), initial=0.0, final=0.75, begin_step=0, end_step=4, update_every=2
    )
    feature = ALL.model_copy(update={"ce": 0.0, "kd": 0.0})
    inputs = inputs | {"model": inputs["teacher"]}
    metrics, _, log = run(slice_(feature, schedule, steps=6, divergence=1.5, lr=1e-4), inputs, tmp_path)
    assert log.points[0][1]["loss"] == 0
    assert metrics["sparsity"] == 0.75


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_cubic_run_resumes_with_its_masks(optimizer: str, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    schedule = CubicOptions(
        prune=prune_config("magnitude"), initial=0.0, final=0.75, begin_step=0, end_step=6, update_every=2
    )
    inputs = inputs | {"model": inputs["teacher"]}
    config = slice_(cubic_slice=schedule, steps=8, checkpoint_every=2, optimizer=optimizer)
    _, whole, _ = run(config, inputs, tmp_path, "whole")
    dying, out = DyingLog(tmp_path / "resume", last=5), tmp_path / "out"
    out.mkdir()
    with pytest.raises(Killed):
        finetune.run(config, inputs, out, dying)
    finetune.run(config, inputs, out, RecordingLog(dying.resume))
    assert_same_weights(whole, Checkpoint(out, "resumed"))


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
    plain, _, _ = run(slice_(steps=6), inputs, tmp_path, "plain")
    recomputed, _, _ = run(slice_(steps=6, activation_checkpointing=True), inputs, tmp_path, "recomputed")
    assert recomputed["validation_loss"] == pytest.approx(plain["validation_loss"], rel=1e-5)
    both = slice_(steps=6, precision="bf16", activation_checkpointing=True)
    bf16, bf16_out, _ = run(both, inputs, tmp_path, "bf16")
    assert bf16["validation_loss"] == pytest.approx(plain["validation_loss"], rel=2e-2)
    assert bf16["validation_loss"] != plain["validation_loss"]
    assert all(tensor.dtype == torch.float32 for tensor in weights_of(bf16_out).values())


def test_no_steps_pass_the_model_through(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    assert isinstance(inputs["model"], Checkpoint)
    metrics, out, _ = run(slice_(steps=0), inputs, tmp_path)
    assert_same_weights(inputs["model"], out)
    assert metrics["steps"] == 0
    assert "train_loss" not in metrics


def test_sequences_longer_than_the_context_are_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(slice_(sequence_length=tiny.CONTEXT + 1), inputs, tmp_path)
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
        run(slice_(), inputs, tmp_path)


def test_skipping_all_tokens_is_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(slice_(ALL.model_copy(update={"skip_first": 32})), inputs, tmp_path)
    assert caught.value.option == "distill.skip_first"


def test_an_unresolved_precision_is_a_bug(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not resolved"):
        run(slice_(precision="auto"), inputs, tmp_path)
