"""Small random T5 and Whisper through every stage: Hessians of cross-attention, the walk, masks, int8, texts."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.architectures import reads_encoder
from stages import checkpoints, families, masks
from stages.calibrate import run as calibrate
from stages.calibrate.samples import load_samples
from stages.contracts import Artifact, Calibration, Checkpoint, Corpus, Examples, UserError
from stages.dense import run as dense
from stages.dense.spec import DenseOptions
from stages.evaluate import run as evaluate
from stages.evaluate.spec import EvaluateOptions
from stages.families import Batch
from stages.families.encoder_decoder import in_encoder
from stages.finetune import run as finetune
from stages.finetune.spec import FinetuneOptions
from stages.finetune.teacher import CachedTeacher
from stages.prepare import run as prepare
from stages.prepare.spec import PrepareOptions
from stages.prune import run as prune
from stages.prune.sequential import Collector, Group
from stages.prune.spec import PruneOptions
from stages.prune.walk import Walk, at_rest
from stages.quantize import quantized, sensitivity
from stages.quantize import run as quantize
from stages.quantize.quantized import Int8Linear
from stages.scratch import run as scratch
from stages.scratch.spec import Scratch, ScratchOptions
from tests import tiny, tiny_whisper
from tests import tiny_encoder_decoders as tiny_models
from tests.composed import config
from tests.recording import RecordingLog
from tests.stage_options import pruning
from tests.stages.test_distill import weights
from tests.stages.test_generation_metrics import LABEL, settings, stage_output
from tests.stages.test_pruning import calibrating
from tests.stages.test_quantization import config as rounding
from tests.stages.test_training import TASK, training

KINDS = ("t5", "t5_gated", "whisper")


def family(kind: str) -> Any:
    return families.get(tiny_models.family(kind))


# ---- the walk and the Hessians ----


@dataclass
class Walked:
    """A model that was pruned at random while it was walked."""

    kind: str
    model: Any
    batches: list[Batch]
    groups: dict[str, list[Group]]
    """Of each block, as it was collected."""
    expected: dict[str, Tensor]
    """Linear -> `2/n X Xᵀ` of a plain forward at that time, over the real tokens."""
    last: list[dict[str, Tensor]]
    """Of each micro-batch: stack -> the last block's output that the walk ends with."""

    def group(self, linear: str) -> Group:
        return next(group for groups in self.groups.values() for group in groups if linear in group.names)


@pytest.fixture(scope="module", params=KINDS)
def walked(request: pytest.FixtureRequest) -> Walked:
    kind: str = request.param
    model = tiny_models.build(kind)
    samples = tiny_models.rows(kind, model).take(torch.arange(4))
    zeros = tiny_models.zeros(kind, model)
    walk = Walk(model, family(kind), samples, "fp32", 2)
    found = Walked(kind, model, walk.batches, {}, {}, [])
    with at_rest(model):
        for block, module in walk.blocks:
            linears = {f"{block}.{name}": m for name, m in module.named_modules() if isinstance(m, nn.Linear)}
            found.expected |= hessians(kind, model, linears, walk.batches)
            found.groups[block] = Collector(linears, family(kind), False).collect(walk)
            masks.apply_(model, {name: zeros[name] for name in linears})
            if block == walk.blocks[-1][0]:
                with ExitStack() as stack:
                    keep_last_outputs(kind, model, found.last, stack)
                    walk.advance()
            else:
                walk.advance()
    return found


def hessians(kind: str, model: Any, linears: dict[str, nn.Linear], batches: list[Batch]) -> dict[str, Tensor]:
    """By plain forwards: of T5 on each row alone and without padding. Whisper hears the padding of a batch, too; its
    real tokens are chosen by their numbers here."""
    seen: dict[str, list[Tensor]] = {name: [] for name in linears}
    each = [tiny_models.rows(kind, model).take(torch.tensor([i])) for i in range(4)]
    rows = [family(kind).trim(row) for row in each] if kind != "whisper" else batches

    def keep(name: str) -> Any:
        def hook(module: Any, args: Any) -> None:
            X_BTI = args[0]
            if kind != "whisper":
                seen[name].append(X_BTI.flatten(0, 1))
                return
            reads_sound = ".encoder." in name or "encoder_attn.k_proj" in name or "encoder_attn.v_proj" in name
            lengths = [f // 2 for f in now["frames"].tolist()] if reads_sound else (now["labels"] >= 0).sum(1).tolist()
            seen[name] += [X_TI[:length] for X_TI, length in zip(X_BTI, lengths, strict=True)]

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, linear in linears.items():
            stack.callback(linear.register_forward_pre_hook(keep(name)).remove)
        for now in rows:
            model(**family(kind).inputs(now), use_cache=False)
    joined = {name: torch.cat(parts) for name, parts in seen.items()}
    return {name: 2 / len(X_TI) * X_TI.T @ X_TI for name, X_TI in joined.items()}


def keep_last_outputs(kind: str, model: Any, into: list[dict[str, Tensor]], stack: ExitStack) -> None:
    """A new dictionary for each forward, filled by the last block of each stack."""
    adapter = family(kind)
    for name in adapter.stacks(model):
        block = model.get_submodule(name)[-1]

        def keep(module: Any, args: Any, output: Any, name: str = name) -> None:
            if in_encoder(name):
                into.append({})
            into[-1][name] = output[0] if isinstance(output, tuple) else output

        stack.callback(block.register_forward_hook(keep, prepend=True).remove)


def whole(H_II: Tensor) -> Tensor:
    return H_II.triu() + H_II.triu(1).T


def test_every_hessian_is_that_of_the_real_tokens_behind_the_pruned_blocks(walked: Walked) -> None:
    assert sum(len(group.names) for groups in walked.groups.values() for group in groups) == len(walked.expected)
    for name, expected_II in walked.expected.items():
        found_II = whole(walked.group(name).H_II)
        torch.testing.assert_close(found_II, expected_II, rtol=1e-4, atol=1e-5 * float(expected_II.abs().max()))


def test_cross_attention_reads_the_final_states_of_the_pruned_encoder(walked: Walked) -> None:
    kind, whisper = walked.kind, walked.kind == "whisper"
    block = "model.decoder.layers.0.encoder_attn" if whisper else "decoder.block.0.layer.1.EncDecAttention"
    q, k, v = (f"{block}.{part}{'_proj' if whisper else ''}" for part in "qkv")
    assert walked.group(k).names == [k, v]
    assert walked.group(q).names == [q]
    sources = {"t5": 7 + 3 + 5 + 2, "whisper": 35 + 15 + 25 + 10}[tiny_models.family(kind)]
    assert (walked.group(k).seen, walked.group(q).seen) == (sources, 4 + 6 + 2 + 5)

    def hessian(model: Any) -> Tensor:
        encoder = model.model.encoder if whisper else model.encoder
        parts = []
        for batch in walked.batches:
            read = {name: batch[name] for name in ("input_ids", "attention_mask", "input_features") if name in batch}
            h_BSD = encoder(**read).last_hidden_state
            lengths = batch["frames"] // 2 if whisper else batch["attention_mask"].sum(1)
            parts += [h_SD[:length] for h_SD, length in zip(h_BSD, lengths.tolist(), strict=True)]
        X_TI = torch.cat(parts)
        return 2 / len(X_TI) * X_TI.T @ X_TI

    with torch.no_grad():
        pruned_II, dense_II = hessian(walked.model), hessian(tiny_models.build(kind))
    torch.testing.assert_close(whole(walked.group(k).H_II), pruned_II, rtol=1e-4, atol=1e-5)
    assert (pruned_II - dense_II).norm() > 0.05 * dense_II.norm()


def test_the_walk_ends_where_the_pruned_model_does(walked: Walked) -> None:
    """T5's position bias, which its first block makes, reaches the blocks that are walked later."""
    kind, model, adapter = walked.kind, walked.model, family(walked.kind)

    def plain() -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        with ExitStack() as stack, torch.no_grad():
            keep_last_outputs(kind, model, found, stack)
            for batch in walked.batches:
                model(**adapter.inputs(batch), use_cache=False)
        return found

    assert len(walked.last) == len(walked.batches) == 2
    for walked_to, expected in zip(walked.last, plain(), strict=True):
        assert walked_to.keys() == expected.keys() == set(adapter.stacks(model))
        torch.testing.assert_close(walked_to, expected, rtol=1e-5, atol=1e-5)
    if kind == "whisper":
        return
    # the later blocks without a bias put out something else
    for stack in (model.encoder, model.decoder):
        for block in stack.block[1:]:
            forward = block.forward
            block.forward = lambda h, mask, bias, *rest, forward=forward, **given: forward(
                h, mask, bias.masked_fill(bias.abs() < 1e4, 0), *rest, **given
            )
    try:
        without = plain()
    finally:
        for stack in (model.encoder, model.decoder):
            for block in stack.block[1:]:
                del block.forward
    for walked_to, other in zip(walked.last, without, strict=True):
        encoder, _ = adapter.stacks(model)
        h_BSD = walked_to[encoder]
        assert (other[encoder] - h_BSD).norm() > 0.01 * h_BSD.norm()


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


def ran(folder: Path, stage: Any, asked: Any, name: str, inputs: dict[str, Artifact]) -> tuple[Any, RecordingLog]:
    out, log = folder / name, RecordingLog(folder / f"resume of {name}")
    out.mkdir()
    metrics = stage.run(asked, inputs, out, log)
    log.found["metrics"] = metrics
    stage_output(out, log)
    return Checkpoint(out, name), log


def translations(folder: Path) -> Corpus:
    folder.mkdir()
    for seed, (split, count) in enumerate((("train", 40), ("validation", 4), ("test", 4))):
        rows = [
            {"id": f"{split}-{i}", "source": "translate: " + text[: 12 + i], "target": text[: 6 + i % 20]}
            for i, text in enumerate(tiny.sentences(count, seed))
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_whisper.write_facts(folder, {"format": "translation", "digest": "pairs"})
    return Corpus(folder, "corpus")


def start(kind: str, folder: Path) -> tuple[Checkpoint, Corpus]:
    if kind == "whisper":
        # whole windows: those of clips end with the longest of a batch, and their states cannot be kept
        clips = {"train": [0.3, 0.5, 0.9] * 4, "validation": [0.4, 0.6], "test": [0.7, 0.3]}
        corpus = tiny_whisper.save_corpus(folder / "corpus", clips, window="full")
        return tiny_whisper.save(folder / "model"), corpus
    corpus = translations(folder / "corpus")
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.1}
    gated = {"feed_forward_proj": "gated-gelu"} if kind == "t5_gated" else {}
    described = Scratch(label=LABEL, vocabulary=64, settings=sizes | gated, seed=0)
    asked = ScratchOptions(family="t5", dtype="float32", scratch=described)
    model = ran(folder, scratch, asked, "model", {"data": corpus})[0]
    if kind == "t5_gated":
        give_a_head_of_its_own(model)
    return model, corpus


def give_a_head_of_its_own(checkpoint: Checkpoint) -> None:
    """As T5 v1.1 and Flan-T5 have it; transformers' configuration calls theirs tied all the same."""
    model = checkpoints.load(checkpoint)
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(checkpoint.path)


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


def tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return load_file(checkpoint.path / "model.safetensors")


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
    before, after = tensors(task.model), tensors(pruned)
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
    before = tensors(task.model)
    asked = FinetuneOptions(training=training(weight_decay=0, lr=1e-3), distill=weights(eps=1e-8, **LOSSES[loss]))
    tuned, log = task.ran(finetune, asked, f"tuned {loss}", model=half, data=task.data, teacher=task.model)
    assert masks.digest(masks.of(tuned)) == masks.digest(masks.of(half))
    old, new = tensors(half), tensors(tuned)
    for name, keep_OI in masks.of(half).items():
        moved_OI = old[f"{name}.weight"] != new[f"{name}.weight"]
        assert not moved_OI[~keep_OI].any()
        assert moved_OI[keep_OI].float().mean() > 0.5, name
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(task.model).items())
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
        quantize, rounding(smooth=0.5, skip_sensitive=1), "int8", model=sparse, calibration=task.calibration
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
        exact, rounded = (m(**family(task.kind).inputs(samples)).logits for m in (sparse_model, int8_model))
    real_BT = samples["labels"] >= 0
    assert (rounded - exact)[real_BT].norm() < 0.1 * exact[real_BT].norm()
    stored = {name: tensor for name, tensor in tensors(int8).items() if tensor.dtype != torch.int8}
    given = tensors(sparse)
    for name, tensor in stored.items():
        changed = folded.keys() | skipped.keys()
        if "scale" not in name and name.removesuffix(".weight").removesuffix(".bias") not in changed:
            assert torch.equal(tensor, given[name]), name
    generation = settings(max_new_tokens=5, beams=2)
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
    names = list(family(kind).prunable(model))
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
            model, family(kind), chosen, batch, quantized.Int8Linear.of, RecordingLog(tmp_path)
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
