"""The stages `calibrate` and `prune` on whole small models: sequence, sharing, padding, resuming, exact results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import reach
from stages import checkpoints, families, masks
from stages.calibrate import run as calibrate
from stages.calibrate.samples import load_samples
from stages.calibrate.spec import Calibrate
from stages.contracts import Artifact, Calibration, Checkpoint, Corpus, UserError
from stages.families import Batch
from stages.prune import run as prune
from stages.prune import sequential, sparsegpt
from stages.prune.selection import num_pruned, target
from stages.prune.sequential import prune_model
from stages.prune.spec import PruneOptions
from stages.prune.walk import Walk, at_rest
from stages.tokens import IGNORED
from tests import tiny
from tests.recording import RecordingLog
from tests.stage_options import pruning

FAMILY = families.get("causal_lm")


def calibrating(**changes: Any) -> Calibrate:
    return Calibrate.model_validate({"samples": 8, "length": 32, "split": "train", "seed": 0} | changes)


def text_data(folder: Path) -> Corpus:
    return described(tiny.save_texts(folder), "text")


def qa_data(folder: Path) -> Corpus:
    folder.mkdir()
    rows = [
        {"prompt": " ".join(text.split()[: 3 + n % 9]), "completion": " stone", "answer": "x"}
        for n, text in enumerate(tiny.sentences(20, 0))
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return described(folder, "qa")


def described(folder: Path, kind: str) -> Corpus:
    (folder / "meta.json").write_text(json.dumps({"facts": {"format": kind, "digest": "of the data"}, "metrics": {}}))
    return Corpus(folder, "data")


def dense(folder: Path, kind: str = "llama") -> Checkpoint:
    return Checkpoint(tiny.save_model(folder / kind, kind), kind)


def calibrated(tmp_path: Path, model: Checkpoint, data: Corpus, **changes: Any) -> tuple[Calibration, RecordingLog]:
    log = RecordingLog(tmp_path / "resume of calibration")
    out = tmp_path / f"calibration {data.format} {changes}"
    out.mkdir()
    metrics = calibrate.run(calibrating(**changes), {"model": model, "data": data}, out, log)
    assert metrics["samples"] == log.found["samples"]
    return Calibration(out, "calibration"), log


def pruned(
    tmp_path: Path, model: Checkpoint, calibration: Calibration | None, sparsity: float, name: str = "", **changes: Any
) -> tuple[Checkpoint, dict[str, float], RecordingLog]:
    name = name or f"pruned {model.fingerprint} {sparsity} {changes}".replace(":", "of")
    out = tmp_path / name
    out.mkdir()
    log = RecordingLog(tmp_path / f"resume of {name}")
    inputs: dict[str, Artifact] = {"model": model} | ({"calibration": calibration} if calibration else {})
    metrics = prune.run(PruneOptions(prune=pruning(**changes), sparsity=sparsity), inputs, out, log)
    return Checkpoint(out, name), metrics, log


def padded_samples() -> Batch:
    """Samples of many lengths, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    ids_NL = torch.randint(1, tiny.VOCABULARY, (7, 24), generator=generator)
    lengths_N1 = torch.tensor([24, 5, 17, 9, 24, 1, 12])[:, None]
    mask_NL = (torch.arange(24) < lengths_N1).long()
    labels_NL = ids_NL.masked_fill(mask_NL == 0, IGNORED)
    ids_NL = ids_NL.masked_fill(mask_NL == 0, 0)
    return {"input_ids": ids_NL, "labels": labels_NL, "use": mask_NL, "attention_mask": mask_NL}


def whole_samples() -> Batch:
    """Samples without padding."""
    ids_NL = padded_samples()["input_ids"]
    return {"input_ids": ids_NL, "labels": ids_NL, "use": torch.ones_like(ids_NL)}


@contextmanager
def spied(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The Hessians that are factored, in order; the factor itself is the real one."""
    seen: list[Tensor] = []

    def factor(H_II: Tensor, *rest: float) -> sparsegpt.Factor:
        seen.append(H_II.triu() + H_II.triu(1).T)
        return original(H_II, *rest)

    original = sparsegpt.factor
    with monkeypatch.context() as patch:
        patch.setattr(sequential.sparsegpt, "factor", factor)
        yield seen


@pytest.fixture
def log(tmp_path: Path) -> RecordingLog:
    return RecordingLog(tmp_path / "resume")


# ---- calibration ----


def test_text_samples_are_different_windows_without_padding(tmp_path: Path) -> None:
    model, data = dense(tmp_path), text_data(tmp_path / "texts")
    calibration, log = calibrated(tmp_path, model, data)
    samples = load_samples(calibration)
    ids_NL, use_NL = samples["input_ids"], samples["use"]
    assert ids_NL.shape == use_NL.shape == (8, 32)
    assert use_NL.all()
    assert torch.equal(samples["labels"], ids_NL)
    assert {tensor.dtype for tensor in samples.values()} == {torch.int64}
    assert len(ids_NL.unique(dim=0)) == 8
    found = log.found
    assert (found["samples"], found["length"], found["real_tokens"]) == (8, 32, 256)
    assert found["data_digest"] == "of the data"
    assert found["samples_digest"] == calibrate.digest(samples)


def test_the_seed_draws_the_samples(tmp_path: Path) -> None:
    model, data = dense(tmp_path), text_data(tmp_path / "texts")
    drawn = []
    for turn, seed in enumerate((0, 0, 1)):
        (tmp_path / str(turn)).mkdir()
        drawn.append(calibrated(tmp_path / str(turn), model, data, seed=seed)[1])
    digests = [log.found["samples_digest"] for log in drawn]
    assert digests[0] == digests[1] != digests[2]


def test_items_are_ended_by_eos_and_padded_on_the_right(tmp_path: Path) -> None:
    model, data = dense(tmp_path), qa_data(tmp_path / "questions")
    calibration, log = calibrated(tmp_path, model, data, length=40)
    samples = load_samples(calibration)
    ids_NL, mask_NL = samples["input_ids"], samples["attention_mask"]
    assert torch.equal(samples["use"], mask_NL)
    assert "position_ids" not in samples, "one item a sample"
    tokenizer = FAMILY.tokenizer(model.path)
    texts = {row["prompt"] + row["completion"] for row in map(json.loads, data.split("train").open())}
    for ids, mask in zip(ids_NL, mask_NL, strict=True):
        length = int(mask.sum())
        assert mask[:length].all()
        assert ids[length - 1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[: length - 1]) in texts
    assert log.found["real_tokens"] == int(mask_NL.sum()) < ids_NL.numel()


def test_too_few_samples_and_too_long_ones_are_refused(tmp_path: Path) -> None:
    model, data = dense(tmp_path), text_data(tmp_path / "texts")
    for changes, option in (
        ({"samples": 10_000}, "calibrate.samples"),
        ({"length": tiny.CONTEXT + 1}, "calibrate.length"),
    ):
        with pytest.raises(UserError) as raised:
            calibrated(tmp_path, model, data, **changes)
        assert raised.value.option == option


# ---- the walk through a model ----


def gemma() -> Any:
    """Layers that differ in their arguments: sliding windows and rotary embeddings of their own."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, sliding_window=4,
        layer_types=["sliding_attention", "full_attention"] * 2, pad_token_id=0, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


@pytest.mark.parametrize("kind", ["llama", "opt", "mpt", "gemma"])
def test_the_walk_ends_where_the_plain_forward_does(kind: str) -> None:
    model: Any = gemma() if kind == "gemma" else tiny.build(kind)
    samples = padded_samples()
    last: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        last.append(output[0] if isinstance(output, tuple) else output)

    walk = Walk(model, FAMILY, samples, "fp32", 3)
    handle = walk.blocks[-1][1].register_forward_hook(keep)
    with at_rest(model):
        for _ in walk.blocks:
            walk.advance()
    # the last block of a walk runs in the last turn only
    walked = list(last)
    with torch.no_grad():
        for batch, state_BTD in zip(walk.batches, walked, strict=True):
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            real = batch["use"].bool()
            torch.testing.assert_close(state_BTD[real], last[-1][real])
    handle.remove()
    assert sum(len(batch["input_ids"]) for batch in walk.batches) == len(samples["input_ids"])
    lengths = [int(batch["use"].sum(1).max()) for batch in walk.batches]
    assert [batch["input_ids"].shape[1] for batch in walk.batches] == lengths == sorted(lengths, reverse=True)


def test_a_walk_leaves_the_model_as_it_was(log: RecordingLog) -> None:
    model: Any = tiny.build("mpt").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    use_cache = model.config.use_cache
    prune_model(model, FAMILY, padded_samples(), pruning(skip=[r".*blocks\.0\..*"]), 0.5, {}, log)
    assert model.training
    assert model.config.use_cache == use_cache
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("blocks.1." in name for name in changed)


@pytest.mark.parametrize("kind", ["llama", "opt", "mpt"])
def test_a_bf16_model_is_pruned_in_both_precisions(kind: str, log: RecordingLog) -> None:
    for precision in ("fp32", "bf16"):
        model: Any = tiny.build(kind).bfloat16()
        found, reports = prune_model(model, FAMILY, padded_samples(), pruning(precision=precision), 0.5, {}, log)
        masks.check(model, found)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert all(report.error is not None and 0 < report.error < 1 for report in reports)


def test_bf16_calibration_comes_close_to_fp32(log: RecordingLog) -> None:
    errors = {}
    for precision in ("fp32", "bf16"):
        _, reports = prune_model(tiny.build(), FAMILY, padded_samples(), pruning(precision=precision), 0.5, {}, log)
        errors[precision] = torch.tensor([report.error for report in reports])
    torch.testing.assert_close(errors["bf16"], errors["fp32"], rtol=0.1, atol=0)
    assert not torch.equal(errors["bf16"], errors["fp32"])


# ---- Hessians ----


def test_linears_with_one_input_share_one_factor(monkeypatch: pytest.MonkeyPatch, log: RecordingLog) -> None:
    # q k v | o | gate up | down;  q k v | out | fc1 | fc2;  Wqkv | out | up | down
    for kind, linears in (("llama", 7), ("opt", 6), ("mpt", 4)):
        with spied(monkeypatch) as hessians:
            _, reports = prune_model(tiny.build(kind), FAMILY, padded_samples(), pruning(), 0.5, {}, log)
        assert len(hessians) == 2 * 4, kind
        assert len(reports) == 2 * linears, kind


def test_padding_is_left_out_of_the_hessians(monkeypatch: pytest.MonkeyPatch, log: RecordingLog) -> None:
    samples = padded_samples()
    ids_NL, mask_NL = samples["input_ids"], samples["use"]
    with spied(monkeypatch) as padded:
        prune_model(tiny.build(), FAMILY, samples, pruning(), 0.5, {}, log)
    inputs: list[Tensor] = []
    model: Any = tiny.build()
    hook = lambda module, args: inputs.append(args[0].flatten(0, 1))  # noqa: E731
    handle = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(hook)
    with torch.no_grad():
        for ids, mask in zip(ids_NL, mask_NL, strict=True):
            model(input_ids=ids[mask.bool()][None])
    handle.remove()
    X_TI = torch.cat(inputs)
    assert len(X_TI) == int(mask_NL.sum())
    torch.testing.assert_close(padded[3], 2 / len(X_TI) * X_TI.T @ X_TI, atol=1e-9, rtol=1e-4)


def test_micro_batches_do_not_change_the_hessians(monkeypatch: pytest.MonkeyPatch, log: RecordingLog) -> None:
    found = []
    for size in (1, 7):
        with spied(monkeypatch) as hessians:
            # a sparsity so small that the second block's inputs hardly depend on how ties fall in the first
            prune_model(tiny.build(), FAMILY, padded_samples(), pruning(micro_batch_size=size), 0.1, {}, log)
        found.append(hessians)
    for one, seven in zip(*found, strict=True):
        torch.testing.assert_close(one, seven, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "opt", "mpt"])
def test_a_block_is_calibrated_on_the_pruned_one_before(
    kind: str, monkeypatch: pytest.MonkeyPatch, log: RecordingLog
) -> None:
    samples = whole_samples()
    model: Any = tiny.build(kind)

    def second_block_hessian() -> Tensor:
        first = next(name for name in FAMILY.prunable(model) if name.startswith(FAMILY.blocks(model)[1][0]))
        inputs: list[Tensor] = []
        hook = lambda module, args: inputs.append(args[0].flatten(0, -2))  # noqa: E731
        handle = model.get_submodule(first).register_forward_pre_hook(hook)
        with torch.no_grad():
            model(input_ids=samples["input_ids"])
        handle.remove()
        return 2 / len(inputs[0]) * inputs[0].T @ inputs[0]

    dense_II = second_block_hessian()
    with spied(monkeypatch) as hessians:
        prune_model(model, FAMILY, samples, pruning(), 0.7, {}, log)
    torch.testing.assert_close(hessians[4], second_block_hessian(), atol=1e-7, rtol=1e-4)
    assert (hessians[4] - dense_II).norm() > 0.01 * dense_II.norm()


def test_reported_errors_are_those_of_the_outputs(log: RecordingLog) -> None:
    samples = whole_samples()
    model: Any = tiny.build()
    name = "model.layers.0.self_attn.q_proj"
    before_OI = model.get_submodule(name).weight.detach().clone()
    inputs: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        model(input_ids=samples["input_ids"])
    handle.remove()
    _, reports = prune_model(model, FAMILY, samples, pruning(), 0.6, {}, log)
    X = inputs[0]
    lost = (X @ (model.get_submodule(name).weight.detach() - before_OI).T).square().sum()
    assert reports[0].name == name
    assert reports[0].error == pytest.approx(float(lost / (X @ before_OI.T).square().sum()), rel=1e-3)


# ---- the stage ----

METHODS = ("magnitude", "wanda", "sparsegpt")


@pytest.mark.parametrize("kind", ["llama", "opt", "mpt"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_pattern_prunes_exactly(kind: str, method: str, tmp_path: Path) -> None:
    model = dense(tmp_path, kind)
    calibration, _ = calibrated(tmp_path, model, text_data(tmp_path / "texts"))
    original = checkpoints.load(model).state_dict()
    for pattern, sparsity in (("unstructured", 0.37), ("2:4", 0.5), ("4:8", 0.5)):
        given = calibration if method != "magnitude" else None
        sparse, metrics, log = pruned(tmp_path, model, given, sparsity, method=method, pattern=pattern)
        found = masks.of(sparse)
        loaded = checkpoints.load(sparse)
        assert set(found) == set(FAMILY.prunable(loaded))
        goal = target(pattern, sparsity)
        for keep_OI in found.values():
            assert int((~keep_OI).sum()) == num_pruned(*keep_OI.shape, goal, pruning(method=method))
            if pattern != "unstructured":
                keep, group = map(int, pattern.split(":"))
                assert (keep_OI.reshape(len(keep_OI), -1, group).sum(-1) == keep).all()
        assert metrics["sparsity"] == pytest.approx(sparsity, abs=0.02)
        zeros = sum(int((~keep_OI).sum()) for keep_OI in found.values())
        total = sum(parameter.numel() for parameter in loaded.parameters())
        assert metrics["model_sparsity"] == pytest.approx(zeros / total)
        changed = {name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, original[name])}
        assert changed == {f"{name}.weight" for name in found}, "embeddings, norms, biases and head stay"
        assert [step for step, _ in log.points] == list(range(len(found)))
        assert all(values["layer_sparsity"] == pytest.approx(sparsity, abs=0.04) for _, values in log.points)
        assert [layer["name"] for layer in log.found["layers"]] != []
        assert log.found["masks_digest"] == masks.digest(found)
        if method == "magnitude":
            assert not any("layer_error" in values for _, values in log.points)
        else:
            assert all(0 < values["layer_error"] < 1 for _, values in log.points)
            assert metrics["mean_layer_error"] > 0
        assert (log.found["damping"] is None) == (method != "sparsegpt")
        assert (sparse.path / "tokenizer.json").exists()


def test_sparsegpt_loses_less_than_wanda(tmp_path: Path) -> None:
    model = dense(tmp_path)
    calibration, _ = calibrated(tmp_path, model, qa_data(tmp_path / "questions"), length=40, samples=16)
    errors = [pruned(tmp_path, model, calibration, 0.5, method=m)[1]["mean_layer_error"] for m in METHODS[1:]]
    assert errors[1] < errors[0]


def test_magnitude_runs_no_forward_pass_but_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = torch.nn.Linear.forward

    def few_tokens(module: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        assert x.numel() // x.shape[-1] <= reach.ROWS * reach.TOKENS, "a forward pass"
        return forward(module, x)

    model = dense(tmp_path)
    monkeypatch.setattr(torch.nn.Linear, "forward", few_tokens)
    pruned(tmp_path, model, None, 0.5, method="magnitude")


@pytest.mark.parametrize("method", METHODS)
def test_rungs_nest_through_checkpoints(method: str, tmp_path: Path) -> None:
    model = dense(tmp_path)
    calibration, _ = calibrated(tmp_path, model, text_data(tmp_path / "texts"))
    before: masks.Masks = {}
    for sparsity in (0.3, 0.5, 0.7):
        model, metrics, _ = pruned(tmp_path, model, calibration, sparsity, f"{method} {sparsity}", method=method)
        found = masks.of(model)
        assert metrics["sparsity"] == pytest.approx(sparsity, abs=0.02)
        assert not any((found[name] & ~keep_OI).any() for name, keep_OI in before.items())
        before = found
    with pytest.raises(UserError, match=r"hold more zeros than 0\.5 leaves room for"):
        pruned(tmp_path, model, calibration, 0.5, "downhill", method=method)


def test_sparsity_0_keeps_everything(tmp_path: Path) -> None:
    model = dense(tmp_path)
    sparse, metrics, _ = pruned(tmp_path, model, None, 0.0)
    assert metrics == {"sparsity": 0, "model_sparsity": 0, "mean_layer_error": 0, "prunable_share": 1}
    assert all(keep_OI.all() for keep_OI in masks.of(sparse).values())
    original, loaded = checkpoints.load(model).state_dict(), checkpoints.load(sparse).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in original.items())


def test_skipped_linears_stay_dense_and_have_no_mask(tmp_path: Path) -> None:
    model = dense(tmp_path)
    calibration, _ = calibrated(tmp_path, model, text_data(tmp_path / "texts"))
    # k_proj leaves a group; the last of a block goes; a whole block goes
    skip = [r".*\.k_proj", r".*down_proj", r"model\.layers\.0\..*"]
    sparse, _, _ = pruned(tmp_path, model, calibration, 0.5, "skipped", skip=skip)
    found = masks.of(sparse)
    assert sorted(name.rsplit(".", 1)[1] for name in found) == ["gate_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert all(name.startswith("model.layers.1.") for name in found)
    before, after = checkpoints.load(model).state_dict(), checkpoints.load(sparse).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.weight" for name in found}


@pytest.mark.parametrize(
    ("changes", "sparsity", "option", "says"),
    [
        ({"skip": ["q_proj"]}, 0.5, "prune.skip", "matches no linear"),
        ({"skip": [".*"]}, 0.5, "prune.skip", "nothing is left"),
        ({"pattern": "2:6"}, 1 - 2 / 6, "prune.pattern", "do not divide 32"),
        ({"pattern": "2:4"}, 0.7, "sparsity", "means sparsity=0.5"),
    ],
)
def test_bad_options_are_named(
    changes: dict[str, Any], sparsity: float, option: str, says: str, log: RecordingLog
) -> None:
    with pytest.raises(UserError, match=says) as raised:
        prune_model(tiny.build(), FAMILY, padded_samples(), pruning(**changes), sparsity, {}, log)
    assert raised.value.option == option


def test_activations_that_are_not_finite_are_named(log: RecordingLog) -> None:
    for method in ("wanda", "sparsegpt"):
        model: Any = tiny.build()
        model.model.embed_tokens.weight.data[padded_samples()["input_ids"][0, 0]] = torch.nan
        with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj.*not finite"):
            prune_model(model, FAMILY, padded_samples(), pruning(method=method), 0.5, {}, log)


def test_damping_that_had_to_grow_is_told(tmp_path: Path) -> None:
    model = dense(tmp_path)
    # two tokens, 32 inputs: a Hessian of rank 2 needs more damping than 1e-12 in fp32
    calibration, _ = calibrated(tmp_path, model, text_data(tmp_path / "texts"), samples=1, length=2)
    _, _, log = pruned(tmp_path, model, calibration, 0.5, "raised", damping=1e-12)
    assert log.found["damping"]["asked"] == 1e-12
    assert 1e-12 < log.found["damping"]["most_used"] <= 1.0
    assert any("damping was raised" in note for note in log.notes)
    with pytest.raises(UserError, match="not positive definite"):
        pruned(tmp_path, model, calibration, 0.5, "stopped", damping=1e-12, max_damping=1e-12)


# ---- resuming ----


class Killed(Exception):  # noqa: N818
    pass


class KilledLog(RecordingLog):
    """Dies when the first block is done."""

    @contextmanager
    def bar(self, what: str, total: int, unit: str) -> Iterator[Any]:
        class Bar:
            def advance(self, steps: int = 1, **shown: float) -> None:
                raise Killed

        yield Bar()


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_prune_goes_on_at_its_block_to_the_same_result(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dense(tmp_path)
    calibration, _ = calibrated(tmp_path, model, text_data(tmp_path / "texts"))
    whole, metrics, whole_log = pruned(tmp_path, model, calibration, 0.6, "whole", method=method)

    config = PruneOptions(prune=pruning(method=method), sparsity=0.6)
    inputs: dict[str, Artifact] = {"model": model, "calibration": calibration}
    out = tmp_path / "killed"
    out.mkdir()
    with pytest.raises(Killed):
        prune.run(config, inputs, out, KilledLog(tmp_path / "survives"))
    assert [path.name for path in (tmp_path / "survives").iterdir()] == ["block_0000"]
    shutil.rmtree(out)
    out.mkdir()
    log = RecordingLog(tmp_path / "survives")
    with spied(monkeypatch) as hessians:
        resumed = prune.run(config, inputs, out, log)
    assert len(hessians) == (4 if method == "sparsegpt" else 0), "only the second block is pruned again"
    assert resumed == metrics
    assert (out / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    assert log.found["masks_digest"] == whole_log.found["masks_digest"]
    assert log.points == whole_log.points
