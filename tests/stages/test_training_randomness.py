"""One seed, one training: nothing that a step draws depends on what was drawn before it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.contracts import Artifact, Checkpoint, Stopped
from stages.finetune import run as finetune
from stages.finetune.randomness import seeded
from tests.recording import AskedToStop, RecordingLog
from tests.running_stages import assert_same_weights, finetuned, timeless
from tests.stage_options import TASK, finetuning
from tests.tiny import text_data
from tests.tiny_training import sparse

LIBRARIES = {
    "torch": lambda: torch.rand(()).item(),
    "numpy": lambda: float(np.random.rand()),
    "python": random.random,
}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    return {"model": sparse(tmp_path / "sparse"), "data": text_data(tmp_path / "texts")}


@pytest.mark.parametrize("library", LIBRARIES)
def test_draws_follow_from_seed_and_stream_and_leave_the_generators_alone(library: str) -> None:
    draw = LIBRARIES[library]
    with seeded(1, 7):
        outside = draw()
    drawn = []
    for _ in range(2):
        draw()  # whatever came before
        with seeded(2, 3):
            drawn.append(draw())
    assert drawn[0] == drawn[1] != outside
    with seeded(1, 7):
        with seeded(2, 3):
            draw()
        assert draw() == outside, "the outer stream goes on as if nothing had been drawn inside"
    with seeded(2**32 - 1, 1_000_001):
        draw()


class Drawing:
    """Replaces the trainer's forward pass: adds numbers of all libraries to the hidden states."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from stages.families.causal_lm import CausalLM

        plain = CausalLM.hidden

        def hidden(family: CausalLM, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            noise = sum(draw() for draw in LIBRARIES.values())
            return plain(family, model, batch) * (1 + 0.1 * noise if model.training else 1)

        monkeypatch.setattr(CausalLM, "hidden", hidden)


def test_two_processes_train_alike(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Drawing(monkeypatch)
    made = []
    for process in ("a", "b"):
        torch.manual_seed(ord(process))
        np.random.seed(ord(process))
        random.seed(process)
        made.append(finetuned(finetuning(TASK, steps=3), inputs, tmp_path, process)[1])
    assert_same_weights(*made)
    other = finetuned(finetuning(TASK, steps=3, seed=4), inputs, tmp_path, "c")[1]
    with pytest.raises(AssertionError):
        assert_same_weights(made[0], other)


def test_a_run_that_was_asked_to_stop_goes_on_as_if_it_had_not_been(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Drawing(monkeypatch)
    config = finetuning(TASK, steps=6, checkpoint_every=4)
    _, whole, whole_log = finetuned(config, inputs, tmp_path, "whole")
    log, out = AskedToStop(tmp_path / "resume"), tmp_path / "out"
    out.mkdir()
    with pytest.raises(Stopped, match="stopped after step 3 of 6"):
        finetune.run(config, inputs, out, log)
    np.random.seed(5)
    again = RecordingLog(log.resume)
    again.points = log.points
    finetune.run(config, inputs, out, again)
    assert again.notes == ["resumes after step 3 of 6"]
    assert_same_weights(whole, Checkpoint(out, "resumed"))
    assert timeless(again.points) == timeless(whole_log.points)
