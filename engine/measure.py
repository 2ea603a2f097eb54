"""What a model reads and how long it takes: one prompt, then greedy decoding with the key-value cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.linear import CROSS_ATTENTION, KEYS_AND_VALUES, EngineLinear


@dataclass
class Spread:
    """Values of rounds; shown as median and range."""

    values: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        self.values.append(value)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({min(self.values):.3g}–{max(self.values):.3g})"


def random_prompt(model: Any, length: int) -> Tensor:
    """`ids_1T`, the same on every call."""
    return torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))


def text(ids_BS: Tensor) -> dict[str, Tensor]:
    """What a text encoder reads: tokens without padding."""
    return {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS)}


def check_length(model: Any, length: int) -> None:
    """Raises EngineError for a sequence longer than the model's context."""
    if model.config.model_type in RELATIVE_POSITIONS:
        return
    for key in ("max_position_embeddings", "max_seq_len", "n_positions"):
        context = getattr(model.config, key, None)
        if context and length > context:
            raise EngineError(f"{length} tokens do not fit the model's context of {context}; ask for fewer")


RELATIVE_POSITIONS = ("t5", "mt5", "umt5")
"""Their configurations tell a length of training, which is no limit."""


class Stepper(Protocol):
    """A model at batch 1, with its key-value cache. Both methods return `logits_V` of what comes next."""

    def prefill(self, ids_1T: Tensor) -> Tensor:
        """Runs a prompt, an encoder-decoder its encoder before it, from an empty cache."""

    def step(self, token: int) -> Tensor:
        """Runs one more token."""


class TransformersStepper:
    """As `generate` runs it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache: Any = None

    def prefill(self, ids_1T: Tensor) -> Tensor:
        self._cache = None
        return self._forward(ids_1T)

    def step(self, token: int) -> Tensor:
        return self._forward(torch.tensor([[token]]))

    @torch.inference_mode()
    def _forward(self, ids_1T: Tensor) -> Tensor:
        output = self._model(input_ids=ids_1T, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        logits_V: Tensor = output.logits[0, -1]
        return logits_V


class EncoderDecoderStepper:
    """The same for an encoder-decoder; prompts and tokens are the decoder's."""

    def __init__(self, model: Any, encoder: Mapping[str, Tensor]) -> None:
        """`encoder`: what the encoder reads, as arguments of the model's forward."""
        self._model = model
        self._encoder = encoder
        self._encoded: dict[str, Any] = {}
        self._cache: Any = None

    @torch.inference_mode()
    def prefill(self, ids_1T: Tensor) -> Tensor:
        output = self._model(**self._encoder, decoder_input_ids=ids_1T, use_cache=True)
        self._encoded = {"encoder_outputs": (output.encoder_last_hidden_state,)}
        if "attention_mask" in self._encoder:
            self._encoded["attention_mask"] = self._encoder["attention_mask"]
        return self._next(output)

    @torch.inference_mode()
    def step(self, token: int) -> Tensor:
        ids_11 = torch.tensor([[token]])
        return self._next(
            self._model(**self._encoded, decoder_input_ids=ids_11, past_key_values=self._cache, use_cache=True)
        )

    def _next(self, output: Any) -> Tensor:
        self._cache = output.past_key_values
        logits_V: Tensor = output.logits[0, -1]
        return logits_V


def likeliest(logits_V: Tensor) -> int:
    """numpy's argmax: of 50 000 logits torch's takes 250 us, a tenth of a compiled step."""
    return int(logits_V.float().numpy().argmax())


def one_round(stepper: Stepper, ids_1T: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds of the prompt, and of `new_tokens` greedy steps after it."""
    start = time.perf_counter()
    token = likeliest(stepper.prefill(ids_1T))
    between = time.perf_counter()
    for _ in range(new_tokens):
        token = likeliest(stepper.step(token))
    return between - start, time.perf_counter() - between


def bytes_per_token(model: nn.Module) -> int:
    """Bytes of weights that decoding one token reads, as the kernels hold them: all but the rows of embedding tables it
    does not look up. Raises EngineError without kernels."""
    read: dict[int, int] = {}
    for module in decoding_modules(model):
        if isinstance(module, EngineLinear):
            matrix = (module.shared or module).matrix()
            read[id(matrix)] = matrix.bytes
            if module.input_scale is not None:
                read[id(module.input_scale)] = module.input_scale.nbytes
        elif not isinstance(module, nn.Embedding):
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            read |= {id(tensor): tensor.nbytes for tensor in own}
    return sum(read.values())


def decoding_modules(model: Any) -> Iterator[nn.Module]:
    """Those that decoding one token runs through. Of an encoder-decoder: not its encoder, nor the keys and values of
    cross-attention, which are in the cache by then."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        yield from model.modules()
        return
    for name, module in model.get_decoder().named_modules():
        parent, _, own = name.rpartition(".")
        if not (parent.rpartition(".")[2] in CROSS_ATTENTION and own in KEYS_AND_VALUES):
            yield module
    yield model.get_output_embeddings()
