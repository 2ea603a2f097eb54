"""Runs a model one block at a time over calibration samples, whatever its blocks take and return.

The model feeds its own blocks: finished blocks pass on the stored output of the last of them instead of computing, the
current block computes, and there the forward ends. So every block gets all the arguments that the model's own code
gives it (masks, rotary embeddings, position biases, a layer's own window, an encoder's states), and one block's
activations are held at a time; while a decoder is walked, those of the encoder's end as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from stages import devices
from stages.families import Batch, Family
from stages.precision import autocast

Written = dict[str, dict[Any, Any]]
"""Entries of a dictionary, by keyword argument."""


class Reached(Exception):  # noqa: N818 (no error)
    """Ends a forward pass where nothing more of it is needed; may be raised by hooks inside the block."""

    def __init__(self, output: Any = None) -> None:
        super().__init__()
        self.output = output


class Walk:
    """Micro-batches on their way through the blocks of a model, an encoder's before a decoder's.

    `samples` are sorted by size and trimmed, so that padding costs little. `precision`: bf16 runs under autocast; fp32
    also lifts a bf16 model's current block to fp32.
    """

    def __init__(self, model: nn.Module, family: Family, samples: Batch, precision: str, micro_batch_size: int) -> None:
        self.model, self.family, self.precision = model, family, precision
        self.blocks = family.blocks(model)
        self.device = next(model.parameters()).device
        order_N = family.sizes(samples).argsort(descending=True, stable=True)
        self.batches: list[Batch] = []
        for rows_B in torch.split(order_N, micro_batch_size):
            batch = family.trim({name: tensor[rows_B] for name, tensor in samples.items()})
            self.batches.append(devices.moved(batch, self.device))
        self.done = 0
        self._outputs: list[dict[str, Any]] = [{} for _ in self.batches]
        """Of each micro-batch: by stack (the list that a block is in), what its last block done put out, which is the
        next one's input: the hidden states, and where blocks return more (T5's position bias), that too."""
        self._written: list[dict[str, Written]] = [{} for _ in self.batches]
        """Of each micro-batch: by block done, what it wrote for later blocks into dictionaries that the model hands to
        all of them, as Gemma-3n's lower blocks write their keys and values."""

    def look(self, enter: Callable[[Batch], None]) -> None:
        """Runs the next block without moving on, so that its hooks see everything. `enter` gets each micro-batch."""
        for i, batch in enumerate(self.batches):
            enter(batch)
            self._forward(i)

    def advance(self, enter: Callable[[Batch], None] = lambda batch: None) -> None:
        """Runs the next block with its current weights, for each micro-batch that `enter` gets, and moves on."""
        name, block = self.blocks[self.done]
        for i, outputs in enumerate(self._outputs):
            enter(self.batches[i])
            with _watching(block) as written:
                outputs[_stack(name)] = self._forward(i)
            if written:
                self._written[i][name] = written
        self.done += 1

    @torch.no_grad()
    def _forward(self, i: int) -> Any:
        """Returns the output of the next block for a micro-batch, or what a hook inside it ended with."""
        block = self.blocks[self.done][1]
        with autocast(self.precision, self.device), self._short_cut(i), self._end_after(block):
            try:
                self.model(**self.family.inputs(self.batches[i]), use_cache=False)
            except Reached as end:
                return end.output
        raise AssertionError(f"the forward pass never reached block {self.done}")

    @contextmanager
    def _short_cut(self, i: int) -> Iterator[None]:
        """Makes finished blocks write what they wrote, and return the output of the last one of their stack."""
        passed = self.blocks[: self.done]
        for name, block in passed:
            block.forward = _replay(self._outputs[i][_stack(name)], self._written[i].get(name, {}))
        try:
            yield
        finally:
            for _, block in passed:
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


def _stack(block: str) -> str:
    """Returns the name of a block's stack: `encoder.block.3` -> `encoder.block`."""
    return block.rpartition(".")[0]


@contextmanager
def _watching(block: nn.Module) -> Iterator[Written]:
    """Yields what the block writes into dictionaries among its keyword arguments, filled when it ends."""
    written: Written = {}
    before: dict[str, dict[Any, Any]] = {}

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        before.update({name: dict(value) for name, value in kwargs.items() if isinstance(value, MutableMapping)})

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for name, old in before.items():
            new = {key: value for key, value in kwargs[name].items() if key not in old or old[key] is not value}
            if new:
                written[name] = new

    handles = [
        block.register_forward_pre_hook(enter, with_kwargs=True),
        # before the hook that ends the pass
        block.register_forward_hook(leave, with_kwargs=True, prepend=True),
    ]
    try:
        yield written
    finally:
        for handle in handles:
            handle.remove()


def _replay(output: Any, written: Written) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        for name, entries in written.items():
            kwargs[name].update(entries)
        return output

    return forward


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Sets eval mode for the duration of a walk."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
