"""Decoder-only language models: Llama, Mistral, Qwen, SmolLM, OPT, MPT and their like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.reach import not_replaceable, probe_ids
from pipeline.contracts import Corpus, DataSet, UserError
from stages import tokens
from stages.families import UNLIMITED, Batch, Rows, linears_in, states_by_hooks, text_config
from stages.families.decoding_head import OwnHead, agree, last_hidden_state, output_head, run_decoder
from stages.families.hugging_face import HuggingFaceFolder
from stages.families.routers import routers


class CausalLM(HuggingFaceFolder):
    name = "causal_lm"
    mapping = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"

    @property
    def auto_class(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def context(self, model: nn.Module) -> int:
        config: Any = text_config(model)
        # MPT calls it max_seq_len; with ALiBi it is a training length, not a limit, but the only one stated
        for key in ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length"):
            length = getattr(config, key, None)
            if length:
                return int(length)
        return UNLIMITED

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Of a model that reads images or sound as well: those of its language model."""
        count = int(text_config(model).num_hidden_layers)
        decoder = _language_model(model)
        for name, module in model.named_modules():
            inside = decoder is model or any(module is part for part in decoder.modules())
            if isinstance(module, nn.ModuleList) and len(module) == count and inside:
                return [(f"{name}.{i}", block) for i, block in enumerate(module)]
        raise UserError(f"found no list of {count} blocks in {type(model).__name__}", "model.path")

    def prunable(self, model: nn.Module) -> dict[str, nn.Linear]:
        linears = linears_in(self.blocks(model), model)
        alone = self.left_alone(model)
        if len(alone) == len(linears):
            raise UserError(f"{type(model).__name__} has no nn.Linear inside its blocks to prune", "model.path")
        return {name: linear for name, linear in linears.items() if name not in alone}

    def left_alone(self, model: nn.Module) -> dict[str, str]:
        linears = linears_in(self.blocks(model), model)
        return not_replaceable(model, linears) | routers(model, linears)

    @torch.no_grad()
    def refused(self, model: Any) -> dict[str, str]:
        was_training = model.training
        model.eval()
        found = {}
        for what, attempt in (
            ("training", lambda: self.head(model)),
            ("squarehead", lambda: self.states(model, {"input_ids": probe_ids(model)})),
        ):
            try:
                attempt()
            except UserError as error:
                found[what] = error.message
        model.train(was_training)
        return found

    def rows(
        self, model: nn.Module, folder: Path, data: DataSet, split: str, length: int, option: str, packed: bool = True
    ) -> Rows:
        assert isinstance(data, Corpus)
        batch = tokens.training_rows(data, split, self.tokenizer(folder), length, model, option, packed)
        return TensorRows(batch, self)

    def trim(self, batch: Batch) -> Batch:
        length = int(batch["use"].any(0).nonzero().max()) + 1
        return {name: tensor[:, :length] for name, tensor in batch.items()}

    def sizes(self, batch: Batch) -> Tensor:
        return batch["use"].sum(1)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in batch.items() if name not in ("labels", "use")}

    def example(self, model: nn.Module) -> dict[str, Tensor]:
        return {"input_ids": probe_ids(model)}

    def read_by(self, batch: Batch, linear: str) -> Tensor:
        return batch["use"].bool()

    def hidden(self, model: Any, batch: Batch) -> Tensor:
        return last_hidden_state(run_decoder(model, self._decoders(model), self.inputs(batch)))

    def states(self, model: Any, batch: Batch) -> list[Tensor]:
        """What blocks 1..L put out; of the last one after the final norm, as the papers do."""
        found, last_BTD = states_by_hooks(self.blocks(model), lambda: self.hidden(model, batch))
        if odd := [h for h in found if h.shape[:2] != last_BTD.shape[:2]]:
            raise UserError(
                f"a block puts out states of shape {tuple(odd[0].shape)} where the head reads {tuple(last_BTD.shape)}; "
                "they cannot be compared token by token",
                "distill.squarehead",
            )
        return [*found[:-1], last_BTD]

    def _decoders(self, model: nn.Module) -> list[nn.Module]:
        """The modules around the list of blocks, without the model itself, outermost first."""
        parts = self.blocks(model)[0][0].split(".")[:-2]
        return [model.get_submodule(".".join(parts[:length])) for length in range(1, len(parts) + 1)]

    def compared(self, model: nn.Module, batch: Batch) -> list[Tensor | None]:
        """Prompt and answer alike: every real token of every layer."""
        return [batch["use"].bool()] * len(self.blocks(model))

    @torch.no_grad()
    def head(self, model: Any) -> nn.Module:
        """The output layer, or where the model scales or caps its logits, its own code from the decoder on."""
        was_training = model.training
        model.eval()
        try:
            ids_BT = probe_ids(model)
            logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
            decoders = self._decoders(model)
            output = run_decoder(model, decoders, {"input_ids": ids_BT})
            h_BTD = last_hidden_state(output)
            plain: nn.Module = output_head(model)
            h_ND = h_BTD.flatten(0, 1)
            for head in (OwnHead(model, decoder, output) for decoder in decoders):
                if agree(head(h_ND), logits_BTV.flatten(0, 1)):
                    # some transform what the decoder puts out first; a cap shows in large logits only
                    fits = next(plain.parameters()).shape[-1] == h_ND.shape[-1]
                    is_plain = fits and all(agree(head(size * h_ND), plain(size * h_ND)) for size in (1, 100))
                    return plain if is_plain else head
        finally:
            model.train(was_training)
        raise UserError(f"cannot tell how {type(model).__name__} makes its logits; it cannot be trained", "model.path")

    def logits_and_labels(self, logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
        return logits_BTV[:, :-1], labels_BT[:, 1:]


@dataclass(frozen=True)
class TensorRows:
    """Rows that are in memory already."""

    batch: Batch
    family: CausalLM

    independent = True

    def __len__(self) -> int:
        return len(self.batch["input_ids"])

    @cached_property
    def sizes(self) -> Tensor:
        return self.family.sizes(self.batch)

    def take(self, chosen_B: Tensor) -> Batch:
        return self.family.trim({name: tensor[chosen_B] for name, tensor in self.batch.items()})


def _language_model(model: Any) -> nn.Module:
    """The part that reads tokens, of a model that may have others."""
    has_others = model.config.get_text_config() is not model.config
    found: nn.Module = model.get_decoder() if has_others else model
    return found
