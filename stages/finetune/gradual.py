"""Gradual pruning inside fine-tuning: the masks grow every few steps along a cubic schedule (ALGORITHMS section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from stages.contracts import Log
from stages.families import Batch, Family
from stages.finetune.spec import CubicOptions
from stages.masks import Masks
from stages.prune.selection import num_pruned
from stages.prune.sequential import note_raised_damping, prune_model
from stages.schedule import cubic


@dataclass(frozen=True)
class Gradual:
    """A cubic schedule with the calibration samples of its pruner; magnitude needs none."""

    config: CubicOptions
    family: Family
    samples: Batch | None

    def due(self, step: int) -> bool:
        """Returns whether the masks change after this many finished steps; they always do at end_step."""
        since = step - self.config.begin_step
        return step == self.config.end_step or (
            since > 0 and step < self.config.end_step and since % self.config.update_every == 0
        )

    def update(self, model: Any, pruned: Masks, step: int, log: Log) -> Masks:
        """Prunes `model` in place to the schedule's sparsity at `step`; masks are nested, and the last ones have exact
        counts."""
        config = self.config
        target = cubic(step, config.begin_step, config.end_step, config.initial, config.final)
        grown, reports = prune_model(model, self.family, self.samples, config.prune, target, pruned, log)
        for name, keep_OI in pruned.items():
            assert not torch.any(grown.get(name, keep_OI) & ~keep_OI), (
                f"{name}: the update at step {step} revived weights"
            )
        note_raised_damping(reports, config.prune, log)
        if step == config.end_step:
            for report in reports:
                keep_OI = grown[report.name]
                rows, columns = keep_OI.shape
                asked = num_pruned(rows, columns, report.target, config.prune, pruned.get(report.name))
                found = int((~keep_OI).sum())
                assert found == asked, f"{report.name}: {found} weights pruned at the end, {asked} asked for"
        return grown
