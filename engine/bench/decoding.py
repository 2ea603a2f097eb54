"""Greedy decoding at batch 1 with the key-value cache, in each runtime: one prompt, then token by token."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.bench.weight_bytes import bytes_per_token
from engine.decoder import Decoder, EncoderDecoder
from engine.peers.models import PeerModel


@dataclass(frozen=True)
class Prompt:
    """Input of a model before it decodes."""

    ids_1T: Tensor  # noqa: N815
    """The prompt; for an encoder-decoder the decoder's."""
    encoder: Mapping[str, Tensor] = field(default_factory=dict)
    """Input of the encoder, B = 1, as arguments of the model's forward."""


class Runner(Protocol):
    """A model ready to decode."""

    weight_bytes: int | None
    """Bytes read from memory for each decoded token: all weights, scales and indices, but not the cache, and nothing of
    an encoder. None: not known."""
    note: str | None
    """Note for the reader of its row."""
    process: int | None
    """Id of the process that computes; None: this one."""

    def prefill(self, prompt: Prompt) -> int:
        """Runs an encoder, if there is one, and the prompt from an empty cache; returns the next token."""

    def decode(self, token: int) -> int:
        """Runs one more token and returns the next."""

    def close(self) -> None:
        """Ends the process that computes, if it is another one."""


def greedy(runner: Runner, prompt: Prompt, steps: int) -> tuple[list[float], list[int]]:
    """Returns the clock before and after each token, and the tokens: the prompt's, then `steps` more."""
    times = [time.perf_counter()]
    tokens = [runner.prefill(prompt)]
    times.append(time.perf_counter())
    for _ in range(steps):
        tokens.append(runner.decode(tokens[-1]))
        times.append(time.perf_counter())
    return times, tokens


def argmax_token(logits_V: Tensor) -> int:
    """Returns the most probable token by numpy's argmax: of 50 000 logits torch's takes 250 us, a tenth of a compiled
    step."""
    return int(logits_V.float().numpy().argmax())


class TransformersRunner:
    """A transformers model with any linears, run as in `generate`."""

    process: int | None = None

    def __init__(self, model: Any, note: str | None = None) -> None:
        self.model = model
        self.note = note
        self.weight_bytes: int | None = bytes_per_token(model)
        self._encodes = bool(model.config.is_encoder_decoder)
        self._arguments: dict[str, Any] = {}
        """Of the model's next forward pass, but the tokens."""

    def prefill(self, prompt: Prompt) -> int:
        self._arguments = dict(prompt.encoder)
        return self._forward(prompt.ids_1T)

    def decode(self, token: int) -> int:
        return self._forward(torch.tensor([[token]]))

    def close(self) -> None:
        """Does nothing: there is no process to end."""

    @torch.inference_mode()
    def _forward(self, ids_1T: Tensor) -> int:
        tokens = {"decoder_input_ids": ids_1T} if self._encodes else {"input_ids": ids_1T, "logits_to_keep": 1}
        output = self.model(**self._arguments, **tokens, use_cache=True)
        mask = {name: tensor for name, tensor in self._arguments.items() if name == "attention_mask"}
        self._arguments = {"past_key_values": output.past_key_values, **mask}
        if self._encodes:
            self._arguments["encoder_outputs"] = (output.encoder_last_hidden_state,)
        return argmax_token(output.logits[0, -1])


class EngineRunner:
    """Runs prompts of language models and encoders in the transformers model, tokens in the engine's own step."""

    process: int | None = None

    def __init__(self, decoder: Decoder | EncoderDecoder, note: str | None = None) -> None:
        self.decoder = decoder
        self.note = note
        self.weight_bytes: int | None = decoder.weight_bytes

    def prefill(self, prompt: Prompt) -> int:
        if isinstance(self.decoder, EncoderDecoder):
            self.decoder.read(prompt.encoder)
        return argmax_token(self.decoder.prefill(prompt.ids_1T))

    def decode(self, token: int) -> int:
        return argmax_token(self.decoder.step(token))

    def close(self) -> None:
        """Does nothing: there is no process to end."""


class PeerRunner:
    """A model in another runtime's process."""

    def __init__(self, model: PeerModel) -> None:
        self._model = model
        self.weight_bytes: int | None = model.weight_bytes
        self.note: str | None = model.note
        self.process: int | None = model.pid

    def prefill(self, prompt: Prompt) -> int:
        return self._model.prefill(prompt.ids_1T[0].tolist())

    def decode(self, token: int) -> int:
        return self._model.decode(token)

    def close(self) -> None:
        self._model.close()
