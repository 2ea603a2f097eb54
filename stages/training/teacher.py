"""The teacher of a distillation: its hidden states, computed as they are needed or read from a cache on disk.

The teacher is the dense model of the task, in eval mode, never changed (ALGORITHMS section 1).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.contracts import Checkpoint, Log, UserError
from pipeline.schema import Training
from stages import checkpoints
from stages.families import Batch, Family
from stages.training import batches
from stages.training.precision import autocast


class Teacher:
    """Runs the dense model for every batch."""

    def __init__(self, checkpoint: Checkpoint, family: Family, config: Training) -> None:
        self.family = family
        self.precision = config.precision
        self.model: Any = checkpoints.load(checkpoint).eval().requires_grad_(False)
        self.head: nn.Module = family.head(self.model)
        if config.precision == "bf16":
            # what autocast would do anew for every batch
            for linear in family.prunable(self.model).values():
                linear.to(torch.bfloat16)
        self._before = _digest(self.model)

    @torch.no_grad()
    def states(self, rows_B: Tensor, batch: Batch) -> list[Tensor]:
        """`h_BTD` of each layer for these rows of the training data; the last is what `head` reads."""
        with autocast(self.precision):
            return self.family.states(self.model, batch)

    def check_untouched(self) -> None:
        assert _digest(self.model) == self._before, "training changed the teacher"


class CachedTeacher:
    """Runs the dense model once for every row that training will visit, and keeps its states on disk in bf16."""

    def __init__(
        self, live: Teacher, rows: Batch, visited: Tensor, config: Training, all_layers: bool, log: Log, option: str
    ) -> None:
        """Raises UserError (option `option`.teacher_cache_gb) before any work when the states exceed the budget."""
        self.live = live
        self.head = live.head
        self.numbers = torch.unique(visited)
        self.length = rows["input_ids"].shape[1]
        self.first = 0 if all_layers else -1
        probe = live.states(self.numbers[:1], batches.take(rows, self.numbers[:1]))[self.first :]
        self.widths = [h_BTD.shape[-1] for h_BTD in probe]
        row_size = self.length * sum(self.widths)
        gigabytes = 2 * row_size * len(self.numbers) / 1e9
        _check_room(gigabytes, config.teacher_cache_gb, len(self.numbers), log.resume, option)
        file = log.resume / "teacher_states.bf16"
        done = log.resume / "teacher_states.json"
        held = {"rows": len(self.numbers), "length": self.length, "widths": self.widths}
        complete = done.exists() and json.loads(done.read_text()) == held
        self.states_RS = torch.from_file(
            str(file), shared=True, size=row_size * len(self.numbers), dtype=torch.bfloat16
        ).view(len(self.numbers), row_size)
        if not complete:
            self._fill(rows, config.micro_batch_size, log)
            done.write_text(json.dumps(held))
        live.check_untouched()
        log.facts(teacher_cache_gb=round(gigabytes, 3))
        if not complete:
            log.note(f"teacher states of {len(self.numbers)} rows on disk: {gigabytes:.2f} GB")

    def _fill(self, rows: Batch, micro_batch_size: int, log: Log) -> None:
        at = 0
        with log.bar("teacher states", total=len(self.numbers), unit="row") as bar:
            for numbers_B, batch in batches.micro_batches(rows, self.numbers, micro_batch_size):
                states = self.live.states(numbers_B, batch)[self.first :]
                for layer, h_BTD in zip(self._layers(at, len(numbers_B)), states, strict=True):
                    layer[:, : h_BTD.shape[1]] = h_BTD
                at += len(numbers_B)
                bar.advance(len(numbers_B))

    def _layers(self, at: int, num_rows: int) -> list[Tensor]:
        """Views `h_BTD` of consecutive rows on disk."""
        rows_BS = self.states_RS[at : at + num_rows]
        sizes = [self.length * width for width in self.widths]
        return [
            part.view(num_rows, self.length, width)
            for part, width in zip(torch.split(rows_BS, sizes, dim=1), self.widths, strict=True)
        ]

    def states(self, rows_B: Tensor, batch: Batch) -> list[Tensor]:
        """As `Teacher.states`, in bf16; only the last layer where only that was asked for."""
        tokens = batch["input_ids"].shape[1]
        places = torch.searchsorted(self.numbers, rows_B).tolist()
        by_row = [self._layers(place, 1) for place in places]
        return [torch.cat([row[layer][:, :tokens] for row in by_row]) for layer in range(len(self.widths))]

    def check_untouched(self) -> None:
        self.live.check_untouched()


def _check_room(gigabytes: float, budget: float, num_rows: int, folder: Path, option: str) -> None:
    if gigabytes > budget:
        raise UserError(
            f"the teacher states of {num_rows} rows need {gigabytes:.3g} GB of disk, the budget is {budget:g} GB "
            "(0 runs the teacher on the fly)",
            f"{option}.teacher_cache_gb",
        )
    free = shutil.disk_usage(folder).free / 1e9
    if gigabytes > free:
        raise UserError(
            f"the teacher states of {num_rows} rows need {gigabytes:.3g} GB of disk, {free:.3g} GB are free",
            f"{option}.teacher_cache_gb",
        )


def _digest(model: nn.Module, count: int = 8) -> str:
    """sha256 of a few parameters spread over the model."""
    parameters = list(model.parameters())
    sha = hashlib.sha256()
    for parameter in itertools.islice(parameters, 0, None, max(1, len(parameters) // count)):
        sha.update(parameter.detach().flatten()[:65536].float().numpy().tobytes())
    return sha.hexdigest()
