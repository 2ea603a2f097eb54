"""Compiled steps in transformers' `generate`: sampling, stopping and streaming stay as they are.

A model's forward is replaced by one that answers calls for one more token itself and passes all others to the model.
The cache that transformers passes around stays valid: it gets views of the step's own memory.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, TypeGuard

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast, Seq2SeqLMOutput

from engine import decoder, layouts
from engine.architectures import context
from engine.step import MAX_CONTEXT, Step


def attach(model: Any) -> Any:
    """Returns the model, whose steps at batch 1 are compiled ones from now on, if its architecture allows it."""
    if not decoder.unsupported(model):
        model.forward = Forward(model)
    return model


class Forward:
    """Replaces a model's `forward`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.__signature__ = inspect.signature(type(model).forward.__get__(model))
        layout = layouts.of(model)
        self._vocabulary, self._hides_padding = len(layout.embedding), layout.hides_padding
        self._context = min(MAX_CONTEXT, context(model.config) or MAX_CONTEXT)
        self._encoded = bool(model.config.is_encoder_decoder)
        prefix = "decoder_" if self._encoded else ""
        self._ids, self._mask, self._positions = (
            f"{prefix}{name}" for name in ("input_ids", "attention_mask", "position_ids")
        )
        known = {
            self._ids,
            self._mask,
            self._positions,
            "past_key_values",
            "use_cache",
            "return_dict",
            "logits_to_keep",
        }
        self._known = known | ({"encoder_outputs", "attention_mask"} if self._encoded else set())
        self._step: Step | None = None
        self._seen: tuple[Tensor, Tensor | None] | None = None
        """The first keys of cross-attention that the step looks at, and the mask of their positions."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Forward:
        other = copy.copy(self)
        other._model, other._step, other._seen = copy.deepcopy(self._model, memo), None, None
        return other

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args or not self._is_step(kwargs):
            return type(self._model).forward(self._model, *args, **kwargs)
        cache = kwargs["past_key_values"]
        if not self._encoded:
            return CausalLMOutputWithPast(logits=self._run(int(kwargs[self._ids]), cache), past_key_values=cache)
        self._set_cross_attention_kv(cache.cross_attention_cache, kwargs.get("attention_mask"))
        return Seq2SeqLMOutput(
            logits=self._run(int(kwargs[self._ids]), cache.self_attention_cache),
            past_key_values=cache,
            encoder_last_hidden_state=kwargs["encoder_outputs"][0],
        )

    # ---- which calls ----

    def _is_step(self, kwargs: dict[str, Any]) -> bool:
        """Returns whether the call runs one more token of one sequence that has begun, and requests only logits."""
        ids, cache = kwargs.get(self._ids), kwargs.get("past_key_values")
        if ids is None or ids.shape != (1, 1) or not 0 <= int(ids) < self._vocabulary:
            return False
        if not kwargs.get("use_cache") or kwargs.get("return_dict") is False:
            return False
        if any(value is not None and value is not False for name, value in kwargs.items() if name not in self._known):
            return False
        if self._encoded:
            if not isinstance(cache, EncoderDecoderCache) or not self._is_encoded(cache.cross_attention_cache, kwargs):
                return False
            cache = cache.self_attention_cache
        if not _of_one_sequence(cache):
            return False
        position: int = cache.get_seq_length()
        return position < self._context and self._is_next(position, kwargs)

    def _is_next(self, position: int, kwargs: dict[str, Any]) -> bool:
        mask, positions = kwargs.get(self._mask), kwargs.get(self._positions)
        if mask is not None and (mask.shape != (1, position + 1) or not mask.all()):
            return False
        return positions is None or (positions.numel() == 1 and int(positions) == position)

    def _is_encoded(self, cache: Any, kwargs: dict[str, Any]) -> bool:
        """Returns whether the cache has keys and values of the encoder, and they are not all masked."""
        if kwargs.get("encoder_outputs") is None or not _of_one_sequence(cache):
            return False
        mask_1S = kwargs.get("attention_mask")
        if not self._hides_padding or mask_1S is None:
            return True
        return bool(mask_1S.shape == (1, cache.get_seq_length()) and mask_1S.any())

    # ---- the step ----

    def _compiled(self) -> Step:
        if self._step is None:
            self._step = Step(layouts.of(self._model), self._context)
        return self._step

    def _run(self, token: int, cache: DynamicCache) -> Tensor:
        """Returns `logits_11V`; the cache is one position longer then."""
        step, position = self._compiled(), cache.get_seq_length()
        if any(layer.keys.data_ptr() != keys.data_ptr() for layer, keys in zip(cache.layers, step.keys, strict=True)):
            step.begin([(layer.keys[0], layer.values[0]) for layer in cache.layers])
        logits_11V = step.run(token, position).clone()[None, None]
        for layer, keys, values in zip(cache.layers, step.keys, step.values, strict=True):
            layer.keys, layer.values = keys[None, :, : position + 1], values[None, :, : position + 1]
        return logits_11V

    def _set_cross_attention_kv(self, cache: DynamicCache, mask_1S: Tensor | None) -> None:
        first, mask_1S = cache.layers[0].keys, mask_1S if self._hides_padding else None
        if self._seen is not None and self._seen[0] is first and _same(self._seen[1], mask_1S):
            return
        shown = slice(None) if mask_1S is None else mask_1S[0].bool()
        self._compiled().set_cross_attention_kv(
            [(layer.keys[0][:, shown], layer.values[0][:, shown]) for layer in cache.layers]
        )
        self._seen = first, mask_1S


def growing_cache() -> EncoderDecoderCache:
    """Returns an empty cache that gets a layer for each block of a decoder. The cache of transformers' `generate` has
    as many as config.json counts, which are the encoder's: too few for a T5 with more blocks in its decoder."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def _of_one_sequence(cache: Any) -> TypeGuard[DynamicCache]:
    """Returns whether the cache holds one sequence, in plain layers."""
    return isinstance(cache, DynamicCache) and all(
        type(layer) is DynamicLayer
        and layer.get_seq_length() > 0
        and layer.keys.shape[0] == 1
        and layer.keys.dtype == torch.float32
        for layer in cache.layers
    )


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))
