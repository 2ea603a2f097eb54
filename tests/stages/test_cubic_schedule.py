"""Gradual pruning inside training: its levels, nested masks, resuming."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from stages import masks
from stages.contracts import Artifact, Checkpoint
from stages.finetune import resume
from stages.finetune import run as finetune
from stages.finetune.spec import CubicOptions
from stages.schedule import cubic
from tests.recording import DyingLog, Killed, RecordingLog
from tests.running_stages import assert_same_weights, finetuned
from tests.stage_options import ALL, finetuning
from tests.tiny_training import calibration, prune_config


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
    metrics = finetune.run(finetuning(cubic_slice=schedule, steps=10, checkpoint_every=1), inputs, out, log)
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
    metrics, _, log = finetuned(finetuning(feature, schedule, steps=6, divergence=1.5, lr=1e-4), inputs, tmp_path)
    assert log.points[0][1]["loss"] == 0
    assert metrics["sparsity"] == 0.75


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_cubic_run_resumes_with_its_masks(optimizer: str, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    schedule = CubicOptions(
        prune=prune_config("magnitude"), initial=0.0, final=0.75, begin_step=0, end_step=6, update_every=2
    )
    inputs = inputs | {"model": inputs["teacher"]}
    config = finetuning(cubic_slice=schedule, steps=8, checkpoint_every=2, optimizer=optimizer)
    _, whole, _ = finetuned(config, inputs, tmp_path, "whole")
    dying, out = DyingLog(tmp_path / "resume", last=5), tmp_path / "out"
    out.mkdir()
    with pytest.raises(Killed):
        finetune.run(config, inputs, out, dying)
    finetune.run(config, inputs, out, RecordingLog(dying.resume))
    assert_same_weights(whole, Checkpoint(out, "resumed"))
