"""Finds what a model computes around its head: the source of the hidden states, and what happens to its logits.

Most models compute `head(h)`. Some scale or cap the result (Gemma-2, Granite, Cohere), some scale `h` before. Their own
code is run for both, with the unwanted part cut off, so that training uses exactly what the model predicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from stages.contracts import UserError


class _HeadReached(Exception):  # noqa: N818 (no error)
    """Ends a forward pass before the head."""

    def __init__(self, h_BTD: Tensor) -> None:
        super().__init__()
        self.h_BTD = h_BTD


def output_head(model: Any) -> nn.Module:
    """Returns the layer with one output for each token of the vocabulary. Raises UserError if there is none."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise UserError(f"{type(model).__name__} has no output head that predicts tokens", "model.path")
    return head


def run_decoder(model: Any, decoders: list[nn.Module], inputs: dict[str, Tensor]) -> Any:
    """Returns the output of the outermost of the `decoders` (modules around the blocks, outermost first) that is
    called; the head does not run."""
    outputs: dict[int, Any] = {}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        outputs[id(module)] = output

    handles = [decoder.register_forward_hook(keep) for decoder in decoders]
    try:
        head_input(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return next(outputs[id(decoder)] for decoder in decoders if id(decoder) in outputs)


def head_input(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Returns `h_BTD`, the input of the head in a forward pass, which ends there."""

    def stop(module: nn.Module, args: Any) -> None:
        raise _HeadReached(args[0])

    handle = output_head(model).register_forward_pre_hook(stop)
    try:
        model(**inputs, use_cache=False)
    except _HeadReached as end:
        return end.h_BTD
    finally:
        handle.remove()
    raise UserError(f"the forward pass of {type(model).__name__} never calls its head", "model.path")


def last_hidden_state(output: Any) -> Tensor:
    """Returns `h_BTD` of a decoder's output."""
    found: Tensor = output[0] if isinstance(output, tuple | ModelOutput) else output
    return found


def agree(found: Tensor, expected: Tensor) -> bool:
    """Returns whether logits are equal up to rounding."""
    if found.shape != expected.shape:
        return False
    tolerance = 16 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    return bool((found.float() - expected.float()).abs().max() <= tolerance)


class OwnHead(nn.Module):
    """The model's own code after its decoder: `h_ND` -> `logits_NV`, scaled or capped as in the model."""

    def __init__(self, model: Any, decoder: nn.Module, output: Any) -> None:
        super().__init__()
        self.head = output_head(model)
        # in a tuple, so that they are not registered: the parameters of this module are the head's
        self._around: tuple[Any, nn.Module] = (model, decoder)
        self._kind = type(output)

    def forward(self, h_ND: Tensor) -> Tensor:
        h_1ND = h_ND[None]
        if issubclass(self._kind, ModelOutput):
            output = self._kind(last_hidden_state=h_1ND)
        else:
            output = (h_1ND,) if issubclass(self._kind, tuple) else h_1ND
        # the model's code may read the shape of the ids, never their values
        ids_1N = torch.zeros(h_1ND.shape[:2], dtype=torch.long, device=h_ND.device)
        model, decoder = self._around
        with _answering(decoder, output):
            logits_1NV: Tensor = model(input_ids=ids_1N, use_cache=False).logits
        return logits_1NV[0]


class BiasedHead(nn.Module):
    """An output layer and the bias that the model adds to its logits: `h_ND` -> `logits_NV`."""

    bias: Tensor

    def __init__(self, head: nn.Module, bias_1V: Tensor) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("bias", bias_1V, persistent=False)

    def forward(self, h_ND: Tensor) -> Tensor:
        logits_NV: Tensor = self.head(h_ND) + self.bias
        return logits_NV


@contextmanager
def _answering(decoder: Any, output: Any) -> Iterator[None]:
    """Makes the decoder return this output for any input."""
    before = decoder.__dict__.get("forward")
    decoder.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if before is None:
            del decoder.forward
        else:
            decoder.forward = before
