"""Weights stored in bf16 are trained as those in fp32 are, though a step is smaller than their spacing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine import cpu
from pipeline.estimating.estimates import setting_of
from pipeline.resolve import resolve
from stages import checkpoints, masks, precision
from stages.contracts import Artifact, Checkpoint, UserError
from stages.cost import Workload
from stages.finetune import run as finetune
from stages.finetune import weight_updates
from stages.finetune.optim import MaskedOptimizer, total_norm
from stages.finetune.spec import CubicOptions, Distill
from stages.finetune.weight_updates import round_stochastically
from stages.index import STAGES
from stages.model_size import ModelSize
from tests import tiny
from tests.composed import config_of
from tests.recording import DyingLog, Killed, RecordingLog
from tests.running_stages import assert_same_weights, finetuned, weights_of
from tests.stage_options import ALL, TASK, finetuning, training
from tests.tiny import text_data
from tests.tiny_training import FAMILY, calibration, prune_config

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
    ("kind", "computed", "optimizer", "method"),
    [
        ("fp32_master", "fp32", "adamw", "sparsegpt"),
        ("fp32_master", "fp32", "adafactor", "magnitude"),
        ("fp32_master", "bf16", "adamw", "sparsegpt"),
        ("fp32_master", "bf16", "adafactor", "magnitude"),
        ("stochastic_rounding", "bf16", "adamw", "sparsegpt"),
        ("stochastic_rounding", "bf16", "adafactor", "magnitude"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    kind: str, computed: str, optimizer: str, method: str, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    schedule = CubicOptions(
        prune=prune_config(method), initial=0.0, final=0.75, begin_step=0, end_step=6, update_every=2
    )
    asked: dict[str, Any] = {
        "steps": 8,
        "checkpoint_every": 2,
        "lr": 1e-4,
        "bf16_updates": kind,
        "optimizer": optimizer,
        "precision": computed,
    }
    config = finetuning(ALL, schedule, **asked)
    metrics, whole, _ = finetuned(config, inputs, tmp_path, "whole")
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


@pytest.mark.parametrize("option", ["finetune", "dense.training"])
def test_rounding_by_chance_computes_in_bf16(option: str) -> None:
    """On every machine: fp32 would need the copies that it is there to do without."""
    lines = f"{option}.bf16_updates=stochastic_rounding", "model.dtype=bfloat16"
    with pytest.raises(UserError, match=f"expected fp32_master, or {option}.precision=bf16") as caught:
        config_of(*lines, f"{option}.precision=fp32")
    assert caught.value.option == f"{option}.bf16_updates"
    config = resolve(config_of(*lines, "device=cpu"))
    found = {"finetune": config.finetune, "dense.training": config.dense.training}
    assert found.pop(option).precision == "bf16"
    (other,) = found.values()
    assert other.precision == config.prune.precision == ("bf16" if cpu.has_bf16() else "fp32")


def stored(folder: Path, kind: str, dtype: torch.dtype) -> Checkpoint:
    """The same bf16 numbers, stored as bf16 or as fp32."""
    tiny.save_model(folder, kind=kind)
    FAMILY.load(folder, torch.bfloat16).to(dtype).save_pretrained(folder)
    return Checkpoint(folder, "model")


@pytest.mark.parametrize(
    ("kind", "optimizer", "distill"), [("llama", "adamw", ALL), ("opt", "adafactor", ALL), ("mpt", "adamw", TASK)]
)
def test_bf16_weights_train_in_fp32_to_the_bit_as_fp32_ones_do(
    kind: str, optimizer: str, distill: Distill, tmp_path: Path
) -> None:
    """Student and teacher: equal losses, and what is published are the fp32 weights, rounded; zeros stay zeros."""
    data = text_data(tmp_path / "texts")
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        dense = stored(tmp_path / f"{dtype}", kind, dtype)
        model, pruned = sparse(dense, tmp_path / f"{dtype}_sparse")
        inputs: dict[str, Artifact] = {"model": model, "teacher": dense, "data": data}
        config = finetuning(distill, steps=6, lr=1e-3, optimizer=optimizer, eval_every=2, precision="fp32")
        found[dtype] = finetuned(config, inputs, tmp_path, f"{dtype}")
    (_, fp32, exact_log), (metrics, bf16, log) = found[torch.float32], found[torch.bfloat16]
    assert curve(log) == curve(exact_log)
    exact, rounded = weights_of(fp32), weights_of(bf16)
    assert {value.dtype for value in rounded.values()} == {torch.bfloat16}
    assert exact.keys() == rounded.keys()
    assert all(torch.equal(exact[name].bfloat16(), rounded[name]) for name in exact)
    masks.check(checkpoints.load(bf16), pruned)
    before = weights_of(Checkpoint(tmp_path / f"{torch.bfloat16}_sparse", ""))
    assert any(not torch.equal(before[name], rounded[name]) for name in before)
    # the loss that is reported is the published model's
    again, _, _ = finetuned(
        finetuning(distill, steps=0), {"model": bf16, "teacher": bf16, "data": data}, tmp_path, "again"
    )
    assert metrics["validation_loss"] == again["validation_loss"]


def curve(log: RecordingLog) -> list[tuple[float | int, ...]]:
    """Losses and gradient norms of the steps, and the validation losses before the end."""
    names = "loss", "grad_norm", "validation_loss"
    steps = [(at, *(values[name] for name in names if name in values)) for at, values in log.points]
    return [row for row in steps[:-1] if len(row) > 1]


def sparse(dense: Checkpoint, out: Path) -> tuple[Checkpoint, masks.Masks]:
    """Half of each block's matrices pruned at random."""
    model = checkpoints.load(dense)
    generator = torch.Generator().manual_seed(1)
    pruned = {
        name: torch.rand(linear.weight.shape, generator=generator) < 0.5
        for name, linear in FAMILY.prunable(model).items()
    }
    masks.apply_(model, pruned)
    checkpoints.save(model, dense, pruned, out)
    return Checkpoint(out, "sparse"), pruned


def test_weights_are_held_in_another_dtype_for_the_time_being() -> None:
    """Parameters stay the same objects, tied ones stay tied, mixed dtypes come back."""
    model = nn.Sequential(
        nn.Linear(4, 4).bfloat16(), nn.LayerNorm(4), nn.Linear(4, 4).half(), nn.BatchNorm1d(4).bfloat16()
    )
    model[2].weight = model[0].weight
    before = {name: (id(p), p.dtype) for name, p in model.named_parameters()}
    kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    with precision.holding(model, torch.float32):
        assert {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}
        model[0].weight.data.fill_(1 + 2**-12)
        model(torch.ones(2, 4)).sum().backward()
        model.zero_grad()
    assert {name: (id(p), p.dtype) for name, p in model.named_parameters()} == before
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == kinds
    assert model[2].weight is model[0].weight
    assert (model[0].weight == 1).all()


def test_the_memory_of_copies_is_in_the_estimate() -> None:
    size = ModelSize(1e9, 1024, 24, 16, 32000)

    def needed(*lines: str) -> float:
        config = config_of(*lines)
        slice_of = {"training": config.finetune.model_dump(mode="json"), "distill": config.distill.model_dump()}
        inputs = {"teacher": "dense"}
        return STAGES["finetune"].cost.memory_bytes(Workload("finetune", slice_of, inputs), size, setting_of(config))

    fp32, bf16 = "finetune.precision=fp32", "finetune.precision=bf16"
    rounding = "finetune.bf16_updates=stochastic_rounding"
    # computed in fp32, they are held in fp32
    assert needed(fp32, "model.dtype=bfloat16") == needed(fp32)
    # student, gradients and casts: 2 + 8 bytes in the place of 4 + 4 + 2; the teacher is rounded either way
    assert needed(bf16, "model.dtype=bfloat16") == pytest.approx(needed(bf16))
    saved = needed(bf16, "model.dtype=bfloat16") - needed(bf16, "model.dtype=bfloat16", rounding)
    assert saved == pytest.approx(6e9 - 0.5e9, rel=0.01)
