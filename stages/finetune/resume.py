"""Checkpoints from which a killed training run resumes to the same result.

Each is a sealed folder (`stages.sealed`): weights, the optimizer's state, masks, and the progress as JSON. Row order,
learning rate and random numbers of a step follow from the seed and the step's number alone, so no generator state is
kept. The last two checkpoints stay: if the newest is damaged, the one before it is used.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages import masks, sealed
from stages.contracts import Log
from stages.finetune.optim import MaskedOptimizer
from stages.masks import Masks

PREFIX = "step_"
KEPT = 2
"""Number of checkpoints: the newest, and one in case that is damaged."""


@dataclass
class Progress:
    """Progress of a training run, after `step` optimizer steps."""

    step: int = 0
    tokens: int = 0
    """Real tokens seen."""
    seconds: float = 0.0
    """Time spent in training steps."""
    reference: float = 0.0
    """Initial loss: that of the first step, or a higher one right after a mask update."""
    remasked: bool = False
    """Whether the masks changed after the last step."""
    losses: list[float] = field(default_factory=list)
    """Losses of the last steps."""

    @classmethod
    def of(cls, value: object) -> Progress:
        """Reads progress from JSON. Raises ValueError for values that no run can reach."""
        kinds = {"step": int, "tokens": int, "seconds": float, "reference": float, "remasked": bool, "losses": list}
        if not isinstance(value, dict) or value.keys() != kinds.keys():
            raise ValueError(f"expected {', '.join(kinds)}")
        if wrong := [key for key, kind in kinds.items() if type(value[key]) is not kind]:
            raise ValueError(f"{wrong[0]} is {value[wrong[0]]!r}")
        done = cls(**value)
        if done.step < 1 or done.seconds <= 0 or not done.losses:
            raise ValueError(f"step is {done.step}, seconds {done.seconds}, losses {done.losses}")
        if not all(type(loss) is float and math.isfinite(loss) for loss in (done.reference, *done.losses)):
            raise ValueError("a loss is not finite")
        return done


@dataclass(frozen=True)
class State:
    """A checkpoint that was read and fits the model."""

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Tensor]]
    """State of the optimizer by name of the parameter."""
    pruned: Masks
    done: Progress


def last(folder: Path) -> Path | None:
    """Returns the newest checkpoint in a folder, if there is any."""
    return max(folder.glob(f"{PREFIX}*"), default=None)


def go_on_from(state: Path, folder: Path) -> None:
    """Makes a training with checkpoints in `folder` begin after the last step of another, whose `save` filled `state`;
    has no effect if it has begun already."""
    if last(folder):
        return
    kept = last(state)
    assert kept, f"no state is kept in {state}"
    writing = sealed.begin(folder)
    for file in kept.iterdir():
        if file.name != sealed.SEAL:
            shutil.copyfile(file, writing / file.name)
    sealed.finish(writing, folder / kept.name)


def save(folder: Path, optimizer: MaskedOptimizer, pruned: Mapping[str, Tensor], done: Progress) -> None:
    """Writes a checkpoint and then removes all but the one before it."""
    writing = sealed.begin(folder)
    state = {
        f"{name}.{key}": value.contiguous()
        for name, parameter in optimizer.updates.exact.items()
        for key, value in optimizer.inner.state.get(parameter, {}).items()
    }
    # tied weights are one parameter, so there is no duplicate that safetensors would refuse
    weights = {name: value.contiguous() for name, value in optimizer.updates.state().items()}
    save_file(weights, writing / "weights.safetensors")
    save_file(state, writing / "optimizer.safetensors")
    masks.save(pruned, writing / "masks.safetensors")
    (writing / "progress.json").write_text(json.dumps(asdict(done)), encoding="utf-8")
    sealed.finish(writing, folder / f"{PREFIX}{done.step:08d}")
    for path in sorted(folder.glob(f"{PREFIX}*"))[:-KEPT]:
        shutil.rmtree(path)


def restore(
    folder: Path, optimizer: MaskedOptimizer, pruned: Mapping[str, Tensor], steps: int, log: Log
) -> tuple[Masks, Progress] | None:
    """Loads weights and the optimizer's state of the newest good checkpoint; returns its masks and progress.

    Returns None if there is none. Damaged ones are deleted and reported to `log`. `pruned` are the masks that the run
    began with, `steps` its number of steps.
    """
    damaged: list[str] = []
    for checkpoint in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        trouble = sealed.damage(checkpoint)
        if not trouble:
            try:
                state = _read(checkpoint, optimizer, pruned, steps)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                trouble = f"it does not fit this run: {error}"
            else:
                _put(state, optimizer)
                if damaged:
                    log.note(f"{damaged[0]}; the checkpoint before it is used")
                return state.pruned, state.done
        damaged.append(f"the checkpoint {checkpoint.name} is unusable ({trouble})")
        shutil.rmtree(checkpoint)
    if damaged:
        log.note(f"{damaged[0]}; training starts again")
    return None


def _read(checkpoint: Path, optimizer: MaskedOptimizer, pruned: Mapping[str, Tensor], steps: int) -> State:
    """Reads a checkpoint. Raises ValueError if it is not one of this run."""
    done = Progress.of(json.loads((checkpoint / "progress.json").read_text(encoding="utf-8")))
    if not done.step < steps or checkpoint.name != f"{PREFIX}{done.step:08d}":
        raise ValueError(f"step is {done.step} of {steps}")
    weights = load_file(checkpoint / "weights.safetensors")
    shapes = {name: parameter.shape for name, parameter in optimizer.parameters.items()}
    if {name: value.shape for name, value in weights.items()} != shapes:
        raise ValueError("its weights are of another model")
    state: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in load_file(checkpoint / "optimizer.safetensors").items():
        parameter, _, key = name.rpartition(".")
        state[parameter][key] = value
    if not state.keys() <= weights.keys():
        raise ValueError("its optimizer is of another model")
    kept = masks.load(checkpoint / "masks.safetensors")
    zeroed = {name for name, keep_OI in pruned.items() if not keep_OI.all()}
    if not zeroed <= kept.keys() or any(keep.shape != shapes[f"{name}.weight"] for name, keep in kept.items()):
        raise ValueError("its masks are of another model")
    return State(weights, state, kept, done)


@torch.no_grad()
def _put(state: State, optimizer: MaskedOptimizer) -> None:
    inner = optimizer.inner
    for name, parameter in optimizer.updates.exact.items():
        optimizer.updates.restore(name, state.weights[name])
        if name in state.optimizer:
            # the count of steps stays where the optimizer keeps it
            inner.state[parameter] = {
                key: value if key == "step" and not inner.defaults.get("fused") else value.to(parameter.device)
                for key, value in state.optimizer[name].items()
            }
    optimizer.set_masks(state.pruned)
