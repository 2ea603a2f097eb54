"""Model families: what the stages need to know of an architecture. Adding a family is one file here."""

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

# a bar for each read and write of weights says little; the stages have their own
logging.disable_progress_bar()

Batch = dict[str, Tensor]
"""Tensors of B rows each. `Family.inputs` of it is what the model's forward takes. Besides: `labels_BT`, token ids,
-100 where nothing is to be learned, at the position of their token (the loss shifts them where the family is causal);
`use_BT`, 1 = a real token (of an encoder-decoder: of the decoder). Padding is on the right."""


UNLIMITED = 1 << 30
"""The context of a model without a limit."""


class Rows(Protocol):
    """The examples of a split, ready for the model."""

    def __len__(self) -> int: ...

    @property
    def sizes(self) -> Tensor:
        """`size_N`: what a row costs, to bring rows of like cost together."""

    @property
    def independent(self) -> bool:
        """Whether the states of a row are the same whatever rows stand beside it."""

    def take(self, chosen_B: Tensor) -> Batch:
        """These rows, padded no longer than the longest of them needs."""


class Family(Protocol):
    """Everything architecture-specific. All tensors are on the CPU unless the model is elsewhere."""

    name: str

    @property
    def auto_class(self) -> Any:
        """The class of transformers whose `from_pretrained` knows the family's architectures."""

    @property
    def model_types(self) -> set[str]:
        """The `model_type`s of config.json that belong to the family. It decides, as in transformers: the names in
        `architectures` may be those of older or of remote code."""

    def load(self, folder: Path, dtype: torch.dtype | None = None) -> Any:
        """The model of a Hugging Face folder, in eval mode; dtype None keeps the stored one."""

    def complete(self, model: Any, folder: Path) -> Any:
        """The model of a folder, with settings that old folders leave out filled in."""

    def build(self, folder: Path) -> Any:
        """The model's architecture with weights not initialised, for a loader that brings its own."""

    def tokenizer(self, folder: Path) -> Any: ...

    def context(self, model: nn.Module) -> int:
        """The longest sequence in tokens; a very large number where positions are unlimited."""

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Dotted names and modules of the repeated blocks, in execution order: the encoder's, then the decoder's."""

    def prunable(self, model: nn.Module) -> dict[str, nn.Linear]:
        """Linears inside the blocks, by dotted name, in execution order. Not embeddings, norms, head, convolutions."""

    def left_alone(self, model: nn.Module) -> dict[str, str]:
        """Linears inside the blocks that are not prunable, and why."""

    def refused(self, model: nn.Module) -> dict[str, str]:
        """What cannot be done with this model (`training`, `squarehead`), and why."""

    def rows(
        self, model: nn.Module, folder: Path, data: DataSet, split: str, length: int, option: str, packed: bool = True
    ) -> Rows:
        """The split as the model reads it; sequences of at most `length` tokens, longer ones cut. `packed`: short items
        may share a row. Raises UserError, with `option`, where the split is too small."""

    def trim(self, batch: Batch) -> Batch:
        """Without the columns that are padding in all rows."""

    def sizes(self, batch: Batch) -> Tensor:
        """`size_B`, as `Rows.sizes`."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The arguments of the model's forward."""

    def example(self, model: nn.Module) -> dict[str, Tensor]:
        """Small arguments of the model's forward, that show which of its parts run."""

    def input_token_mask(self, batch: Batch, linear: str) -> Tensor:
        """bool (B, tokens): the real tokens among those that the linear of this name sees."""

    def hidden(self, model: nn.Module, batch: Batch) -> Tensor:
        """`h_BTD` that the head reads."""

    def states(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """`h_BTD` after each block, as a feature loss compares them; the last of the list is what the head reads."""

    def feature_masks(self, model: nn.Module, batch: Batch) -> list[Tensor | None]:
        """For each of the model's `states`: bool `use_BT`, the tokens that a feature loss compares; None: none."""

    def head(self, model: nn.Module) -> nn.Module:
        """What turns the last of `states` into logits. Raises UserError where the model does more than that."""

    def logits_and_labels(self, logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Aligned so that logits at [b, t] predict labels at [b, t] (causal families shift by one). The last
        dimension may be any: states that are to become logits are aligned the same way."""


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
    """The adapter of a family. Raises UserError for an unknown one."""
    return FAMILIES.get(name).adapter()


def of(folder: Path) -> Family:
    """The family of a checkpoint, read from its config.json."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return get(name_of(config.model_type, bool(config.is_encoder_decoder)))


def name_of(model_type: str, is_encoder_decoder: bool) -> str:
    """Raises UserError for an encoder-decoder that belongs to no family."""
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
    """The configuration of a model's language part, which is the whole one of a model that reads text only."""
    return model.config.get_text_config()


def context_of(config: Any) -> int:
    """The longest sequence in tokens; of an encoder-decoder the longest source, and the longest target."""
    return architectures.context(config) or UNLIMITED


def switch_off_layer_drop(model: nn.Module) -> float:
    """Makes every block run in every training step; returns the probability with which blocks were left out."""
    parts = [module for module in model.modules() if getattr(module, "layerdrop", 0)]
    dropped = max((float(part.layerdrop) for part in parts), default=0.0)  # type: ignore[arg-type]
    for part in parts:
        part.layerdrop = 0.0  # type: ignore[assignment]
    return dropped


def states_by_hooks(blocks: Sequence[tuple[str, nn.Module]], run: Callable[[], Tensor]) -> tuple[list[Tensor], Tensor]:
    """`h_BTD` that each block puts out while `run` runs, and what that returns. Raises UserError where not every block
    runs exactly once."""
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
    """The linears of some blocks by dotted name. Raises UserError where there are none."""
    found = {
        f"{block_name}.{name}": module
        for block_name, block in blocks
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }
    if not found:
        raise UserError(f"{type(model).__name__} has no nn.Linear inside its blocks to prune", "model.path")
    return found
