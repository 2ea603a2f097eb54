"""The teacher of a distillation: its hidden states, computed as they are needed or read from a cache on disk.

The teacher is the dense model of the task, in eval mode, never changed (ALGORITHMS section 1).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages import checkpoints, devices, sealed
from stages.contracts import Checkpoint, Log, UserError
from stages.families import Batch, Family, Rows
from stages.finetune import batches
from stages.finetune.spec import Training
from stages.precision import autocast, held


class Teacher:
    """Runs the dense model for every batch. `all_layers`: its states are those of every layer; else only the last."""

    def __init__(
        self, checkpoint: Checkpoint, family: Family, config: Training, all_layers: bool, device: torch.device
    ) -> None:
        self.family = family
        self.precision = config.precision
        self.all_layers = all_layers
        self.model: Any = checkpoints.load(checkpoint, held(config)).eval().requires_grad_(False).to(device)
        self.head: nn.Module = family.head(self.model)
        if config.precision == "bf16":
            # what autocast would do anew for every batch
            for linear in family.prunable(self.model).values():
                linear.to(torch.bfloat16)
        self._before = _digest(self.model)

    @torch.no_grad()
    def states(self, rows_B: Tensor, batch: Batch) -> list[Tensor]:
        """Returns `h_BTD` of each layer for these rows of the training data; the last is the input of `head`."""
        with autocast(self.precision, self.model.device):
            if self.all_layers:
                return self.family.states(self.model, batch)
            return [self.family.hidden(self.model, batch)]

    def masks(self, batch: Batch) -> list[Tensor]:
        """Returns for each of its states the positions that are not padding."""
        masks = self.family.feature_masks(self.model, batch) if self.all_layers else [None]
        return [batch["use"] if mask_BT is None else mask_BT for mask_BT in masks]

    def check_untouched(self) -> None:
        assert _digest(self.model) == self._before, "training changed the teacher"


class CachedTeacher:
    """Runs the dense model once for every row that training will visit, and keeps its states on disk in bf16, without
    padding."""

    def __init__(self, live: Teacher, rows: Rows, visited: Tensor, config: Training, log: Log, option: str) -> None:
        """Raises UserError (option `option`.teacher_cache_gb) before any work if the states exceed the budget, or
        depend on the batch."""
        if not rows.independent:
            raise UserError(
                "in windows as long as the clips, states depend on the rest of the batch and cannot be cached; "
                "expected 0, or data.speech.window=full",
                f"{option}.teacher_cache_gb",
            )
        self.live = live
        self.head = live.head
        self.numbers = torch.unique(visited)
        size = config.micro_batch_size
        self.device = live.model.device
        probe = live.states(self.numbers[:1], devices.moved(rows.take(self.numbers[:1]), self.device))
        self.widths_L = torch.tensor([h_BTD.shape[-1] for h_BTD in probe])
        self.length_RL = torch.zeros(len(self.numbers), len(probe), dtype=torch.long)
        for numbers_B, batch in batches.micro_batches(rows, self.numbers, size):
            self.length_RL[self._places(numbers_B)] = torch.stack([mask.sum(1) for mask in live.masks(batch)], 1)
        ends_RL = (self.length_RL * self.widths_L).flatten().cumsum(0).view_as(self.length_RL)
        self.start_RL = ends_RL - self.length_RL * self.widths_L
        total = int(ends_RL[-1, -1])
        gigabytes = 2 * total / 1e9
        file = log.resume / "teacher_states.bf16"
        _check_room(gigabytes, config.teacher_cache_gb, len(self.numbers), file, option)
        done = log.resume / "teacher_states.json"
        held = {"rows": len(self.numbers), "values": total, "widths": self.widths_L.tolist()}
        complete = _is_complete(file, done, held, log)
        self.values = torch.from_file(str(file), shared=True, size=total, dtype=torch.bfloat16)
        if not complete:
            self._fill(rows, size, log)
            sealed.sync(file)
            done.write_text(json.dumps(held | {"sha256": sealed.digest(file)}), encoding="utf-8")
            sealed.sync(done)
        live.check_untouched()
        log.facts(teacher_cache_gb=round(gigabytes, 3))
        if not complete:
            log.note(f"teacher states of {len(self.numbers)} rows on disk: {gigabytes:.2f} GB")

    def _fill(self, rows: Rows, micro_batch_size: int, log: Log) -> None:
        with log.bar("teacher states", total=len(self.numbers), unit="row") as bar:
            for numbers_B, batch in batches.micro_batches(rows, self.numbers, micro_batch_size, self.device):
                places_B = self._places(numbers_B).tolist()
                for layer, h_BTD in enumerate(self.live.states(numbers_B, batch)):
                    for place, h_TD in zip(places_B, h_BTD, strict=True):
                        kept_TD = self._stored(place, layer)
                        kept_TD.copy_(h_TD[: len(kept_TD)])
                bar.advance(len(numbers_B))

    def _places(self, numbers_B: Tensor) -> Tensor:
        return torch.searchsorted(self.numbers, numbers_B)

    def _stored(self, place: int, layer: int) -> Tensor:
        """Returns the view `h_TD` of one row's state on disk."""
        start, length, width = self.start_RL[place, layer], self.length_RL[place, layer], self.widths_L[layer]
        return self.values[int(start) : int(start + length * width)].view(int(length), int(width))

    def states(self, rows_B: Tensor, batch: Batch) -> list[Tensor]:
        """Returns the states as `Teacher.states` does, in bf16, zero at padding."""
        places_B = self._places(rows_B).tolist()
        return [
            _padded([self._stored(place, layer) for place in places_B], mask_BT.shape[1]).to(self.device)
            for layer, mask_BT in enumerate(self.live.masks(batch))
        ]

    def check_untouched(self) -> None:
        self.live.check_untouched()


def _padded(rows: Sequence[Tensor], length: int) -> Tensor:
    h_BTD = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
    for row, h_TD in zip(h_BTD, rows, strict=True):
        row[: len(h_TD)] = h_TD
    return h_BTD


def _is_complete(file: Path, done: Path, held: dict[str, Any], log: Log) -> bool:
    """Returns whether all states are there, from an earlier attempt. Damaged ones are deleted and reported to `log`."""
    if not done.exists():
        return False
    try:
        if json.loads(done.read_text(encoding="utf-8")) == held | {"sha256": sealed.digest(file)}:
            return True
    except (OSError, ValueError):
        pass  # reported below, as any other damage
    log.note("the cached teacher states of an earlier attempt are damaged; they are made again")
    for path in (done, file):
        path.unlink(missing_ok=True)
    return False


def _check_room(gigabytes: float, budget: float, num_rows: int, file: Path, option: str) -> None:
    if gigabytes > budget:
        raise UserError(
            f"the teacher states of {num_rows} rows need {gigabytes:.3g} GB of disk, the budget is {budget:g} GB "
            "(0 runs the teacher on the fly)",
            f"{option}.teacher_cache_gb",
        )
    free = shutil.disk_usage(file.parent).free / 1e9
    # a killed run may have left some or all of them; blocks have 512 bytes
    allocated = file.stat().st_blocks * 512 / 1e9 if file.exists() else 0.0
    if gigabytes - allocated > free:
        raise UserError(
            f"the teacher states of {num_rows} rows need {gigabytes:.3g} GB of disk, {free:.3g} GB are free",
            f"{option}.teacher_cache_gb",
        )


def _digest(model: nn.Module, count: int = 8) -> str:
    """Returns the sha256 of a few parameters spread over the model."""
    parameters = list(model.parameters())
    sha = hashlib.sha256()
    for parameter in itertools.islice(parameters, 0, None, max(1, len(parameters) // count)):
        sha.update(parameter.detach().flatten()[:65536].float().cpu().numpy().tobytes())
    return sha.hexdigest()
