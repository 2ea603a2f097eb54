"""ATP (arXiv 2502.14770): the blocks' sparsities are an arithmetic progression, later blocks sparser, since errors made
early are amplified. An encoder and a decoder have a progression each.

The paper takes the best of a grid of steps, by the loss; a sweep over `prune.allocation.beta` does the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from stages.contracts import UserError
from stages.prune.allocations import Prunable, Reads
from stages.prune.ratios import sizes_of_blocks, with_mean
from stages.prune.spec import Allocation

WORTH_IT = 0.6
"""Sparsity from which a progression helps, by the paper's tables."""


class AtpOptions(Allocation):
    beta: float | None = Field(ge=0)
    """By how much each block is sparser than the one before it. null: half of the largest that is possible from a
    sparsity of 0.6 on, and 0 below."""


class Progression:
    reads: Reads = "shapes"
    options = AtpOptions

    def share(self, linears: Mapping[str, Prunable], sparsity: float, config: AtpOptions) -> Mapping[str, float]:
        sizes = sizes_of_blocks({name: (linear.block, linear.size) for name, linear in linears.items()})
        stacks: dict[str, list[str]] = {}
        for block in sizes:
            stacks.setdefault(block.rpartition(".")[0], []).append(block)
        found: dict[str, float] = {}
        for blocks in stacks.values():
            step = self._step(len(blocks), sparsity, config.beta)
            middle = (len(blocks) - 1) / 2
            wanted = {block: sparsity + step * (number - middle) for number, block in enumerate(blocks)}
            found |= with_mean(wanted, {block: sizes[block] for block in blocks}, sparsity)
        return {name: found[linear.block] for name, linear in linears.items()}

    def _step(self, blocks: int, sparsity: float, beta: float | None) -> float:
        most = min(2 * sparsity, 2 * (1 - sparsity)) / (blocks - 1) if blocks > 1 else 0.0
        if beta is None:
            return most / 2 if sparsity >= WORTH_IT else 0.0
        if beta > most and blocks > 1:
            raise UserError(
                f"{beta:g} is more than {most:g}, the most with {blocks} blocks at sparsity {sparsity:g}",
                "prune.allocation.beta",
            )
        return beta


ALLOCATION = Progression()
