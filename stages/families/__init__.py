"""Model families: what the stages need to know of an architecture. Adding a family is one file here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.utils import logging

from pipeline.contracts import UserError

# a bar for each read and write of weights says little; the stages have their own
logging.disable_progress_bar()

Batch = dict[str, Tensor]
"""`Family.inputs` of it is what the model's forward takes. Besides: `labels`, token ids, -100 where nothing is to be
learned, at the position of their token (the loss shifts them where the family is causal); `use`, 1 = a real token."""


class Family(Protocol):
    """Everything architecture-specific. All tensors are on the CPU unless the model is elsewhere."""

    name: str

    def load(self, folder: Path, dtype: torch.dtype | None = None) -> Any:
        """The model of a Hugging Face folder, in eval mode; dtype None keeps the stored one."""

    def build(self, folder: Path) -> Any:
        """The model's architecture with weights not initialised, for a loader that brings its own."""

    def tokenizer(self, folder: Path) -> Any: ...

    def context(self, model: nn.Module) -> int:
        """The longest sequence in tokens; a very large number where positions are unlimited."""

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Dotted names and modules of the repeated blocks, in execution order."""

    def prunable(self, model: nn.Module) -> dict[str, nn.Linear]:
        """Linears inside the blocks, by dotted name, in execution order. Not embeddings, norms, head."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The arguments of the model's forward."""

    def states(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """`h_BTD` after each block, as a feature loss compares them; the last is what the head reads."""

    def head(self, model: nn.Module) -> nn.Module:
        """What turns the last of `states` into logits. Raises UserError where the model does more than that."""

    def loss_positions(self, batch: Batch) -> Tensor:
        """bool `use_BT`: the tokens whose hidden states a feature loss compares."""

    def logits_and_labels(self, logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Aligned so that logits at [b, t] predict labels at [b, t] (causal families shift by one). The last
        dimension may be any: states that are to become logits are aligned the same way."""


def get(name: str) -> Family:
    """The adapter of a family. Raises UserError for an unknown one."""
    if name == "causal_lm":
        from stages.families.causal_lm import CausalLM

        return CausalLM()
    raise UserError(f"no family {name!r}; there is: causal_lm", "model.family")


def of(folder: Path) -> Family:
    """The family of a checkpoint, read from its config.json."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.is_encoder_decoder:
        raise UserError(f"{config.model_type} is an encoder-decoder; there is only the family causal_lm", "model.path")
    return get("causal_lm")
