"""Checkpoints from which a killed training run goes on to the same result.

One folder each, complete by the rename that names it: weights, AdamW moments, masks, and the progress as JSON. Row
order, learning rate and random numbers of a step follow from the seed and the step's number alone, so no generator
state is kept. Only the last good checkpoint stays.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages import masks
from stages.masks import Masks

PREFIX = "step_"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """Of a training run, after `step` optimizer steps."""

    step: int = 0
    tokens: int = 0
    """Real tokens seen."""
    seconds: float = 0.0
    """Spent in training steps."""
    reference: float = 0.0
    """The loss that divergence is measured against: of the first step, or of a higher one right after a mask update."""
    remasked: bool = False
    """Whether the masks changed after the last step."""
    losses: list[float] = field(default_factory=list)
    """Of the last steps."""


def last(folder: Path) -> Path | None:
    """The newest checkpoint in a folder, if there is any."""
    return max(folder.glob(f"{PREFIX}*"), default=None)


def save(
    folder: Path, model: nn.Module, adamw: torch.optim.AdamW, pruned: Mapping[str, Tensor], done: Progress
) -> None:
    """Writes a checkpoint and then removes older ones."""
    older = list(folder.glob(f"{PREFIX}*"))
    writing = folder / "writing"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    # tied weights are one parameter, so named_parameters has no duplicates that safetensors would refuse
    weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    moments = {
        f"{name}.{moment}": adamw.state[parameter][moment].contiguous()
        for name, parameter in model.named_parameters()
        if parameter in adamw.state
        for moment in MOMENTS
    }
    save_file(weights, writing / "weights.safetensors")
    save_file(moments, writing / "moments.safetensors")
    masks.save(pruned, writing / "masks.safetensors")
    (writing / "progress.json").write_text(json.dumps(asdict(done)))
    writing.rename(folder / f"{PREFIX}{done.step:08d}")
    for path in older:
        shutil.rmtree(path)


@torch.no_grad()
def restore(checkpoint: Path, model: nn.Module, adamw: torch.optim.AdamW) -> tuple[Masks, Progress]:
    """Puts weights and moments in place; returns the masks and the progress."""
    done = Progress(**json.loads((checkpoint / "progress.json").read_text()))
    weights = load_file(checkpoint / "weights.safetensors")
    moments = load_file(checkpoint / "moments.safetensors")
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
        if f"{name}.{MOMENTS[0]}" in moments:
            state = {moment: moments[f"{name}.{moment}"] for moment in MOMENTS}
            adamw.state[parameter] = {"step": torch.tensor(float(done.step))} | state
    return masks.load(checkpoint / "masks.safetensors"), done
