"""Weights stored in bf16 are trained as those in fp32 are, though a step is smaller than their spacing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.contracts import Artifact, Checkpoint, UserError
from pipeline.estimating.model_size import ModelSize
from pipeline.estimating.work import Workload, memory_bytes
from pipeline.schema import CubicSlice
from stages import checkpoints, finetune, masks
from stages.training import weight_updates
from stages.training.optim import MaskedOptimizer, total_norm
from stages.training.weight_updates import round_stochastically
from tests import tiny
from tests.composed import config_of
from tests.recording import RecordingLog
from tests.test_training import (
    ALL,
    FAMILY,
    DyingLog,
    Killed,
    assert_same_weights,
    calibration,
    prune_config,
    run,
    slice_,
    text_data,
    training,
    weights_of,
)

KINDS = ("fp32_master", "stochastic_rounding")


def trained(dtype: torch.dtype, keep_OI: Tensor, steps: int = 100, **changes: object) -> tuple[Tensor, Tensor, Tensor]:
    """Weights before and after `steps` steps on gradients that mostly agree, and the mask."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 256, bias=False)).to(dtype)
    model[0].weight.data = (torch.randn(256, 128) * 0.02).bfloat16().to(dtype)
    before_OI = model[0].weight.detach().float() * keep_OI
    optimizer = MaskedOptimizer(model, training(clip_norm=0, **changes), {"0": keep_OI})
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        model[0].weight.grad = (1 + 0.1 * torch.randn(256, 128, generator=generator)).to(dtype)
        optimizer.step(float(changes["lr"]))  # type: ignore[arg-type]
    return before_OI, model[0].weight.detach().float(), keep_OI


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 3e-5), ("adafactor", 3e-3)])
@pytest.mark.parametrize("kind", KINDS)
def test_small_steps_move_bf16_weights_as_they_move_fp32_ones(
    kind: str, optimizer: str, lr: float, keep: float, weight_decay: float
) -> None:
    keep_OI = torch.rand(256, 128, generator=torch.Generator().manual_seed(2)) < keep
    asked = {"optimizer": optimizer, "lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.999)}
    before_OI, exact_OI, _ = trained(torch.float32, keep_OI, **asked)
    _, stored_OI, _ = trained(torch.bfloat16, keep_OI, bf16_updates=kind, **asked)
    due, found = (before_OI - exact_OI)[keep_OI], (before_OI - stored_OI)[keep_OI]
    assert float(found.mean()) == pytest.approx(float(due.mean()), rel=0.03)
    if kind == "fp32_master":
        torch.testing.assert_close(stored_OI, exact_OI.bfloat16().float(), rtol=2**-7, atol=1e-5)
    assert not stored_OI[~keep_OI].any()


def test_rounding_by_chance_is_right_on_the_mean_and_leaves_bf16_numbers_alone() -> None:
    torch.manual_seed(0)
    values = torch.tensor([1.0 + 2**-9, -0.3, 1e-20, 3e-5])
    drawn = torch.stack([round_stochastically(values).float() for _ in range(4000)])
    torch.testing.assert_close(drawn.mean(0), values, rtol=2e-4, atol=0)
    assert all(len(column.unique()) == 2 for column in drawn.T)
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, float("inf"), 3e38]).bfloat16()
    assert torch.equal(round_stochastically(exact.float()), exact)


def test_matrices_are_stepped_in_pieces_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 parameters of a mixed model among them are stepped once."""
    made = []
    for piece in (1 << 26, 100):
        monkeypatch.setattr(weight_updates, "PIECE_ELEMENTS", piece)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16).bfloat16(), nn.LayerNorm(16), nn.Linear(16, 16, bias=False).bfloat16())
        optimizer = MaskedOptimizer(model, training(bf16_updates="stochastic_rounding"), {})
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step(1e-2)
        made.append([parameter.detach().clone() for parameter in model.parameters()])
        assert all(
            p.numel() == 0 for p in optimizer.updates.exact.values() if all(p is not q for q in model.parameters())
        )
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_parameters_without_a_gradient_stay(kind: str, optimizer: str) -> None:
    """Experts that no token came to, with masks and without."""
    experts = nn.ModuleDict({name: nn.Linear(8, 8).bfloat16() for name in "abc"})
    pruned = {name: torch.rand(8, 8) < 0.5 for name in "ab"}
    stepper = MaskedOptimizer(experts, training(bf16_updates=kind, optimizer=optimizer, weight_decay=0.1), pruned)
    before = {name: p.detach().clone() for name, p in experts.named_parameters()}
    experts["a"](torch.ones(2, 8).bfloat16()).sum().backward()
    assert stepper.step(1e-2) > 0
    assert not torch.equal(before["a.weight"], experts["a"].weight)
    assert all(torch.equal(before[f"{name}.weight"], experts[name].weight) for name in "bc")
    assert stepper.step(1e-2) == 0
    masks.check(experts, pruned)
    assert total_norm([]) == 0


def test_gradients_of_micro_batches_add_up_in_fp32() -> None:
    model = nn.Linear(4, 4, bias=False).bfloat16()
    optimizer = MaskedOptimizer(model, training(), {})
    for _ in range(300):
        (model(torch.ones(1, 4).bfloat16()).sum() / 256).backward()
    # in bf16, a sum of 1/256 stays at 1
    assert float(optimizer.updates.gradients()["weight"].grad.max()) == pytest.approx(300 / 256)  # type: ignore[union-attr]
    assert model.weight.grad is None


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    """A bf16 model, as student and teacher."""
    folder = tiny.save_model(tmp_path / "model")
    FAMILY.load(folder, torch.bfloat16).save_pretrained(folder)
    return {
        "model": Checkpoint(folder, "model"),
        "teacher": Checkpoint(folder, "model"),
        "data": text_data(tmp_path / "texts"),
        "calibration": calibration(tmp_path / "calibration"),
    }


@pytest.mark.parametrize(
    ("kind", "optimizer", "method"),
    [
        ("fp32_master", "adamw", "sparsegpt"),
        ("fp32_master", "adafactor", "magnitude"),
        ("stochastic_rounding", "adamw", "sparsegpt"),
        ("stochastic_rounding", "adafactor", "magnitude"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    kind: str, optimizer: str, method: str, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    schedule = CubicSlice(prune=prune_config(method), initial=0.0, final=0.75, begin_step=0, end_step=6, update_every=2)
    asked: dict[str, Any] = {
        "steps": 8,
        "checkpoint_every": 2,
        "lr": 1e-4,
        "bf16_updates": kind,
        "optimizer": optimizer,
    }
    config = slice_(ALL, schedule, **asked)
    metrics, whole, _ = run(config, inputs, tmp_path, "whole")
    assert metrics["sparsity"] == 0.75
    dying, out = DyingLog(tmp_path / "resume", last=5), tmp_path / "out"
    out.mkdir()
    with pytest.raises(Killed):
        finetune.run(config, inputs, out, dying)
    torch.manual_seed(99)
    log = RecordingLog(dying.resume)
    finetune.run(config, inputs, out, log)
    assert log.notes == ["resumes after step 4 of 8"]
    assert_same_weights(whole, Checkpoint(out, "resumed"))
    assert {value.dtype for value in weights_of(whole).values()} == {torch.bfloat16}
    masks.check(checkpoints.load(whole), masks.of(whole))


def test_rounding_by_chance_is_refused_where_nothing_is_rounded() -> None:
    for option in ("finetune", "dense.training"):
        line = f"{option}.bf16_updates=stochastic_rounding"
        config_of(line, "model.dtype=bfloat16")
        with pytest.raises(UserError, match="is for weights in bfloat16") as caught:
            config_of(line)
        assert caught.value.option == f"{option}.bf16_updates"


def test_the_memory_of_copies_is_in_the_estimate() -> None:
    size = ModelSize(1e9, 1024, 24, 16, 32000)

    def needed(*lines: str) -> float:
        config = config_of(*lines)
        slice_of = {"training": config.finetune.model_dump(mode="json"), "distill": config.distill.model_dump()}
        return memory_bytes(Workload.of("finetune", slice_of, {}, None, None, None), size, config)

    fp32, copies = needed(), needed("model.dtype=bfloat16")
    rounded = needed("model.dtype=bfloat16", "finetune.bf16_updates=stochastic_rounding")
    assert copies - fp32 == pytest.approx(2e9)
    assert copies - rounded == pytest.approx(6e9 - 0.5e9)
