"""Decoder-only language models: Llama, Mistral, Qwen, SmolLM, OPT, MPT and their like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.reach import not_replaceable, probe_ids
from stages import tokens
from stages.contracts import Corpus, DataSet, PackedCorpus, UserError
from stages.families import Batch, Rows, context_of, linears_in, states_by_hooks, text_config
from stages.families.decoding_head import OwnHead, agree, last_hidden_state, output_head, run_decoder
from stages.families.hugging_face import HuggingFaceFolder
from stages.families.routers import routers
from stages.packed import rows as windows_of


class CausalLM(HuggingFaceFolder):
    name = "causal_lm"
    mapping = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"

    @property
    def auto_class(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def context(self, model: nn.Module) -> int:
        return context_of(text_config(model))

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Returns the blocks; for a model that reads images or sound as well, those of its language model."""
        count = getattr(text_config(model), "num_hidden_layers", None)
        lists = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == count and _reads_text(model, name)
        ]
        if not lists:
            raise UserError(f"found no list of {count or 'its'} blocks in {type(model).__name__}", "model.path")
        first = lists[0]
        for name in lists[1:]:
            if name.rpartition(".")[0] == first.rpartition(".")[0] and _has_linears(model, name):
                raise UserError(
                    f"{type(model).__name__} keeps each block in several lists, such as {first} and {name}; such "
                    "models cannot be used",
                    "model.path",
                )
        return [(f"{first}.{i}", block) for i, block in enumerate(model.get_submodule(first).children())]

    def prunable(self, model: nn.Module) -> dict[str, nn.Linear]:
        linears = linears_in(self.blocks(model), model)
        alone = self.left_alone(model)
        if len(alone) == len(linears):
            raise UserError(f"{type(model).__name__} has no nn.Linear inside its blocks to prune", "model.path")
        return {name: linear for name, linear in linears.items() if name not in alone}

    def left_alone(self, model: nn.Module) -> dict[str, str]:
        linears = linears_in(self.blocks(model), model)
        alone = {name: why for name, why in not_replaceable(model).items() if name in linears}
        return alone | routers(model, linears)

    @torch.no_grad()
    def refused(self, model: Any) -> dict[str, str]:
        """Returns what the model does not support. Raises UserError for a model that is not causal."""
        was_training = model.training
        model.eval()
        _check_causal(model)
        found: dict[str, str] = {}
        for what, attempt in (
            ("training", lambda: self.head(model)),
            ("training", lambda: _run_in_training(model)),
            ("squarehead", lambda: self.states(model, {"input_ids": probe_ids(model)})),
        ):
            try:
                attempt()
            except UserError as error:
                found.setdefault(what, error.message)
        model.train(was_training)
        return found

    def rows(
        self, model: nn.Module, folder: Path, data: DataSet, split: str, length: int, option: str, packed: bool = True
    ) -> Rows:
        if isinstance(data, PackedCorpus):
            return windows_of(data, split, length, False, option)
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

    def input_token_mask(self, batch: Batch, linear: str) -> Tensor:
        return batch["use"].bool()

    def hidden(self, model: Any, batch: Batch) -> Tensor:
        return last_hidden_state(run_decoder(model, self._decoders(model), self.inputs(batch)))

    def states(self, model: Any, batch: Batch) -> list[Tensor]:
        """Returns the outputs of blocks 1..L; the last one after the final norm, as in the papers."""
        found, last_BTD = states_by_hooks(self.blocks(model), lambda: self.hidden(model, batch))
        if odd := [h for h in found if h.shape[:2] != last_BTD.shape[:2]]:
            raise UserError(
                f"a block puts out states of shape {tuple(odd[0].shape)} where the head reads {tuple(last_BTD.shape)}; "
                "they cannot be compared token by token",
                "distill.squarehead",
            )
        return [*found[:-1], last_BTD]

    def _decoders(self, model: nn.Module) -> list[nn.Module]:
        """Returns the modules around the list of blocks, without the model itself, outermost first."""
        parts = self.blocks(model)[0][0].split(".")[:-2]
        return [model.get_submodule(".".join(parts[:length])) for length in range(1, len(parts) + 1)]

    def feature_masks(self, model: nn.Module, batch: Batch) -> list[Tensor | None]:
        """Returns every real token, of prompt and answer alike, for every layer."""
        return [batch["use"].bool()] * len(self.blocks(model))

    @torch.no_grad()
    def head(self, model: Any) -> nn.Module:
        """Returns the output layer, or, if the model scales or caps its logits, its own code after the decoder."""
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
                    # some models transform the decoder's output first; a cap shows in large logits only
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
    """Rows in memory."""

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


def _reads_text(model: Any, name: str) -> bool:
    """Returns whether a module belongs to the language model: the innermost model around it has the configuration of
    one."""
    parts = name.split(".")
    around = [model, *(model.get_submodule(".".join(parts[:length])) for length in range(1, len(parts)))]
    innermost = [module for module in around if isinstance(module, PreTrainedModel)][-1]
    return isinstance(innermost.config, type(text_config(model)))


def _has_linears(model: nn.Module, name: str) -> bool:
    return any(isinstance(module, nn.Linear) for module in model.get_submodule(name).modules())


@torch.no_grad()
def _run_in_training(model: Any) -> None:
    """Raises UserError if a pass in training mode fails; the state of random numbers is kept."""
    devices = [model.device] if model.device.type == "cuda" else []
    model.train()
    try:
        with torch.random.fork_rng(devices):
            model(input_ids=probe_ids(model), use_cache=False)
    except Exception as error:  # models of transformers may have any demands on their inputs
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{type(model).__name__} cannot run in training: {reason}", "model.path") from error
    finally:
        model.eval()


@torch.no_grad()
def _check_causal(model: Any) -> None:
    """Raises UserError for a model whose predictions depend on the tokens that they predict."""
    ids_BT = probe_ids(model)
    other_BT = ids_BT.clone()
    other_BT[:, -1] = (ids_BT[:, -1] + 1) % int(text_config(model).vocab_size)
    logits_BTV, changed_BTV = (model(input_ids=ids, use_cache=False).logits[:, :-1] for ids in (ids_BT, other_BT))
    # experts that see other tokens beside the same ones may round in another way
    tolerance = max(1e-3, 4 * torch.finfo(logits_BTV.dtype).eps) * logits_BTV.abs().max()
    if not bool((changed_BTV - logits_BTV).abs().max() <= tolerance):
        raise UserError(
            f"{type(model).__name__} sees the tokens that it should predict, by its config.json; a causal language "
            "model is needed (is_decoder is true for models of BERT's kind, attn_type is uni for XLNet)",
            "model.path",
        )
