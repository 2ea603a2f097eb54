"""Checkpoints from which a killed training run goes on to the same result.

One folder each, complete by the rename that names it: weights, the optimizer's state, masks, and the progress as JSON.
Row order, learning rate and random numbers of a step follow from the seed and the step's number alone, so no generator
state is kept. Only the last good checkpoint stays.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages import masks
from stages.masks import Masks

PREFIX = "step_"


@dataclass
class Progress:
    """Of a training run, after `step` optimizer steps."""

    step: int = 0
    tokens: int = 0
    """Real tokens seen."""
    seconds: float = 0.0
    """Spent in training steps."""
    reference: float = 0.0
    """Where the loss began: the loss of the first step, or a higher one right after a mask update."""
    remasked: bool = False
    """Whether the masks changed after the last step."""
    losses: list[float] = field(default_factory=list)
    """Of the last steps."""


def last(folder: Path) -> Path | None:
    """The newest checkpoint in a folder, if there is any."""
    return max(folder.glob(f"{PREFIX}*"), default=None)


def save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, pruned: Mapping[str, Tensor], done: Progress
) -> None:
    """Writes a checkpoint and then removes older ones."""
    older = list(folder.glob(f"{PREFIX}*"))
    writing = folder / "writing"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    # tied weights are one parameter, so named_parameters has no duplicates that safetensors would refuse
    weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    state = {
        f"{name}.{key}": value.contiguous()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }
    save_file(weights, writing / "weights.safetensors")
    save_file(state, writing / "optimizer.safetensors")
    masks.save(pruned, writing / "masks.safetensors")
    (writing / "progress.json").write_text(json.dumps(asdict(done)))
    writing.rename(folder / f"{PREFIX}{done.step:08d}")
    for path in older:
        shutil.rmtree(path)


@torch.no_grad()
def restore(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Masks, Progress]:
    """Puts weights and the optimizer's state in place; returns the masks and the progress."""
    done = Progress(**json.loads((checkpoint / "progress.json").read_text()))
    weights = load_file(checkpoint / "weights.safetensors")
    state: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in load_file(checkpoint / "optimizer.safetensors").items():
        parameter_name, _, key = name.rpartition(".")
        state[parameter_name][key] = value
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
        if name in state:
            # the count of steps stays where the optimizer keeps it
            optimizer.state[parameter] = {
                key: value if key == "step" and not optimizer.defaults.get("fused") else value.to(parameter.device)
                for key, value in state[name].items()
            }
    return masks.load(checkpoint / "masks.safetensors"), done
