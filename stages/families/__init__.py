"""Model families: everything that the stages need to know of an architecture. A new family is one file here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.utils import logging

from engine import architectures
from stages.contracts import DataSet, UserError
from stages.model.families import FAMILIES, family_of_type

# no bar for each read and write of weights; the stages have their own
logging.disable_progress_bar()

Batch = dict[str, Tensor]
"""Tensors of B rows each. `Family.inputs` selects the arguments of the model's forward. The others: `labels_BT`, token
ids, -100 where nothing is to be learned, at the position of their token (the loss shifts them if the family is causal);
`use_BT`, 1 = a real token (for an encoder-decoder: of the decoder). Padding is on the right."""


UNLIMITED = 1 << 30
"""Context of a model without a limit."""


class Rows(Protocol):
    """The examples of a split, ready for the model."""

    def __len__(self) -> int: ...

    @property
    def sizes(self) -> Tensor:
        """Returns `size_N`: the cost of each row, to group rows of similar cost."""

    @property
    def independent(self) -> bool:
        """Returns whether the states of a row do not depend on the other rows of its batch."""

    def take(self, chosen_B: Tensor) -> Batch:
        """Returns these rows, padded no longer than the longest of them needs."""


class Family(Protocol):
    """Everything specific to an architecture. All tensors are on the CPU unless the model is elsewhere."""

    name: str

    @property
    def auto_class(self) -> Any:
        """Returns the automatic class of transformers whose `from_pretrained` knows the family's architectures."""

    @property
    def model_types(self) -> set[str]:
        """Returns the `model_type`s of config.json that belong to the family. As in transformers, `model_type` decides:
        the names in `architectures` may be those of older or of remote code."""

    def load(self, folder: Path, dtype: torch.dtype | None = None) -> Any:
        """Returns the model of a Hugging Face folder, in eval mode; dtype None keeps the stored one."""

    def complete(self, model: Any, folder: Path) -> Any:
        """Returns the model of a folder, with settings filled in that old folders lack."""

    def build(self, folder: Path) -> Any:
        """Returns the model's architecture with uninitialised weights, for a loader that brings its own."""

    def tokenizer(self, folder: Path) -> Any: ...

    def context(self, model: nn.Module) -> int:
        """Returns the longest sequence in tokens; a very large number if positions are unlimited."""

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Returns dotted names and modules of the repeated blocks, in execution order: the encoder's, then the
        decoder's."""

    def prunable(self, model: nn.Module) -> dict[str, nn.Linear]:
        """Returns the linears inside the blocks, by dotted name, in execution order; no embeddings, norms, head or
        convolutions."""

    def left_alone(self, model: nn.Module) -> dict[str, str]:
        """Returns the linears inside the blocks that are not prunable, and why."""

    def refused(self, model: nn.Module) -> dict[str, str]:
        """Returns what cannot be done with this model (`training`, `squarehead`), and why."""

    def rows(
        self, model: nn.Module, folder: Path, data: DataSet, split: str, length: int, option: str, packed: bool = True
    ) -> Rows:
        """Returns the split as the model reads it; sequences have at most `length` tokens, longer ones are cut.
        `packed`: short items may share a row. Raises UserError, with `option`, if the split is too small."""

    def trim(self, batch: Batch) -> Batch:
        """Returns the batch without the columns that are padding in all rows."""

    def sizes(self, batch: Batch) -> Tensor:
        """Returns `size_B`, as `Rows.sizes`."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the arguments of the model's forward."""

    def example(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns small arguments of the model's forward, for finding out which of its parts run."""

    def input_token_mask(self, batch: Batch, linear: str) -> Tensor:
        """Returns a bool (B, tokens) mask of the real tokens in the input of the linear of this name."""

    def hidden(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns `h_BTD`, the input of the head."""

    def states(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """Returns `h_BTD` after each block, as a feature loss compares them; the last of the list is the input of the
        head."""

    def feature_masks(self, model: nn.Module, batch: Batch) -> list[Tensor | None]:
        """Returns for each of the model's `states` the tokens that a feature loss compares, bool `use_BT`; None: no
        tokens."""

    def head(self, model: nn.Module) -> nn.Module:
        """Returns the function from the last of `states` to logits. Raises UserError if the model computes more than
        that."""

    def logits_and_labels(self, logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both aligned so that logits at [b, t] predict labels at [b, t] (causal families shift by one). The
        last dimension may be any: states from which logits are computed are aligned the same way."""


_EXPERTS = "keeps experts in its blocks, which the walk through an encoder-decoder does not route"
_LONG = "attends in windows, for which it pads its inputs inside"
_SPEECH = "reads speech, and of speech models only Whisper can be used"
NOT_SUPPORTED = {
    "led": _LONG,
    "longt5": _LONG,
    "bigbird_pegasus": _LONG,
    "pegasus_x": _LONG,
    "t5gemma": "caps its logits, and has a configuration for each of its stacks",
    "t5gemma2": "caps its logits, and has a configuration for each of its stacks",
    "prophetnet": "predicts several tokens at each position",
    "fsmt": "has two vocabularies",
    "nllb-moe": _EXPERTS,
    "switch_transformers": _EXPERTS,
    "encoder-decoder": "puts two models of other types together",
    "speech-encoder-decoder": _SPEECH,
    "speech_to_text": _SPEECH,
    "speecht5": _SPEECH,
    "moonshine": _SPEECH,
    "moonshine_streaming": _SPEECH,
    "seamless_m4t": _SPEECH,
    "seamless_m4t_v2": _SPEECH,
    "canary": _SPEECH,
    "cohere_asr": _SPEECH,
    "dia": "writes speech",
    "pop2piano": "reads music",
}
"""Encoder-decoders that belong to no family, and why."""


def get(name: str) -> Family:
    """Returns the adapter of a family. Raises UserError for an unknown one."""
    return FAMILIES.get(name).adapter()


def of(folder: Path) -> Family:
    """Returns the family of a checkpoint, read from its config.json."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return get(name_of(config.model_type, bool(config.is_encoder_decoder)))


def name_of(model_type: str, is_encoder_decoder: bool) -> str:
    """Returns the family's name. Raises UserError for an encoder-decoder that belongs to no family."""
    known = family_of_type()
    if model_type in known:
        return known[model_type]
    if not is_encoder_decoder:
        return "causal_lm"
    why = f" ({model_type} {NOT_SUPPORTED[model_type]})" if model_type in NOT_SUPPORTED else ""
    raise UserError(
        f"{model_type} is an encoder-decoder that cannot be used{why}; there are: {', '.join(known)}", "model.path"
    )


def text_config(model: Any) -> Any:
    """Returns the configuration of a model's language part; for a model that reads only text, the whole one."""
    return model.config.get_text_config()


def context_of(config: Any) -> int:
    """Returns the longest sequence in tokens; for an encoder-decoder the longest source, and the longest target."""
    return architectures.context(config) or UNLIMITED


def switch_off_layer_drop(model: nn.Module) -> float:
    """Makes every block run in every training step; returns the probability with which blocks were left out."""
    parts = [module for module in model.modules() if getattr(module, "layerdrop", 0)]
    dropped = max((float(part.layerdrop) for part in parts), default=0.0)  # type: ignore[arg-type]
    for part in parts:
        part.layerdrop = 0.0  # type: ignore[assignment]
    return dropped


def states_by_hooks(blocks: Sequence[tuple[str, nn.Module]], run: Callable[[], Tensor]) -> tuple[list[Tensor], Tensor]:
    """Returns the output `h_BTD` of each block while `run` runs, and the result of `run`. Raises UserError unless every
    block runs exactly once."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple | list) else output)

    handles = [block.register_forward_hook(keep) for _, block in blocks]
    try:
        last_BTD = run()
    finally:
        for handle in handles:
            handle.remove()
    if len(found) != len(blocks):
        raise UserError(
            f"{len(found)} of {len(blocks)} blocks ran; distillation compares all of them, so layers must not be "
            "dropped (layerdrop in config.json)",
            "distill.squarehead",
        )
    return found, last_BTD


def linears_in(blocks: Sequence[tuple[str, nn.Module]], model: nn.Module) -> dict[str, nn.Linear]:
    """Returns the linears of some blocks by dotted name. Raises UserError if there are none."""
    found = {
        f"{block_name}.{name}": module
        for block_name, block in blocks
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }
    if not found:
        raise UserError(f"{type(model).__name__} has no nn.Linear inside its blocks to prune", "model.path")
    return found
