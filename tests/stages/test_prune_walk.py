"""The walk through a model: where it ends, and which Hessians it collects on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stages import masks
from stages.prune.sequential import prune_model
from stages.prune.walk import Walk, at_rest
from tests import tiny
from tests.recording import RecordingLog
from tests.stage_options import pruning
from tests.tiny_training import FAMILY, padded_samples, spied, whole_samples

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
