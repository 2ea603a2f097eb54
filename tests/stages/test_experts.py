"""Experts and `Conv1D` are pruned, trained, quantized and computed by the engine as linears are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import engine.checkpoints
from engine import kernels
from engine.unfused import RoutedLinear, fuse_, fused, is_unfused, unfuse_
from stages import checkpoints, families, masks
from stages.calibrate import run as calibrate
from stages.contracts import Artifact, Calibration, Checkpoint, Corpus
from stages.families import structure
from stages.finetune import run as finetune
from stages.finetune.spec import FinetuneOptions
from stages.prune import run as prune
from stages.prune import sequential, sparsegpt
from stages.prune.selection import num_pruned
from stages.prune.sequential import Collector, Group, prune_model
from stages.prune.spec import PruneOptions
from stages.prune.walk import Walk
from stages.quantize import run as quantize
from tests import tiny, tiny_classes
from tests.composed import config_of
from tests.recording import RecordingLog

KINDS = [*tiny_classes.MIXTURES, "gpt2"]
FAMILY = families.get("causal_lm")


def build(kind: str, **settings: Any) -> Any:
    return tiny_classes.gpt2() if kind == "gpt2" else tiny_classes.build(kind, **settings)


def stored(kind: str, folder: Path, **settings: Any) -> Checkpoint:
    """As the `model` stage leaves it."""
    model = build(kind, **settings)
    model.save_pretrained(folder)
    tiny.save_tokenizer(folder)
    unfuse_(model)
    structure.save(structure.of(model, FAMILY), folder)
    return Checkpoint(folder, kind)


def texts(folder: Path) -> Corpus:
    tiny.save_texts(folder)
    (folder / "meta.json").write_text(json.dumps({"facts": {"format": "text", "digest": "d"}, "metrics": {}}))
    return Corpus(folder, "texts")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(1, 25).view(2, 12)).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_unfusing_changes_no_logit_and_saves_what_transformers_loads(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    before, names = logits(model), set(model.state_dict())
    unfuse_(model)
    assert is_unfused(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-6)
    with torch.no_grad():
        for linear in FAMILY.prunable(model).values():
            linear.weight.mul_(1.5)  # the weights as they are now are what counts
    changed = logits(model)
    with fused(model):
        assert set(model.state_dict()) == names
        torch.testing.assert_close(logits(model), changed, rtol=0, atol=1e-6)
        model.save_pretrained(tmp_path)
    assert is_unfused(model)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), changed, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_nearly_all_of_the_blocks_can_be_pruned_and_routers_are_left_alone(kind: str) -> None:
    model = build(kind)
    unfuse_(model)
    found = structure.of(model, FAMILY)
    assert found.prunable_share > 0.95
    assert not structure.share_note(found)
    assert not [name for name in found.linears if name.endswith(("gate", "router", "wg"))]
    assert sum(parameter.numel() for name, parameter in model.named_parameters()
               if parameter.dim() >= 2 and any(name.startswith(f"{block}.") for block, _ in FAMILY.blocks(model))
               ) == found.block_weights  # fmt: skip


def test_experts_of_a_kind_that_is_not_known_are_told() -> None:
    model = tiny_classes.build("olmoe")
    for module in model.modules():
        if type(module).__name__ == "OlmoeExperts":
            module.temperature = nn.Parameter(torch.ones(1))
    unfuse_(model)
    found = structure.of(model, FAMILY)
    assert found.prunable_share < 0.2
    assert "left dense" in structure.share_note(found)
    assert "experts" in structure.share_note(found)


def batch_with_padding() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    ids_BT, use_BT = torch.randint(1, 300, (6, 16)), torch.ones(6, 16, dtype=torch.long)
    use_BT[:3, 10:] = 0
    return {"input_ids": ids_BT, "labels": ids_BT, "use": use_BT, "attention_mask": use_BT}


def test_the_hessian_of_an_expert_is_of_the_real_tokens_routed_to_it() -> None:
    model = tiny_classes.build("mixtral")
    unfuse_(model)
    batch = batch_with_padding()
    seen: dict[str, list[torch.Tensor]] = {}
    linears = {name: linear for name, linear in FAMILY.prunable(model).items() if name.startswith("model.layers.0.")}

    def keep(name: str) -> Any:
        def hook(module: nn.Linear, args: Any) -> None:
            X_TI = args[0].flatten(0, -2)
            real_T = batch["use"].flatten().bool()
            real_N = real_T[module.tokens_N] if isinstance(module, RoutedLinear) else real_T
            seen.setdefault(name, []).append(X_TI[real_N])

        return hook

    handles = [linear.register_forward_pre_hook(keep(name)) for name, linear in linears.items()]
    with torch.no_grad():
        model(**FAMILY.inputs(batch), use_cache=False)
    for handle in handles:
        handle.remove()
    collector = Collector(linears, FAMILY, bf16=False)
    groups = {name: group for group in collector.collect(Walk(model, FAMILY, batch, "fp32", 2)) for name in group.names}
    assert any("experts" in name for name in groups)
    for name, group in groups.items():
        X_TI = torch.cat(seen[name])
        expected_II = 2 / len(X_TI) * X_TI.T @ X_TI
        torch.testing.assert_close(group.H_II.triu(), expected_II.triu(), rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("kind", "method"), [("olmoe", "sparsegpt"), ("gpt_oss", "wanda"), ("llama", "sparsegpt")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_is_pruned_in_parts_to_the_bit_as_at_once(
    kind: str, method: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every Hessian is that of the block before any of it was pruned, and few of them are held together."""
    held: list[int] = []
    collect = Collector.collect

    def measured(self: Collector, walk: Walk) -> list[Group]:
        groups = collect(self, walk)
        held.append(sum(group.H_II.nbytes for group in groups))
        return groups

    monkeypatch.setattr(Collector, "collect", measured)
    made = []
    for limit in (1 << 30, 10_000, 1):
        monkeypatch.setattr(sequential, "HESSIAN_BYTES", limit)
        model = (tiny.build() if kind == "llama" else build(kind)).to(dtype)
        unfuse_(model)
        asked = config_of("model.path=x").prune.model_copy(update={"method": method, "precision": "fp32"})
        held.clear()
        log = RecordingLog(tmp_path / f"{limit}")
        pruned, reports = prune_model(model, FAMILY, batch_with_padding(), asked, 0.5, {}, log)
        made.append((model.state_dict(), pruned, {report.name: report.error for report in reports}))
        sizes = [4 * linear.in_features**2 for linear in FAMILY.prunable(model).values()]
        assert max(held) <= max(limit, max(sizes))
        assert (len(held) == len(FAMILY.blocks(model))) == (limit == 1 << 30)
    for weights, pruned, errors in made[1:]:
        assert all(torch.equal(weights[name], tensor) for name, tensor in made[0][0].items())
        assert masks.digest(pruned) == masks.digest(made[0][1])
        assert errors == made[0][2]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_experts_are_pruned_to_exact_counts_even_those_that_no_token_reaches(
    method: str, pattern: str, tmp_path: Path
) -> None:
    source = stored("olmoe", tmp_path / "m", num_experts=16)  # 6 tokens reach 12 of them at most
    (tmp_path / "c").mkdir(), (tmp_path / "out").mkdir()
    options = config_of("model.path=x", "data=text", "data.path=x", "calibrate.samples=1", "calibrate.length=6")
    data = texts(tmp_path / "t")
    calibrate.run(options.calibrate, {"model": source, "data": data}, tmp_path / "c", RecordingLog(tmp_path / "cl"))
    asked = options.prune.model_copy(update={"method": method, "precision": "fp32", "pattern": pattern})
    log = RecordingLog(tmp_path / "log")
    inputs: dict[str, Artifact] = {"model": source, "calibration": Calibration(tmp_path / "c", "c")}
    metrics = prune.run(PruneOptions(prune=asked, sparsity=0.5), inputs, tmp_path / "out", log)
    assert metrics["sparsity"] == pytest.approx(0.5)
    assert metrics["prunable_share"] > 0.95
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    inside = [p for n, p in written.named_parameters() if ".layers." in n and p.dim() >= 2]
    assert sum(int((p == 0).sum()) for p in inside) / sum(p.numel() for p in inside) > 0.47
    pruned = masks.of(Checkpoint(tmp_path / "out", ""))
    goal = 0.5 if pattern == "unstructured" else (2, 4)
    for name, keep_OI in pruned.items():
        assert int((~keep_OI).sum()) == num_pruned(*keep_OI.shape, goal, asked), name
    unreached = log.found.get("unreached", [])
    if method == "magnitude":
        assert not unreached
    else:
        assert unreached, "some expert should see no token"
        assert any("no calibration token reaches" in note for note in log.notes)
        name = unreached[0]
        before = checkpoints.load(source).get_submodule(name).weight
        after = checkpoints.load(Checkpoint(tmp_path / "out", "")).get_submodule(name).weight
        assert torch.equal(after, before * pruned[name]), "the kept weights of an unknown expert do not move"
        assert before[~pruned[name]].abs().mean() < before[pruned[name]].abs().mean()


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "deepseek_v2", "gpt2"])
def test_a_mixture_goes_through_every_stage(kind: str, tmp_path: Path) -> None:
    source, data = stored(kind, tmp_path / "m"), texts(tmp_path / "t")
    for name in ("p", "f", "q"):
        (tmp_path / name).mkdir()
    options = config_of(
        "model.path=x", "data=text", "data.path=x", "distill=squarehead", *tiny.options(Path("x"), Path("y"), Path("z"))
    )
    asked = options.prune.model_copy(update={"method": "magnitude"})
    prune.run(PruneOptions(prune=asked, sparsity=0.5), {"model": source}, tmp_path / "p", RecordingLog(tmp_path / "l1"))
    sparse, tuned = Checkpoint(tmp_path / "p", "p"), Checkpoint(tmp_path / "f", "f")
    slice_ = FinetuneOptions(training=options.finetune, distill=options.distill)
    inputs: dict[str, Artifact] = {"model": sparse, "data": data, "teacher": source}
    found = finetune.run(slice_, inputs, tmp_path / "f", RecordingLog(tmp_path / "l2"))
    assert found["sparsity"] == pytest.approx(0.5, abs=1e-3)
    trained, before = checkpoints.load(tuned), checkpoints.load(sparse)
    masks.check(trained, masks.of(sparse))
    moved = [n for n, p in trained.named_parameters() if not torch.equal(p, before.get_parameter(n))]
    assert kind == "gpt2" or [name for name in moved if "experts" in name], "no expert was trained"
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "f")), logits(trained))
    quantize.run(
        options.quantize.model_copy(update={"smooth": 0.0}), {"model": tuned}, tmp_path / "q",
        RecordingLog(tmp_path / "l3"),
    )  # fmt: skip
    rounded = checkpoints.load(Checkpoint(tmp_path / "q", "q"), torch.float32)
    off = (logits(rounded) - logits(trained)).abs().max() / logits(trained).abs().max()
    assert off < 0.1
    if kernels.unavailable():
        pytest.skip(kernels.unavailable())
    for checkpoint, dtype, expected in ((tuned, "fp32", trained), (Checkpoint(tmp_path / "q", "q"), "int8", rounded)):
        loaded, weights = engine.checkpoints.read_checkpoint(checkpoint.path)
        converted = engine.convert(loaded, dtype=dtype, quantized=weights)
        torch.testing.assert_close(logits(converted), logits(expected), rtol=1e-4, atol=1e-5)
        engine.save(converted, tmp_path / f"engine-{dtype}")
        again = engine.load(tmp_path / f"engine-{dtype}")
        torch.testing.assert_close(logits(again), logits(converted), rtol=0, atol=0)
        ids_BT = torch.arange(1, 9)[None]
        settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        assert torch.equal(again.generate(ids_BT, **settings), expected.generate(ids_BT, **settings))


def test_items_are_packed_for_mixtures_that_keep_them_apart() -> None:
    from stages.tokens import keeps_items_apart

    for kind in ("mixtral", "olmoe", "qwen3_moe"):
        model = tiny_classes.build(kind)
        unfuse_(model)
        assert keeps_items_apart(model), kind
        fuse_(model)


def test_an_identity_hessian_prunes_the_smallest_weights() -> None:
    torch.manual_seed(0)
    W_OI = torch.randn(8, 16)
    shared = sparsegpt.factor(torch.eye(16), 0.01, 1.0)
    (pruned,), (keep,) = sparsegpt.prune([W_OI], shared, 0.5, 128, [torch.ones(8, 16, dtype=torch.bool)])
    assert torch.equal(pruned, W_OI * keep)
    assert W_OI[~keep].abs().max() <= W_OI[keep].abs().min()
