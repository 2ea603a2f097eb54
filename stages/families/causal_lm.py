"""Decoder-only language models: Llama, Mistral, Qwen, SmolLM, OPT, MPT and their like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.contracts import Corpus, DataSet, UserError
from stages import tokens
from stages.families import UNLIMITED, Batch, Rows, linears_in
from stages.families.hugging_face import HuggingFaceFolder


class CausalLM(HuggingFaceFolder):
    name = "causal_lm"
    mapping = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"

    @property
    def auto_class(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def context(self, model: nn.Module) -> int:
        config: Any = model.config
        # MPT calls it max_seq_len; with ALiBi it is a training length, not a limit, but the only one stated
        for key in ("max_position_embeddings", "max_seq_len", "n_positions"):
            length = getattr(config, key, None)
            if length:
                return int(length)
        return UNLIMITED

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        config: Any = model.config
        for name, module in model.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
                return [(f"{name}.{i}", block) for i, block in enumerate(module)]
        raise UserError(f"found no list of {config.num_hidden_layers} blocks in {type(model).__name__}", "model.path")

    def prunable(self, model: nn.Module) -> dict[str, nn.Linear]:
        return linears_in(self.blocks(model), model)

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

    def read_by(self, batch: Batch, linear: str) -> Tensor:
        return batch["use"].bool()

    def hidden(self, model: Any, batch: Batch) -> Tensor:
        h_BTD: Tensor = model.base_model(**self.inputs(batch), use_cache=False).last_hidden_state
        return h_BTD

    def states(self, model: Any, batch: Batch) -> list[Tensor]:
        """Blocks 1..L, the embedding output left out; the last is taken after the final norm, as the papers do."""
        output = model.base_model(**self.inputs(batch), output_hidden_states=True, use_cache=False)
        return [*output.hidden_states[1:-1], output.last_hidden_state]

    def compared(self, model: nn.Module, batch: Batch) -> list[Tensor | None]:
        """Prompt and answer alike: every real token of every layer."""
        return [batch["use"].bool()] * len(self.blocks(model))

    @torch.no_grad()
    def head(self, model: Any) -> nn.Module:
        head: nn.Module = model.get_output_embeddings()
        was_training = model.training
        model.eval()
        probe_BT = torch.arange(1, 5, device=model.device)[None]
        logits_BTV = model(input_ids=probe_BT, use_cache=False).logits
        h_BTD = self.hidden(model, {"input_ids": probe_BT})
        model.train(was_training)
        # a model that scales or caps its logits would be trained on another loss than its own
        if not torch.allclose(head(h_BTD).float(), logits_BTV.float(), rtol=1e-3, atol=1e-3):
            raise UserError(
                f"{type(model).__name__} transforms its logits after the head; that is not trained yet", "model.path"
            )
        return head

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
