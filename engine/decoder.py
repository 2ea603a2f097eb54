"""Fast batch-1 decoding: a whole step in one call of the compiled code.

A transformers forward pass of one token costs some hundred microseconds of Python a layer, which on a small sparse
model is most of the time. Prompts of language models still go through the transformers model, and encoders too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine import kernels, layouts
from engine.errors import EngineError
from engine.layouts import Layout
from engine.step import Profile, Step


def unsupported(model: Any) -> str | None:
    """Returns in one line why this model cannot be decoded here; None if it can."""
    return kernels.unavailable() or layouts.unsupported(model)


class _Sequence:
    """One sequence, decoded token by token. The model keeps the weights; this adds a cache of `context` positions."""

    def __init__(self, model: Any, layout: Layout, context: int) -> None:
        self._model = model
        self._step = Step(layout, context)
        self.context = context
        self.position = 0
        self.weight_bytes = self._step.weight_bytes
        """Read by one step; norms, the embedding's row, and all keys and values left out."""

    def step(self, token: int) -> Tensor:
        """Runs one more token; returns `logits_V`, overwritten by the next step."""
        if self.position >= self.context:
            raise EngineError(f"the cache holds {self.context} positions and is full; ask for a larger context")
        self._check_token(token)
        logits_V = self._step.run(token, self.position)
        self.position += 1
        return logits_V

    def profile(self) -> Profile:
        """Returns the profile of all steps since the last call."""
        return self._step.profile()

    def _check_token(self, token: int) -> None:
        if not 0 <= token < self._model.config.vocab_size:
            raise EngineError(f"token {token} is not in the vocabulary of {self._model.config.vocab_size}")

    def _check_prompt(self, ids_1T: Tensor) -> None:
        if ids_1T.shape[0] != 1 or not 0 < ids_1T.shape[1] <= self.context:
            raise EngineError(f"the prompt is {list(ids_1T.shape)}, expected [1, T] with T from 1 to {self.context}")


class Decoder(_Sequence):
    """Decoder of a language model without an encoder."""

    def __init__(self, model: Any, context: int) -> None:
        """Raises EngineError if `unsupported` has a reason."""
        super().__init__(model, _layout(model), context)

    @torch.no_grad()
    def prefill(self, ids_1T: Tensor) -> Tensor:
        """Runs a prompt from an empty cache; returns `logits_V` of its last token."""
        self._check_prompt(ids_1T)
        tokens = ids_1T.shape[1]
        output = self._model(input_ids=ids_1T, use_cache=True, logits_to_keep=1)
        for number, layer in enumerate(output.past_key_values.layers):
            self._step.keys[number, :, :tokens] = layer.keys[0]
            self._step.values[number, :, :tokens] = layer.values[0]
        self.position = tokens
        logits_V: Tensor = output.logits[0, -1]
        return logits_V


class EncoderDecoder(_Sequence):
    """Decoder of a model with an encoder. Prompts are the decoder's and short: they run in the step too."""

    def __init__(self, model: Any, context: int) -> None:
        """Raises EngineError if `unsupported` has a reason."""
        layout = _layout(model)
        super().__init__(model, layout, context)
        self._crossing = [block.encoded for block in layout.blocks if block.encoded]
        self._heads, self._hides_padding = layout.heads, layout.hides_padding
        self._inputs: Mapping[str, Tensor] | None = None

    def read(self, inputs: Mapping[str, Tensor]) -> None:
        """Sets the encoder's input for every `prefill` from now on, B = 1, as arguments of the model's forward."""
        if any(len(tensor) != 1 for tensor in inputs.values()):
            shapes = {name: list(tensor.shape) for name, tensor in inputs.items()}
            raise EngineError(f"the encoder is given {shapes}, expected one sequence")
        self._inputs = inputs

    @torch.no_grad()
    def prefill(self, ids_1T: Tensor) -> Tensor:
        """Runs the encoder, and the prompt from an empty cache; returns `logits_V` of its last token."""
        self._check_prompt(ids_1T)
        tokens = ids_1T[0].tolist()
        for token in tokens:
            self._check_token(token)
        h_SD = self._encode()
        self._step.set_cross_attention_kv(
            [(self._by_head(key(h_SD)), self._by_head(value(h_SD))) for key, value in self._crossing]
        )
        self.position = len(tokens)
        return self._step.run_prompt(tokens)

    def step(self, token: int) -> Tensor:
        if not self._step.sees_source:
            raise EngineError("a step comes after `prefill`, which gives it the encoder's states")
        return super().step(token)

    def _encode(self) -> Tensor:
        """Returns `h_SD`, the input of cross-attention."""
        if self._inputs is None:
            raise EngineError("the encoder has nothing to read; give it its inputs with `read`")
        h_SD: Tensor = self._model.get_encoder()(**self._inputs).last_hidden_state[0]
        if self._hides_padding and "attention_mask" in self._inputs:
            h_SD = h_SD[self._inputs["attention_mask"][0].bool()]
        if not len(h_SD):
            raise EngineError("the encoder's input is nothing but padding, expected at least one position")
        return h_SD

    def _by_head(self, y_SO: Tensor) -> Tensor:
        return y_SO.view(len(y_SO), self._heads, -1).transpose(0, 1)


def of(model: Any, context: int) -> Decoder | EncoderDecoder:
    """Returns the decoder of a model. Raises EngineError if `unsupported` has a reason."""
    return EncoderDecoder(model, context) if model.config.is_encoder_decoder else Decoder(model, context)


def _layout(model: Any) -> Layout:
    if reason := unsupported(model):
        raise EngineError(f"this model cannot be decoded by the engine: {reason}")
    return layouts.of(model)
