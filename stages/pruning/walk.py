"""Runs a model one block at a time over calibration samples, whatever its blocks take and return.

The model feeds its own blocks: blocks that are done hand on the stored hidden states instead of computing, the
current block computes, and there the forward ends. So every block gets all the arguments that the model's own code
gives it (masks, rotary embeddings, biases, a layer's own window), and one block's activations are held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from stages.families import Family


class Reached(Exception):  # noqa: N818 (no error)
    """Ends a forward pass where nothing more is needed of it; may be raised by hooks inside the block."""

    def __init__(self, output: Any = None) -> None:
        super().__init__()
        self.output = output


class Walk:
    """Micro-batches on their way through the blocks of a model.

    `ids_NL` and `mask_NL` (1 = a real token; padding on the right) are sorted by length and trimmed, so that padding
    costs little. `precision`: bf16 runs under autocast; fp32 also lifts a bf16 model's current block to fp32.
    """

    def __init__(
        self, model: nn.Module, family: Family, ids_NL: Tensor, mask_NL: Tensor, precision: str, micro_batch_size: int
    ) -> None:
        assert precision in ("fp32", "bf16"), precision
        self.model, self.family, self.precision = model, family, precision
        self.blocks = [block for _, block in family.blocks(model)]
        self.device = next(model.parameters()).device
        order = mask_NL.sum(1).argsort(descending=True, stable=True)
        self.batches: list[tuple[Tensor, Tensor]] = []
        for rows in torch.split(order, micro_batch_size):
            length = int(mask_NL[rows[0]].sum())
            self.batches.append((ids_NL[rows, :length].to(self.device), mask_NL[rows, :length].to(self.device)))
        self.states_BTD: list[Tensor] = []
        """Of each micro-batch: the input of the block that comes next; empty before the first."""
        self.done = 0
        self._returns: list[int] = []
        """Of each block done: how long the tuple it returns is; 0 for a bare tensor."""

    def look(self, enter: Callable[[Tensor], None]) -> None:
        """Runs the next block without moving on: its hooks see everything. `enter` gets each micro-batch's mask."""
        for i, (_, mask_BT) in enumerate(self.batches):
            enter(mask_BT)
            self._forward(i)

    def advance(self) -> None:
        """Runs the next block as its weights are now and moves on to the one after it."""
        states = []
        for i in range(len(self.batches)):
            output = self._forward(i)
            many = isinstance(output, tuple)
            states.append(output[0] if many else output)
            if self.states_BTD:
                self.states_BTD[i] = states[-1]
        self.states_BTD = states
        self._returns.append(len(output) if many else 0)
        self.done += 1

    @torch.no_grad()
    def _forward(self, i: int) -> Any:
        """The output of the next block for a micro-batch, or whatever a hook inside it ended with."""
        ids_BT, mask_BT = self.batches[i]
        batch = {"input_ids": ids_BT, "attention_mask": mask_BT}
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with autocast, self._short_cut(i), self._end_after(self.blocks[self.done]):
            try:
                self.model(**self.family.inputs(batch))
            except Reached as end:
                return end.output
        raise AssertionError(f"the forward pass never came to block {self.done}")

    @contextmanager
    def _short_cut(self, i: int) -> Iterator[None]:
        """Blocks that are done return the stored states; what else they returned (attention weights) is None."""

        def returning(length: int) -> Callable[..., Any]:
            state_BTD = self.states_BTD[i]
            return lambda *args, **kwargs: (state_BTD, *[None] * (length - 1)) if length else state_BTD

        passed = self.blocks[: self.done]
        for block, length in zip(passed, self._returns, strict=True):
            block.forward = returning(length)
        try:
            yield
        finally:
            for block in passed:
                del block.forward

    @contextmanager
    def _end_after(self, block: nn.Module) -> Iterator[None]:
        stored = next(block.parameters()).dtype
        lift = self.precision == "fp32" and stored != torch.float32

        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if not lift:
                return None
            return tree_map_only(Tensor, lambda t: t.float() if t.is_floating_point() else t, (args, kwargs))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            raise Reached(output)

        handles = [block.register_forward_pre_hook(before, with_kwargs=True), block.register_forward_hook(after)]
        if lift:
            block.float()
        try:
            yield
        finally:
            if lift:
                block.to(stored)
            for handle in handles:
                handle.remove()


@contextmanager
def at_rest(model: Any) -> Iterator[None]:
    """Eval mode and no key-value cache, for the time of a walk."""
    training, use_cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = False
    try:
        yield
    finally:
        model.train(training)
        model.config.use_cache = use_cache
