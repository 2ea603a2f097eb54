"""What a model reads and how long it takes: one prompt, then greedy decoding with the key-value cache."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.linear import EngineLinear


@dataclass
class Spread:
    """Values of rounds; shown as median and range."""

    values: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        self.values.append(value)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({min(self.values):.3g}–{max(self.values):.3g})"


def random_prompt(model: Any, length: int) -> Tensor:
    """`ids_1T`, the same on every call."""
    return torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))


def check_length(model: Any, length: int) -> None:
    """Raises EngineError for a sequence longer than the model's context."""
    for key in ("max_position_embeddings", "max_seq_len", "n_positions"):
        context = getattr(model.config, key, None)
        if context and length > context:
            raise EngineError(f"{length} tokens do not fit the model's context of {context}; ask for fewer")


@torch.inference_mode()
def one_round(model: Any, ids_1T: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds of the prompt, and of `new_tokens` decoding steps after it."""
    start = time.perf_counter()
    output = model(input_ids=ids_1T, use_cache=True, logits_to_keep=1)
    token_11 = output.logits[:, -1:].argmax(-1)
    between = time.perf_counter()
    for _ in range(new_tokens):
        output = model(input_ids=token_11, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
        token_11 = output.logits[:, -1:].argmax(-1)
    return between - start, time.perf_counter() - between


def bytes_per_token(model: nn.Module) -> int:
    """Bytes of weights that decoding one token reads, as the kernels hold them: all but the rows of embedding tables it
    does not look up. Raises EngineError without kernels."""
    read: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, EngineLinear):
            matrix = (module.shared or module).matrix()
            read[id(matrix)] = matrix.bytes
            if module.input_scale is not None:
                read[id(module.input_scale)] = module.input_scale.nbytes
        elif not isinstance(module, nn.Embedding):
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            read |= {id(tensor): tensor.nbytes for tensor in own}
    return sum(read.values())
