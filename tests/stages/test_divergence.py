"""When training stops, and what the line blames."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stages.contracts import UserError
from stages.finetune import trainer
from stages.finetune.spec import Distill
from tests.recording import RecordingLog
from tests.stage_options import ALL, TASK, training


def fed(losses: list[float], tmp_path: Path, weights: Distill = TASK, norm: float = 1.0, **changes: object) -> int:
    """Steps of a run whose losses are given; how many were taken."""
    given = iter(losses)
    run: Any = object.__new__(trainer._Run)
    run.model, run.head, run.pruned, run.log = (
        SimpleNamespace(device="cpu"),
        None,
        {},
        RecordingLog(tmp_path / "resume"),
    )
    run.order, run.done = torch.zeros(4 * len(losses), dtype=torch.long), trainer.Progress()
    rows = SimpleNamespace(sizes=torch.ones(1), take=lambda chosen_B: {"use": torch.ones(len(chosen_B), 2)})
    config = training(micro_batch_size=4, **changes)
    run.plan = SimpleNamespace(
        training=config, rows=rows, steps=len(losses), gradual=None, option="finetune", weights=weights
    )
    run.optimizer = SimpleNamespace(step=lambda lr: torch.tensor(norm))
    run.objective = SimpleNamespace(backward=lambda model, head, micro: {"loss": torch.tensor(next(given))})
    for _ in losses:
        run.step()
    return int(run.done.step)


HEALTHY = {
    "a good start": [1e-4 * 3**step for step in range(8)],
    "begins at zero": [0.0, 0.1, 0.5, 1.0, 0.8] * 3,
    "an easy first batch": [0.5, 2.0, 2.2, 1.8, 2.4, 2.1] * 4,
    "one hard batch": [2.0] * 12 + [30.0] + [2.0] * 12,
    "rises little": [2.5, 3.5, 4.0, 4.4] * 4,
}
DIVERGED = {
    "at once": [2.5, 6.0, 9.0, 10.0, 10.0, 10.0, 10.0, 10.0],
    "slowly": [2.5 + 0.5 * step for step in range(40)],
    "from a good start": [1e-4] * 5 + [5.0] * 10,
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_goes_on(name: str, tmp_path: Path) -> None:
    assert fed(HEALTHY[name], tmp_path, divergence=3.0) == len(HEALTHY[name])


@pytest.mark.parametrize("name", DIVERGED)
def test_a_rising_mean_stops_the_run_and_names_the_threshold(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"over 3 times .*lower finetune\.lr, or raise finetune\.divergence") as caught:
        fed(DIVERGED[name], tmp_path, divergence=3.0)
    assert caught.value.option == "finetune.divergence"


def test_the_rise_is_measured_in_the_weights_of_the_losses(tmp_path: Path) -> None:
    heavy = ALL.model_copy(update={"ce": 0.0, "kd": 10.0, "squarehead": 0.0})
    losses = [1e-3] + [10.0] * 12
    assert fed(losses, tmp_path, heavy, divergence=3.0) == len(losses)
    with pytest.raises(UserError, match="diverged"):
        fed(losses, tmp_path, TASK, divergence=3.0)


@pytest.mark.parametrize(
    ("losses", "weights", "option", "says"),
    [
        ([float("inf")], {"kd": 1e6}, "distill.kd", r"lower distill\.kd=1e\+06"),
        ([float("nan")], {}, "model.path", "the model is at fault"),
        ([2.0, float("nan")], {}, "finetune.lr", "lower finetune.lr$"),
        ([2.0, float("inf")], {"squarehead": 50.0}, "finetune.lr", "lower finetune.lr, or distill.squarehead=50"),
    ],
)
def test_what_is_not_finite_is_blamed_on_what_had_a_say(
    losses: list[float], weights: dict[str, float], option: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        fed(losses, tmp_path, TASK.model_copy(update=weights))
    assert caught.value.option == option
    with pytest.raises(UserError, match="gradient norm"):
        fed([1.0], tmp_path, norm=float("inf"))
