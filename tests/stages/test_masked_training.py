"""Training of sparse models: pruned weights stay zero, and what the optimizer does with masks, decay and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stages import checkpoints, masks
from stages.contracts import Artifact, Checkpoint
from stages.finetune.optim import MaskedOptimizer
from tests import tiny
from tests.running_stages import assert_same_weights, finetuned
from tests.stage_options import finetuning, training
from tests.tiny import text_data
from tests.tiny_training import FAMILY, sparse


@pytest.mark.parametrize(
    ("kind", "optimizer"), [("llama", "adamw"), ("opt", "adamw"), ("mpt", "adamw"), ("llama", "adafactor")]
)
def test_pruned_weights_stay_zero_over_training_save_and_reload(kind: str, optimizer: str, tmp_path: Path) -> None:
    inputs = {
        "model": sparse(tmp_path / "sparse", kind),
        "teacher": Checkpoint(tiny.save_model(tmp_path / "dense", kind, seed=1), "dense"),
        "data": text_data(tmp_path / "texts"),
    }
    metrics, out, _ = finetuned(finetuning(steps=12, optimizer=optimizer), inputs, tmp_path)
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
    _, free, _ = finetuned(finetuning(steps=2, clip_norm=0), inputs, tmp_path, "free")
    _, loose, _ = finetuned(finetuning(steps=2, clip_norm=1e9), inputs, tmp_path, "loose")
    _, tight, _ = finetuned(finetuning(steps=2, clip_norm=1e-8), inputs, tmp_path, "tight")
    assert_same_weights(free, loose)
    with pytest.raises(AssertionError):
        assert_same_weights(free, tight)
