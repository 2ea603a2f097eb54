"""Decoder-only language models: Llama, Mistral, Qwen, SmolLM, OPT, MPT and their like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.contracts import UserError
from stages.families import Batch

UNLIMITED = 1 << 30


class CausalLM:
    name = "causal_lm"

    def load(self, folder: Path, dtype: torch.dtype | None = None) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or "auto", local_files_only=True, use_safetensors=True
        ).eval()

    def build(self, folder: Path) -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.initialization import no_init_weights

        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(config).eval()
        model.tie_weights()
        return model

    def tokenizer(self, folder: Path) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True)

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
        found = {
            f"{block_name}.{name}": module
            for block_name, block in self.blocks(model)
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        }
        if not found:
            raise UserError(f"{type(model).__name__} has no nn.Linear inside its blocks to prune", "model.path")
        return found

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in batch.items() if name not in ("labels", "use")}

    def states(self, model: Any, batch: Batch) -> list[Tensor]:
        """Blocks 1..L, the embedding output left out; the last is taken after the final norm, as the papers do."""
        output = model.base_model(**self.inputs(batch), output_hidden_states=True, use_cache=False)
        return [*output.hidden_states[1:-1], output.last_hidden_state]

    @torch.no_grad()
    def head(self, model: Any) -> nn.Module:
        head: nn.Module = model.get_output_embeddings()
        was_training = model.training
        model.eval()
        probe_BT = torch.arange(1, 5)[None]
        logits_BTV = model(input_ids=probe_BT, use_cache=False).logits
        h_BTD = self.states(model, {"input_ids": probe_BT})[-1]
        model.train(was_training)
        # a model that scales or caps its logits would be trained on another loss than its own
        if not torch.allclose(head(h_BTD).float(), logits_BTV.float(), rtol=1e-3, atol=1e-3):
            raise UserError(
                f"{type(model).__name__} transforms its logits after the head; that is not trained yet", "model.path"
            )
        return head

    def loss_positions(self, batch: Batch) -> Tensor:
        return batch["use"].bool()

    def logits_and_labels(self, logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
        return logits_BTV[:, :-1], labels_BT[:, 1:]
