"""Code shared by all families: folders in hub format, read by one of transformers' automatic classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engine.unfused import unfuse_


class HuggingFaceFolder:
    auto_class: Any
    """Automatic class of transformers; set by the family."""
    mapping: str
    """Mapping in `transformers.models.auto.modeling_auto`: the architectures of the automatic class, by model type."""
    attention: str | None = None
    """Implementation of attention in transformers; None: its own choice."""

    @property
    def model_types(self) -> set[str]:
        from transformers.models.auto import modeling_auto

        return set(getattr(modeling_auto, self.mapping))

    def load(self, folder: Path, dtype: torch.dtype | None = None) -> Any:
        model = self.auto_class.from_pretrained(
            folder,
            dtype=dtype or "auto",
            local_files_only=True,
            use_safetensors=True,
            attn_implementation=self.attention,
        ).eval()
        unfuse_(model)
        return self.complete(model, folder)

    def complete(self, model: Any, folder: Path) -> Any:
        return model

    def build(self, folder: Path) -> Any:
        from transformers import AutoConfig, GenerationConfig
        from transformers.initialization import no_init_weights

        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        # of a quantized checkpoint: it describes the file, not this model
        vars(config).pop("quantization_config", None)
        with no_init_weights():
            model = self.auto_class.from_config(config, attn_implementation=self.attention).eval()
        model.tie_weights()
        unfuse_(model)
        if (folder / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        return self.complete(model, folder)

    def tokenizer(self, folder: Path) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
